"""A folder with an application in it, and worker processes that serve it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskq import TaskQ
from tests.support.processes import Worker, environment, eventually

LEASE = 1.0

TASKS = """
import os, sys, time
from taskq import TaskQ, current_request

HERE = os.path.dirname(os.path.abspath(__file__))
app = TaskQ("e2e", broker="sqlite:///" + os.path.join(HERE, "queue.db") + "?synchronous=NORMAL", isolated=True,
            lease={lease}, max_deliveries=3)

def note(what):
    request = current_request()
    with open(os.path.join(HERE, "notes"), "a") as file:
        file.write(f"{{what}} {{request.args[0]}} {{os.getpid()}} {{request.deliveries}}\\n")

@app.task
def quick(i):
    note("ran")
    return i

@app.task
def gated(i):
    \"\"\"Run until somebody opens the gate.\"\"\"
    note("began")
    while not os.path.exists(os.path.join(HERE, "gate")):
        time.sleep(0.01)
    note("ended")
    return i

@app.task
def dies(i):
    note("dies")
    os._exit(7)

@app.task
def exits(i):
    note("exits")
    sys.exit(5)
"""


class Site:
    """The application's folder, and the application as a client has it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "tasks.py").write_text(TASKS.format(lease=LEASE))
        broker = f"sqlite:///{folder}/queue.db?synchronous=NORMAL"
        self.app = TaskQ("e2e", broker=broker, isolated=True, lease=LEASE)
        self.workers: list[Worker] = []
        self.eventually = eventually

    def worker(self, *options: str) -> Worker:
        made = Worker(self.folder, *options)
        self.workers.append(made)
        return made

    def send(self, task: str, *args: Any, **options: Any) -> Any:
        return self.app.send_task(f"tasks.{task}", args, **options)

    def open_gate(self) -> None:
        (self.folder / "gate").touch()

    @property
    def notes(self) -> list[tuple[str, int, int, int]]:
        """What, which, process, delivery of every note that a task left."""
        path = self.folder / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(what, int(i), int(pid), int(n)) for what, i, pid, n in map(str.split, lines)]

    def noted(self, what: str) -> list[tuple[str, int, int, int]]:
        return [note for note in self.notes if note[0] == what]

    def counts(self) -> tuple[int, int, int]:
        found = self.app.transport.stats(["default"]).get("default")  # type: ignore[attr-defined]
        return (found.ready, found.in_flight, found.delayed) if found is not None else (0, 0, 0)

    def taskq(self, *arguments: str) -> str:
        """Run a command and return what it prints."""
        command = [sys.executable, "-m", "taskq", *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=environment(self.folder), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def taskq_json(self, *arguments: str) -> Any:
        return json.loads(self.taskq(*arguments, "--json"))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    for worker in made.workers:
        worker.end()
    made.app.close()
