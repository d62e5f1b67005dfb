"""taskq, as a contender: with its defaults, on the broker of the environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from taskq import TaskQ
from tests.bench.stopwatch import tick

ACK = "after the run (at least once)"
_URL = os.environ.get("BENCH_URL", "memory://")
DURABILITY = {
    "memory": "none: one process",
    "sqlite": "WAL, synchronous=FULL: accepted means on disk",
}.get(_URL.partition(":")[0], "the server's: commit with fsync")
if "NORMAL" in _URL:
    DURABILITY = "WAL, synchronous=NORMAL (power loss may undo the last moments)"
NOTE = ""
RESULTS = True
VERSIONS = ("taskq-core",)
_CHUNK = 10_000

app = TaskQ("bench", broker=_URL, isolated=True)


@app.task(ignore_result=True)
def noop() -> None:
    tick()


@app.task
def kept() -> None:
    tick()


def worker() -> list[str]:
    program = str(Path(sys.executable).with_name("taskq"))
    return [program, "-A", __name__, "worker", "-l", "WARNING", *os.environ.get("BENCH_POOL", "-P solo").split()]


def send(count: int, *, bulk: bool, results: bool) -> None:
    task = kept if results else noop
    if bulk:
        for start in range(0, count, _CHUNK):
            app.send_many([task.s() for _ in range(min(_CHUNK, count - start))])
    else:
        for _ in range(count):
            task.delay()


def call() -> None:
    kept.delay().get(timeout=20)
