"""Small things that every process of the pool needs: dying with its parent, signals, names of ends."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
EXIT_ORPHAN = 119
"""Exit code of a child that has lost its sockets."""
LOST_SOCKETS = "has lost its sockets (a task must not close what it has not opened)"
QUIET_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
"""What the worker's process handles for all. A handler that does nothing, unlike SIG_IGN, is not inherited by programs
that a task starts."""


def die_with_parent(parent: int) -> None:
    """Have the system kill this process when the thread that made it ends; at once if the parent is gone already.

    Where the system cannot (only Linux can), the sockets' end tells.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Have the system make this process, rather than process 1, the parent of what its descendants leave behind."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def do_nothing(number: int, frame: FrameType | None) -> None:
    """Handle a signal by not handling it."""


def kill_group(pid: int) -> None:
    """Kill a child that leads a process group, with the programs that its task has started; gone ones are no error."""
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
        return


def describe_end(status: int) -> str:
    """Say how a process ended, from its exit code, negative for a signal."""
    if status == EXIT_ORPHAN:
        return LOST_SOCKETS
    if status >= 0:
        return f"ended with exit code {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = " (by the system for want of memory, or by hand)" if -status == signal.SIGKILL else ""
    return f"was killed by {name}{hint}"
