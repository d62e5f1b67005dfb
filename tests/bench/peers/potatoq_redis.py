"""potatoq on Redis."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from potatoq import Potatoq, group

from tests.bench.stopwatch import tick

ACK = "after the run (at least once)"
DURABILITY = "the server's"
NOTE = "-P solo"
RESULTS = True
VERSIONS = ("potatoq", "redis")

app = Potatoq("bench", broker=os.environ.get("BENCH_URL", "redis://localhost"))
noop = app.task(name="noop", ignore_result=True)(tick)
kept = app.task(name="kept", ignore_result=False)(tick)


def worker() -> list[str]:
    return [str(Path(sys.executable).with_name("potatoq")), "-A", __name__, "worker", "-P", "solo", "-l", "WARNING"]


def send(count: int, *, bulk: bool, results: bool) -> None:
    task = kept if results else noop
    if bulk:
        for start in range(0, count, 1000):
            group(task.s() for _ in range(min(1000, count - start))).apply_async()
    else:
        for _ in range(count):
            task.delay()


def call() -> None:
    kept.delay().get(timeout=20)
