"""blitzq on Redis streams."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from blitzq import Queue

from tests.bench.stopwatch import tick

ACK = "after the run (at least once; its mode 'reliable')"
DURABILITY = "the server's"
NOTE = "100 tasks at a time (its default), async def"
RESULTS = True
VERSIONS = ("blitzq", "redis")

queue = Queue("bench", redis_url=os.environ.get("BENCH_URL", "redis://localhost"))


@queue.task(name="noop", store_result=False)
async def noop() -> None:
    tick()


@queue.task(name="kept")
async def kept() -> None:
    tick()


def worker() -> list[str]:
    return [str(Path(sys.executable).with_name("blitzq")), "worker", f"{__name__}:queue", "--log-level", "ERROR"]


def send(count: int, *, bulk: bool, results: bool) -> None:
    task = kept if results else noop
    if bulk:
        for start in range(0, count, 1000):
            task.enqueue_many_sync([()] * min(1000, count - start))
    else:
        for _ in range(count):
            task.enqueue_sync()


def call() -> None:
    kept.enqueue_sync().result_sync(timeout=20)
