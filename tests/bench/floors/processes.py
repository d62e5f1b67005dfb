"""Two bare processes that compute, with nothing between them and their work."""

from __future__ import annotations

import json
import os
import sys
import threading
from multiprocessing import get_context

from tests.bench import stopwatch

ACK = "nothing to acknowledge"
DURABILITY = "none"
NOTE = "half of the work for each of two processes, without a queue"
RESULTS = False
VERSIONS = ()

_PROCESSES = 2
_plan = os.environ.get("BENCH_DIR", ".") + "/plan"


def worker() -> list[str]:
    return [sys.executable, "-m", __name__]


def send(count: int, *, bulk: bool, results: bool) -> None:
    raise SystemExit("a bare loop has no queue")


def call() -> None:
    raise SystemExit("a bare loop has no queue")


def submit(kind: str, arguments: list[list[float]], pause: float = 0.0) -> None:
    with open(_plan, "w") as file:
        json.dump([kind, arguments], file)


def run(kind: str, arguments: list[list[float]]) -> None:
    for these in arguments:
        getattr(stopwatch, kind)(*these)


def serve() -> None:
    with open(_plan) as file:
        kind, arguments = json.load(file)
    context = get_context("fork")
    processes = [context.Process(target=run, args=(kind, arguments[n::_PROCESSES])) for n in range(_PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    threading.Event().wait()  # stays, as a worker does


if __name__ == "__main__":
    serve()
