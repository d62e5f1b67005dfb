"""One contender: its interpreter, its processes, and surroundings of its own for each measurement."""

from __future__ import annotations

import contextlib
import json
import os
import select
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

from tests.bench.brokers import Surroundings
from tests.bench.measure import tree, wait_for
from tests.bench.stopwatch import Counter

ROOT = Path(__file__).resolve().parents[2]
SIDE_TIMEOUT = 40.0
START_TIMEOUT = 20.0


class Failed(Exception):
    """A contender does not do this, or did not succeed; the text says why."""


@dataclass
class Contender:
    """Somebody to measure. `url` is a template with {folder}, {database}, {name} or {port}; `environment` a variant."""

    label: str
    module: str  # of Python, or a file of another language
    url: str = ""
    peer: bool = False
    every_round: bool = True  # peers that set no mark are measured in the first round only
    environment: dict[str, str] = field(default_factory=dict)
    scale: float = 1.0  # of the number of messages: slow contenders get fewer, never less than the smallest number
    call_scale: float = 1.0
    needs: tuple[str, ...] = ()  # "group:name" of entry points without which it is left out
    kind: str = "python"  # the section of peers.txt that it is installed from
    command: list[str] = field(default_factory=list)  # what runs its side, once known
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def role(self) -> str:
        """Return "peer", "floor" (a bare library) or "taskq"."""
        return "peer" if self.peer else "floor" if ".floors." in self.module else "taskq"


class Side:
    """The contender's side: a process that takes orders."""

    def __init__(self, command: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
        self._said = folder / "side.log"
        with self._said.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def order(self, *what: object) -> dict[str, Any]:
        """Give an order and wait for the answer.

        Raises:
            Failed: with the last line of what it said.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(OSError):
            self.process.stdin.write(json.dumps(what).encode() + b"\n")
            self.process.stdin.flush()
        deadline, heard = time.monotonic() + SIDE_TIMEOUT, b""
        while True:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self.stop()
                raise Failed(f"{what[0]} took more than {SIDE_TIMEOUT:.0f} s")
            more = os.read(self.process.stdout.fileno(), 1 << 16)
            heard += more
            if not more:
                said = self._said.read_text(errors="replace")
                raise Failed(f"{what[0]} ended {how(self.process.wait(), said)}")
            start = heard.rfind(b"\n@@")
            if start >= 0 and heard.endswith(b"\n"):
                answer: dict[str, Any] = json.loads(heard[start + 3 :])
                return answer

    def stop(self) -> None:
        end(self.process)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


class Box:
    """A contender's private surroundings during one measurement."""

    def __init__(self, contender: Contender, folder: Path, at: Surroundings, *, results: bool) -> None:
        self.contender = contender
        self.folder = folder
        self.at = at
        self.count = Counter(str(folder / "count"))
        os.mkfifo(folder / "pipe")
        url = contender.url.format(folder=folder, database=at.url, name=at.name, port=at.port) or at.url
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("TASKQ_")},
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "",
            "BENCH_DIR": str(folder),
            "BENCH_URL": url,
            "BENCH_NAME": at.name,
            "BENCH_PORT": str(at.port),
            "BENCH_RESULTS": "1" if results else "",
            "BENCH_COUNT": str(folder / "count"),
            "BENCH_PIPE": str(folder / "pipe"),
            **contender.environment,
        }
        self._side: Side | None = None

    def side(self, *what: object) -> dict[str, Any]:
        """Give the contender's side an order; it stays for the next one."""
        if self._side is None:
            self._side = Side(self.contender.command or python_side(self.contender), self.folder, self.environment)
        try:
            return self._side.order(*what)
        except Failed:
            self.close()
            raise

    def close(self) -> None:
        if self._side is not None:
            self._side.stop()
            self._side = None

    @contextlib.contextmanager
    def worker(self, *, more: Sequence[str] = ()) -> Iterator[RunningWorker]:
        """Start a worker whose tasks are counted from 0; end it, hard, afterwards."""
        self.count.reset()
        command = [part.replace("{url}", self.environment["BENCH_URL"]) for part in self.contender.facts["worker"]]
        with self.process([*command, *more], "worker.log") as (process, started):
            yield RunningWorker(process, started, self.count, self.folder / "worker.log")

    @contextlib.contextmanager
    def process(self, command: Sequence[str], log: str) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
        """Run a process of the contender's."""
        with (self.folder / log).open("wb") as output:
            started = time.monotonic()
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        try:
            yield process, started
        finally:
            end(process)

    def size(self) -> int:
        """Return the bytes of the contender's files, SQLite's write-ahead logs folded into their databases first."""
        import sqlite3

        for path in self.folder.rglob("*.db"):
            with contextlib.closing(sqlite3.connect(path)) as connection, contextlib.suppress(sqlite3.Error):
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        ours = {"count", "worker.log", "side.log", "server.log", "pipe", "waits"}
        return sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file() and p.name not in ours)


class RunningWorker:
    """A worker process and the count of its tasks."""

    def __init__(self, process: subprocess.Popen[bytes], started: float, count: Counter, log: Path) -> None:
        self.process = process
        self.started = started
        self.count = count
        self._log = log

    def wait(self, number: int, seconds: float, step: float = 0.004) -> bool:
        """Wait until so many tasks have run; whether they have.

        Raises:
            Failed: the worker ended instead.
        """
        wait_for(lambda: self.count.read() >= number or self.process.poll() is not None, seconds, step)
        if self.count.read() >= number:
            return True
        if self.process.poll() is not None:
            raise Failed(f"the worker ended {how(self.process.returncode, self.said())}")
        return False

    def said(self) -> str:
        return self._log.read_text(errors="replace")


@contextlib.contextmanager
def box(contender: Contender, work: Path, server: str, *, results: bool = False) -> Iterator[Box]:
    """Make a contender's surroundings, emptied or new on the server, and remove them afterwards.

    `results` is for those that can store all results or none: whether any are wanted.
    """
    folder = Path(tempfile.mkdtemp(dir=work))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        at = stack.enter_context(Surroundings.of(server))
        made = Box(contender, folder, at, results=results)
        stack.callback(made.close)
        if not contender.facts:
            contender.facts = made.side("facts")
        at.queues = [queue.replace("{name}", at.name) for queue in contender.facts["queues"]]
        if contender.facts["server"]:
            command = [part.replace("{port}", str(at.port)) for part in contender.facts["server"]]
            process, _ = stack.enter_context(made.process(command, "server.log"))
            if not wait_for(lambda: at.listening() or process.poll() is not None, START_TIMEOUT) or not at.listening():
                raise Failed(f"its server did not start: {last((folder / 'server.log').read_text(errors='replace'))}")
        if contender.facts["prepares"]:
            made.side("prepare")
        yield made


def python_side(contender: Contender, program: str = sys.executable) -> list[str]:
    return [program, "-m", "tests.bench.side", contender.module]


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its descendants at once: what they leave behind is thrown away."""
    for pid in tree(process.pid):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)  # its own session: children that it had lost
    process.wait()


def run(command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and keep what it says."""
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def how(code: int, said: str) -> str:
    """Return how a process ended: by a signal, or with a code and its last line that says something."""
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with {code}: {last(said)}"


def last(said: str) -> str:
    """Return the last line that tells something."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["it said nothing"]
    telling = [line for line in lines if "error" in line.lower()] or lines
    return telling[-1][:300]
