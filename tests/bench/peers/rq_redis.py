"""RQ on Redis."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

from redis import Redis
from rq import Queue

from tests.bench.stopwatch import tick

_worker = os.environ.get("BENCH_WORKER", "SimpleWorker")
ACK = "before the run (a job whose worker dies is marked as failed)"
DURABILITY = "the server's"
NOTE = "no process per job (SimpleWorker)" if _worker == "SimpleWorker" else "a process per job (its default)"
RESULTS = True
VERSIONS = ("rq", "redis")

_url = os.environ.get("BENCH_URL", "redis://")


@functools.cache
def queue() -> Queue:
    return Queue("bench", connection=Redis.from_url(_url))


def noop() -> None:
    tick()


def kept() -> int:
    tick()
    return 1


def worker() -> list[str]:
    program = str(Path(sys.executable).with_name("rq"))
    return [program, "worker", "-u", "{url}", "-w", f"rq.worker.{_worker}", "-q", "bench"]


def send(count: int, *, bulk: bool, results: bool) -> None:
    function, ttl = (kept, 500) if results else (noop, 0)
    if bulk:
        for start in range(0, count, 1000):
            calls = [Queue.prepare_data(function, result_ttl=ttl) for _ in range(min(1000, count - start))]
            queue().enqueue_many(calls)
    else:
        for _ in range(count):
            queue().enqueue(function, result_ttl=ttl)


def call() -> None:
    if queue().enqueue(kept, result_ttl=500).latest_result(timeout=20) is None:
        raise SystemExit("rq: no result")
