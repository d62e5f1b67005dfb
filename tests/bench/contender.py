"""One contender: its interpreter, its processes, and a private folder or database for each measurement."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.measure import wait_for
from tests.support.databases import fresh_database

ROOT = Path(__file__).resolve().parents[2]
SIDE_TIMEOUT = 120.0
START_TIMEOUT = 30.0


class Failed(Exception):
    """A contender does not do this, or did not succeed; the text says why."""


@dataclass
class Contender:
    """Somebody to measure. `url` is a template with {folder} or {database}; `environment` chooses a variant."""

    label: str
    module: str
    url: str = ""
    peer: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    scale: float = 1.0  # of the number of messages: slow contenders get fewer, never less than the smallest number
    call_scale: float = 1.0
    python: Path = Path(sys.executable)
    facts: dict[str, Any] = field(default_factory=dict)


class Box:
    """A contender's private surroundings during one measurement."""

    def __init__(self, contender: Contender, folder: Path, database: str) -> None:
        self.contender = contender
        self.folder = folder
        self.marks = folder / "marks"
        os.mkfifo(folder / "pipe")
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("TASKQ_")},
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "",
            "BENCH_DIR": str(folder),
            "BENCH_URL": contender.url.format(folder=folder, database=database) if contender.url else database,
            "BENCH_MARKS_FILE": str(self.marks),
            "BENCH_PIPE": str(folder / "pipe"),
            **contender.environment,
        }

    def side(self, *arguments: object) -> dict[str, Any]:
        """Run the contender's side of a measurement; return what it measured.

        Raises:
            Failed: with the last line of what it said.
        """
        command = [self.contender.python, "-m", "tests.bench.side", self.contender.module, *map(str, arguments)]
        try:
            done = run(command, cwd=self.folder, env=self.environment, timeout=SIDE_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise Failed(f"{arguments[0]} took more than {SIDE_TIMEOUT:.0f} s") from None
        if done.returncode:
            raise Failed(f"{arguments[0]} ended {how(done.returncode, done.stderr)}")
        answer: dict[str, Any] = json.loads(done.stdout.rpartition("@@")[2])
        return answer

    @contextlib.contextmanager
    def worker(self, marks: list[int] | None = None) -> Iterator[RunningWorker]:
        """Start a worker that notes when so many tasks have run; stop it afterwards."""
        log = self.folder / "worker.log"
        environment = {**self.environment, "BENCH_MARKS": ",".join(map(str, marks or []))}
        command = [part.replace("{url}", self.environment["BENCH_URL"]) for part in self.contender.facts["worker"]]
        self.marks.unlink(missing_ok=True)
        with log.open("wb") as output:
            started = time.monotonic()
            process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        running = RunningWorker(process, started, self.marks, log)
        try:
            yield running
        finally:
            running.stop()

    def size(self) -> int:
        """Return the bytes of the contender's files, SQLite's write-ahead logs folded into their databases first."""
        import sqlite3

        for path in self.folder.rglob("*.db"):
            with contextlib.closing(sqlite3.connect(path)) as connection, contextlib.suppress(sqlite3.Error):
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        ours = {"marks", "worker.log", "pipe"}
        return sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file() and p.name not in ours)


class RunningWorker:
    """A worker process and the marks that its tasks leave."""

    def __init__(self, process: subprocess.Popen[bytes], started: float, marks: Path, log: Path) -> None:
        self.process = process
        self.started = started
        self._marks = marks
        self._log = log

    def marks(self) -> dict[int, float]:
        """Return when the n-th task ran."""
        try:
            lines = self._marks.read_text().splitlines()
        except FileNotFoundError:
            return {}
        return {int(n): float(t) for n, t in (line.split() for line in lines if line.count(" ") == 1)}

    def wait(self, mark: int, seconds: float) -> bool:
        """Wait for a mark; whether it came.

        Raises:
            Failed: the worker ended instead.
        """
        wait_for(lambda: mark in self.marks() or self.process.poll() is not None, seconds, 0.02)
        if mark in self.marks():
            return True
        if self.process.poll() is not None:
            raise Failed(f"the worker ended {how(self.process.returncode, self._log.read_text(errors='replace'))}")
        return False

    def stop(self) -> None:
        """End the worker and its children; by force if it does not."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                if number is signal.SIGTERM:
                    self.process.send_signal(number)
                else:
                    os.killpg(self.process.pid, number)  # its own session: children that outlived it
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)


@contextlib.contextmanager
def box(contender: Contender, work: Path, server: str) -> Iterator[Box]:
    """Make a contender's surroundings, a new database on the server included, and remove them afterwards."""
    folder = Path(tempfile.mkdtemp(dir=work))
    try:
        with fresh_database(server) if server else contextlib.nullcontext("") as database:
            made = Box(contender, folder, database)
            if not contender.facts:
                contender.facts = made.side("facts")
            if contender.facts["prepares"]:
                made.side("prepare")
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and keep what it says."""
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def how(code: int, said: str) -> str:
    """Return how a process ended: by a signal, or with a code and its last line that says something."""
    if code < 0:
        return f"by {signal.Signals(-code).name}"
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["it said nothing"]
    telling = [line for line in lines if "error" in line.lower()] or lines
    return f"with {code}: {telling[-1][:300]}"
