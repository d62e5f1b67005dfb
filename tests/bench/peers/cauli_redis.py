"""cauli on Redis streams, with its Rust worker."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from cauli import Cauli

from tests.bench.stopwatch import tick

_options = os.environ.get("BENCH_WORKER", "")
ACK = "after the run (at least once)"
DURABILITY = "the server's"
NOTE = f"async def, {_options or 'its defaults'}; results are read by polling from 1 ms on (its default)"
RESULTS = True
VERSIONS = ("cauli", "cauli-worker", "redis")

app = Cauli(redis_url=os.environ.get("BENCH_URL", "redis://localhost"))


@app.task(store_result=False)
async def noop() -> None:
    tick()


@app.task()
async def kept() -> None:
    tick()


def worker() -> list[str]:
    program = str(Path(sys.executable).with_name("cauli-worker"))
    return [program, "-A", f"{__name__}:app", "--log-level", "error", *_options.split()]


def send(count: int, *, bulk: bool, results: bool) -> None:
    task = kept if results else noop
    if bulk:
        for start in range(0, count, 5000):
            app.enqueue_many([task] * min(5000, count - start))
    else:
        for _ in range(count):
            task.delay()


def call() -> None:
    kept.delay().get(timeout=20)


@app.task(store_result=False)
async def nap(milliseconds: float) -> None:
    await asyncio.sleep(milliseconds / 1000)
    tick()


def submit(kind: str, arguments: list[list[float]], pause: float = 0.0) -> None:
    app.enqueue_many([({"nap": nap}[kind], tuple(these)) for these in arguments])
