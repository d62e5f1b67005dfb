"""gylo on PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import asyncpg
from gylo import Gylo, outcome

from tests.bench.stopwatch import tick

ACK = "after the run (at least once)"
DURABILITY = "the server's: commit with fsync"
NOTE = "one child process, batches of 128 (its default); results are read by polling every 1 ms"
RESULTS = True
VERSIONS = ("gylo", "asyncpg")

_url = os.environ.get("BENCH_URL", "")
_program = str(Path(sys.executable).with_name("gylo"))
app = Gylo()
noop = app.task(tick, name="noop")
kept = app.task(tick, name="kept", store_result=True)
_loop = asyncio.new_event_loop()
_connection = None


async def _connect() -> asyncpg.Connection:
    global _connection
    if _connection is None:
        _connection = await asyncpg.connect(_url)
    return _connection


def prepare() -> None:
    subprocess.run([_program, "--database-url", _url, "migrate"], check=True)


def worker() -> list[str]:
    return [_program, "--database-url", "{url}", "worker", "--app", f"{__name__}:app", "--processes", "1"]


def send(count: int, *, bulk: bool, results: bool) -> None:
    task = kept if results else noop

    async def run() -> None:
        connection = await _connect()
        if bulk:
            for start in range(0, count, 1000):
                await task.enqueue_many(connection, [((), {})] * min(1000, count - start))
        else:
            for _ in range(count):
                await task.enqueue(connection)

    _loop.run_until_complete(run())


def call() -> None:
    async def run() -> None:
        connection = await _connect()
        job = await kept.enqueue(connection)
        while not (await outcome(connection, job)).finished:  # noqa: ASYNC110  it has no other way to wait
            await asyncio.sleep(0.001)

    _loop.run_until_complete(run())
