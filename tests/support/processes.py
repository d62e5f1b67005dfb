"""Worker processes of an application in a folder, for tests that kill them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
PATIENCE = 40.0


class Worker:
    """A ``taskq worker`` process that serves the module ``tasks`` of a folder."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.log = folder / f"worker-{len(list(folder.glob('worker-*')))}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "taskq", "-A", "tasks", "worker", *options],
                cwd=folder, env=environment(folder), stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def ready(self) -> Worker:
        """Wait until it takes messages."""
        eventually(lambda: "ready" in self.output or self.process.poll() is not None, self)
        assert self.process.poll() is None, self.output
        return self

    @property
    def output(self) -> str:
        return self.log.read_text()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Return its exit code."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the worker did not end:\n{self.output}")

    def end(self) -> None:
        """Kill it where it still runs, and wait for its end."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)


def eventually(look: Callable[[], T], context: Any = None, patience: float = PATIENCE) -> T:
    """Return what ``look`` gives once it is true; ``context`` has an ``output`` to show where it never is."""
    deadline = time.monotonic() + patience
    while not (value := look()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {patience:g} s\n{context.output if context is not None else ''}")
        time.sleep(0.01)
    return value


def environment(folder: Path) -> dict[str, str]:
    """The environment without any setting of taskq, and with the folder's modules."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TASKQ_")}
    return {**kept, "PYTHONPATH": str(folder), "PYTHONUNBUFFERED": "1"}
