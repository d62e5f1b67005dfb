"""The duties of process 1, which a container's first process has: no signal ends it by itself, and orphans are its."""

from __future__ import annotations

import os
import signal

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def run_below() -> None:
    """Fork: return in the child; the parent reaps whoever ends, passes signals on, and exits as the child does."""
    signals = {*_PASSED_ON, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # none is lost before the parent waits for them
    child = os.fork()
    if child == 0:
        _lead_the_terminal()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        return
    while True:
        number = signal.sigwait(signals)
        if number == signal.SIGCHLD:
            _reap(child)
        else:
            os.kill(child, number)


def _lead_the_terminal() -> None:
    """Make a group of our own the terminal's: else Ctrl-C would come twice, once from it and once passed on."""
    os.setpgid(0, 0)
    if os.isatty(0):
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # asked from the background, which we still are
        os.tcsetpgrp(0, os.getpgrp())


def _reap(child: int) -> None:
    """Reap everybody who has ended; exit if that is the child."""
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if ended == 0:
            return
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
