"""huey on SQLite."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from huey import SqliteHuey

from tests.bench.stopwatch import tick

ACK = "before the run (the row is deleted as it is taken: a crash loses the task)"
DURABILITY = "fsync=True: WAL, synchronous=FULL"
NOTE = "polls from 1 ms on (its default 100 ms); results are kept where a task returns something"
RESULTS = True
VERSIONS = ("huey",)

huey = SqliteHuey(filename=os.environ["BENCH_DIR"] + "/huey.db", fsync=os.environ.get("BENCH_SYNC", "FULL") == "FULL")


@huey.task()
def noop() -> None:
    tick()


@huey.task()
def kept() -> int:
    tick()
    return 1


def worker() -> list[str]:
    program = str(Path(sys.executable).with_name("huey_consumer"))
    return [program, f"{__name__}.huey", "-w", "1", "-k", "thread", "-d", "0.001", "-n", "-S", "-q"]


def send(count: int, *, bulk: bool, results: bool) -> None:
    task = kept if results else noop
    for _ in range(count):  # it has no bulk enqueue
        task()


def call() -> None:
    kept().get(blocking=True, timeout=20, backoff=1.05, max_delay=0.01)
