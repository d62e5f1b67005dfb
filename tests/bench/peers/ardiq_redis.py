"""ardiq on Redis streams, with its Rust core."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ardiq import Ardiq

from tests.bench.peers._loop import run
from tests.bench.stopwatch import tick

ACK = "after the run (at least once)"
DURABILITY = "the server's"
NOTE = "its defaults, async def; every result is stored"
RESULTS = True
VERSIONS = ("ardiq",)

app = Ardiq(redis_url=os.environ.get("BENCH_URL", "redis://localhost"), queue_name="bench")


@app.task(name="noop")
async def noop() -> None:
    tick()


def worker() -> list[str]:
    return [str(Path(sys.executable).with_name("ardiq")), "run", "-q", f"{__name__}:app"]


def send(count: int, *, bulk: bool, results: bool) -> None:
    async def work() -> None:
        if bulk:
            for start in range(0, count, 5000):
                await app.enqueue_many([noop.prepare() for _ in range(min(5000, count - start))])
        else:
            for _ in range(count):
                await noop.enqueue()

    run(work())


def call() -> None:
    async def work() -> None:
        job = await noop.enqueue()
        await job.result(timeout=20)

    run(work())
