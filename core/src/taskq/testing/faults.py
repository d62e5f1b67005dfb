"""Processes to kill, and forks to survive."""

from __future__ import annotations

import faulthandler
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any

import pytest


class ChildProcess:
    """A process that does one thing to a broker or store, says so, and waits to be killed. A context manager.

    Args:
        action: a name in ``taskq.testing.child.ACTIONS``.
        task: what the action needs: ``scheme``, ``url``, ``options`` and its own arguments.
    """

    def __init__(self, action: str, **task: Any) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        arguments = json.dumps({"action": action, **task})
        # -P: nothing of the current folder shadows an installed module.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "taskq.testing.child", arguments],
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )

    def said(self, seconds: float = 30.0) -> dict[str, Any]:
        """Wait until the action is done and return what it said; fail the test if it is not."""
        stream = self._process.stdout
        assert stream is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            ready = selector.select(seconds)
        line = stream.readline() if ready else b""
        if not line:
            self.kill()
            self._errors.seek(0)
            pytest.fail(f"the kit's own child process did not get ready: {self._errors.read().decode()[-2000:]}")
        said: dict[str, Any] = json.loads(line)
        return said

    def kill(self) -> None:
        """Kill it with SIGKILL: no handler, no clean-up, its sockets are closed by the system."""
        self._process.kill()
        self._process.wait(10.0)

    def __enter__(self) -> ChildProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()


def in_a_fork(seconds: float, call: Callable[[], object]) -> str:
    """Run a call in a forked child and return "" or what it raised; fail the test, with its stack, if the child hangs.

    As a pre-forking server does it: the child inherits every object and every socket, and no thread.
    """
    read, write = os.pipe()
    pid = os.fork()
    if not pid:  # nothing of pytest may run here, so no exception leaves this block
        message = ""
        try:
            faulthandler.dump_traceback_later(seconds, file=write)
            call()
        except BaseException as error:
            message = f"{type(error).__name__}: {error}"
        finally:
            os.write(write, message.encode()[:4000])
            os._exit(0)
    os.close(write)
    try:
        deadline = time.monotonic() + seconds
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline + 1.0:  # by now it has shown its stack
                os.kill(pid, 9)
                os.waitpid(pid, 0)
                pytest.fail(f"a forked child did not end within {seconds:g} s: {os.read(read, 4000).decode()}")
            time.sleep(0.01)
        return os.read(read, 4000).decode()
    finally:
        os.close(read)
