"""saq on Redis."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from saq import Queue, Status

from tests.bench.peers._loop import run
from tests.bench.stopwatch import tick

ACK = "after the run (at least once)"
DURABILITY = "the server's"
NOTE = "10 tasks at a time (its default); no bulk enqueue; results are read by polling every 1 ms (its push took 1 s)"
RESULTS = True
VERSIONS = ("saq", "redis")

queue = Queue.from_url(os.environ.get("BENCH_URL", "redis://localhost"), name="bench")


async def noop(_: dict[str, Any]) -> None:
    tick()


settings = {"queue": queue, "functions": [noop], "concurrency": 10}


def worker() -> list[str]:
    return [str(Path(sys.executable).with_name("saq")), "-q", f"{__name__}.settings"]


def send(count: int, *, bulk: bool, results: bool) -> None:
    async def work() -> None:
        for _ in range(count):
            await queue.enqueue("noop", ttl=600 if results else -1)

    run(work())


def call() -> None:
    async def work() -> None:
        job = await queue.enqueue("noop", ttl=600)
        assert job is not None
        while (now := await queue.job(job.key)) is None or now.status != Status.COMPLETE:  # noqa: ASYNC110  its push takes a second
            await asyncio.sleep(0.001)

    run(work())
