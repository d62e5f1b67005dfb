"""tarsk on RabbitMQ, with its Rust supervisor."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tarsk import App

from tests.bench.stopwatch import tick

ACK = "after the run (at least once)"
DURABILITY = "the queue it declares, durable; persistent messages"
NOTE = "one child, 100 slots (its default), async def; no bulk enqueue; results are read by polling every 1 ms"
RESULTS = True
VERSIONS = ("tarsk-amqp",)

app = App(broker=os.environ.get("BENCH_URL", "amqp://localhost"))


@app.task(name="noop")
async def noop() -> None:
    tick()


@app.task(name="kept", result_ttl=600)
async def kept() -> None:
    tick()


def worker() -> list[str]:
    program = str(Path(sys.executable).with_name("tarsk"))
    return [program, "worker", "--app", f"{__name__}:app", "--broker", "{url}", "--children", "1"]


def send(count: int, *, bulk: bool, results: bool) -> None:
    task = kept if results else noop
    for _ in range(count):
        task.send()


def call() -> None:
    app.result(kept.send()).get(timeout=20, poll=0.001)
