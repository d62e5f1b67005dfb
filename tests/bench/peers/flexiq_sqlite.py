"""flexiq on SQLite."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from flexiq import Queue

from tests.bench.stopwatch import tick

ACK = "after the run (at least once)"
DURABILITY = "its only setting: WAL, synchronous=NORMAL (power loss may undo the last moments)"
NOTE = (
    "one thread; polls every 1 ms, batches of 64 (its defaults: 50 ms, 1; push dispatch stalled); always stores results"
)
RESULTS = True
VERSIONS = ("flexiq",)

queue = Queue(
    db_path=os.environ["BENCH_DIR"] + "/flexiq.db", workers=1, scheduler_batch_size=64, scheduler_poll_interval_ms=1
)


@queue.task(name="noop")
def noop() -> None:
    tick()


def worker() -> list[str]:
    return [str(Path(sys.executable).with_name("flexiq")), "worker", "--app", f"{__name__}:queue"]


def send(count: int, *, bulk: bool, results: bool) -> None:
    if bulk:
        for start in range(0, count, 1000):
            queue.enqueue_many("noop", [()] * min(1000, count - start))
    else:
        for _ in range(count):
            noop.delay()


def call() -> None:
    noop.delay().result(timeout=20, poll_interval=0.001, max_poll_interval=0.005)
