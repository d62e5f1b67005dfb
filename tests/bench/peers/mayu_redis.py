"""mayu on Redis streams, with its Rust core."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mayu import App

from tests.bench.stopwatch import tick

_prefetch = os.environ.get("BENCH_PREFETCH", "")
ACK = "after the run (at least once)"
DURABILITY = "the server's"
NOTE = (
    f"--prefetch-multiplier {_prefetch or '2 (its default)'}, a thread per core; no bulk enqueue; "
    "it is built for Pythons without a GIL"
)
RESULTS = True
VERSIONS = ("mayu",)

_ttl = 600 if os.environ.get("BENCH_RESULTS") else None  # all results are stored, or none
app = App(broker=os.environ.get("BENCH_URL", "redis://localhost"), result_ttl=_ttl)


@app.task(name="noop")
def noop() -> None:
    tick()


def worker() -> list[str]:
    program = str(Path(sys.executable).with_name("mayu"))
    more = ["--prefetch-multiplier", _prefetch] if _prefetch else []
    return [program, "worker", f"{__name__}:app", "--mode", "thread", "--log-level", "ERROR", *more]


def send(count: int, *, bulk: bool, results: bool) -> None:
    for _ in range(count):
        noop.delay()


def call() -> None:
    noop.delay().result(timeout=20)
