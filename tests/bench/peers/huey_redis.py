"""huey on Redis."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from huey import RedisHuey

from tests.bench.stopwatch import tick

ACK = "before the run (popped as it is taken: a crash loses the task)"
DURABILITY = "the server's"
NOTE = "one thread, blocking pop (its default), notify_result; results are kept where a task returns something"
RESULTS = True
VERSIONS = ("huey", "redis")

huey = RedisHuey("bench", url=os.environ.get("BENCH_URL", "redis://"), notify_result=True)


@huey.task()
def noop() -> None:
    tick()


@huey.task()
def kept() -> int:
    tick()
    return 1


def worker() -> list[str]:
    program = str(Path(sys.executable).with_name("huey_consumer"))
    return [program, f"{__name__}.huey", "-w", "1", "-k", "thread", "-n", "-S", "-q"]


def send(count: int, *, bulk: bool, results: bool) -> None:
    task = kept if results else noop
    for _ in range(count):  # it has no bulk enqueue
        task()


def call() -> None:
    kept().get(blocking=True, timeout=20)
