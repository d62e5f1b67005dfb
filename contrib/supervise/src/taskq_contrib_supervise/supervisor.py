"""The supervisor: starts worker processes, passes signals on, restarts what dies, reaps everything.

It is fit to be process 1 of a container: orphans that come to it are reaped, TERM and INT are passed on once each, so
that the workers' own rules hold (the first is warm, the second interrupts).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

from msgspec import Struct

logger = logging.getLogger("taskq.supervise")
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a worker that died is started again; doubled each time, as long as none lives for a minute."""
_STEADY = 60.0
_LOOK = 0.1


class Node(Struct):
    """One worker process: its name, its command line, and how it fares."""

    name: str
    command: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    pause: float = FIRST_PAUSE
    due: float | None = 0.0
    """When to start it, by ``time.monotonic``; None while it runs or has ended for good."""
    code: int = 0


class Supervisor:
    """Runs nodes until it is told to stop, or all have ended by themselves.

    Args:
        nodes: what to run.
        changed: asked about ten times a second; true makes every node restart (``taskq reload``).
    """

    def __init__(self, nodes: Sequence[Node], changed: Callable[[], bool] | None = None) -> None:
        self._nodes = nodes
        self._changed = changed
        self._signals: list[signal.Signals] = []
        self._stopping = False
        self._restarting: set[str] = set()

    def run(self) -> int:
        """Supervise; return 0 when every node ended with 0, else the first other exit code."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, lambda n, _: self._signals.append(signal.Signals(n)))
        while True:
            self._pass_on()
            self._reap()
            self._start_due()
            if all(node.process is None and node.due is None for node in self._nodes):
                return next((node.code for node in self._nodes if node.code), 0)
            if self._changed is not None and not self._stopping and self._changed():
                self._restart_all()
            time.sleep(_LOOK)

    def _pass_on(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            if number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                self._stopping = True
                for node in self._nodes:
                    node.due = None
            for node in self._nodes:
                self._send(node, number)

    @staticmethod
    def _send(node: Node, number: signal.Signals) -> None:
        if node.process is not None and node.process.poll() is None:
            node.process.send_signal(number)

    def _restart_all(self) -> None:
        for node in self._nodes:
            if node.process is not None:
                self._restarting.add(node.name)
                self._send(node, signal.SIGTERM)
            else:  # it had died, perhaps of the code that has changed now
                node.pause, node.due = FIRST_PAUSE, 0.0

    def _start_due(self) -> None:
        now = time.monotonic()
        for node in self._nodes:
            if node.process is None and node.due is not None and now >= node.due:
                # a session of its own: a terminal's INT comes through us only, once
                node.process = subprocess.Popen(node.command, start_new_session=True)
                node.started, node.due = now, None
                logger.info("%s started, process %d", node.name, node.process.pid)

    def _reap(self) -> None:
        for node in self._nodes:
            if node.process is not None and (code := node.process.poll()) is not None:
                node.process = None
                self._ended(node, code)
        if os.getpid() == 1:  # orphans of the workers are ours
            with contextlib.suppress(ChildProcessError):
                known = {node.process.pid for node in self._nodes if node.process is not None}
                while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                    if found.si_pid in known:
                        return
                    os.waitpid(found.si_pid, 0)

    def _ended(self, node: Node, code: int) -> None:
        node.code = code if code >= 0 else 128 - code
        if self._stopping:
            return
        now = time.monotonic()
        if node.name in self._restarting:
            self._restarting.discard(node.name)
            node.pause, node.due = FIRST_PAUSE, now
            return
        if code == 0:
            logger.info("%s ended by itself", node.name)
            return
        if now - node.started > _STEADY:
            node.pause = FIRST_PAUSE
        how = f"with code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
        if self._changed is not None:
            logger.error("%s ended %s; waiting for a change", node.name, how)
            node.due = float("inf")
            return
        logger.error("%s ended %s; starting it again in %.1f s", node.name, how, node.pause)
        node.due = now + node.pause
        node.pause = min(node.pause * 2, LONGEST_PAUSE)
