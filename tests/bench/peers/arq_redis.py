"""arq on Redis."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from arq import ArqRedis, create_pool
from arq.connections import RedisSettings
from arq.worker import func

from tests.bench.peers._loop import run
from tests.bench.stopwatch import tick

ACK = "after the run (at least once)"
DURABILITY = "the server's"
NOTE = "10 tasks at a time (its default), polls every 10 ms, results every 1 ms (its defaults: 500 ms); no bulk enqueue"
RESULTS = True
VERSIONS = ("arq", "redis")

_settings = RedisSettings.from_dsn(os.environ.get("BENCH_URL", "redis://localhost"))
_pool: ArqRedis | None = None


async def noop(_: dict[str, Any]) -> None:
    tick()


async def kept(_: dict[str, Any]) -> int:
    tick()
    return 1


class WorkerSettings:
    functions = (func(noop, keep_result=0), func(kept))
    redis_settings = _settings
    poll_delay = 0.01
    queue_read_limit = 100


def worker() -> list[str]:
    return [str(Path(sys.executable).with_name("arq")), f"{__name__}.WorkerSettings"]


async def pool() -> ArqRedis:
    global _pool
    if _pool is None:
        _pool = await create_pool(_settings)
    return _pool


def send(count: int, *, bulk: bool, results: bool) -> None:
    async def work() -> None:
        redis = await pool()
        for _ in range(count):
            await redis.enqueue_job("kept" if results else "noop")

    run(work())


def call() -> None:
    async def work() -> None:
        job = await (await pool()).enqueue_job("kept")
        assert job is not None
        await job.result(timeout=20, poll_delay=0.001)

    run(work())
