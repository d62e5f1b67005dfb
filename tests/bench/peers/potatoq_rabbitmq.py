"""potatoq on RabbitMQ."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from potatoq import Potatoq, group

from tests.bench.stopwatch import answer, await_answer, tick

ACK = "after the run (at least once)"
DURABILITY = "quorum queue, persistent, publisher confirms"
NOTE = "pika, -P solo; it keeps no results here: a round trip ends when the task runs"
RESULTS = False
VERSIONS = ("potatoq", "pika")
QUEUES = ("{name}", "{name}.dlq")

app = Potatoq("bench", broker=os.environ.get("BENCH_URL", "amqp://localhost"))
app.conf.update(task_default_queue=os.environ.get("BENCH_NAME", "bench"))
noop = app.task(name="noop", ignore_result=True)(tick)
pong = app.task(name="pong", ignore_result=True)(answer)


def worker() -> list[str]:
    return [str(Path(sys.executable).with_name("potatoq")), "-A", __name__, "worker", "-P", "solo", "-l", "WARNING"]


def send(count: int, *, bulk: bool, results: bool) -> None:
    if bulk:
        for start in range(0, count, 1000):
            group(noop.s() for _ in range(min(1000, count - start))).apply_async()
    else:
        for _ in range(count):
            noop.delay()


def call() -> None:
    pong.delay()
    await_answer()
