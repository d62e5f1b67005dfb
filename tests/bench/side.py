"""A contender's side of a measurement, run in the contender's own interpreter. Standard library only.

    python -m tests.bench.side MODULE facts                           what it is and how its worker is started
    python -m tests.bench.side MODULE send COUNT single|bulk results|plain    seconds for so many sends
    python -m tests.bench.side MODULE call COUNT                      milliseconds of each round trip

A contender's module has ACK, DURABILITY and NOTE (texts), RESULTS (whether it keeps any), VERSIONS (distributions), and

    worker() -> list[str]                              the command line of a worker with one task at a time; {url} in it
                                                       becomes the broker's
    send(count, *, bulk, results) -> None              enqueue no-op tasks; results: such whose result is stored
    call() -> None                                     enqueue one, wait for its result

and, where a new database needs it, prepare(). BENCH_URL is its broker, BENCH_DIR its folder.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import signal
import sys
import time
from typing import Any

WARM_CALLS = 10
CALL_TIMEOUT = 20.0
"""Seconds after which a round trip counts as failed."""


def facts(contender: Any) -> dict[str, Any]:
    return {
        "versions": {name: importlib.metadata.version(name) for name in contender.VERSIONS},
        "ack": contender.ACK,
        "durability": contender.DURABILITY,
        "note": contender.NOTE,
        "results": contender.RESULTS,
        "worker": contender.worker(),
        "prepares": hasattr(contender, "prepare"),
    }


def send(contender: Any, count: int, how: str, what: str) -> dict[str, Any]:
    bulk, results = how == "bulk", what == "results"
    contender.send(1, bulk=bulk, results=results)  # connects, and compiles what is compiled at first use
    started = time.perf_counter()
    contender.send(count, bulk=bulk, results=results)
    return {"seconds": time.perf_counter() - started}


def call(contender: Any, count: int) -> dict[str, Any]:
    took = []
    for number in range(-WARM_CALLS, count):
        signal.setitimer(signal.ITIMER_REAL, CALL_TIMEOUT)  # its default action ends this process
        started = time.perf_counter()
        contender.call()
        if number >= 0:
            took.append(1000 * (time.perf_counter() - started))
    signal.setitimer(signal.ITIMER_REAL, 0)
    return {"milliseconds": took}


def main(module: str, action: str, *arguments: str) -> None:
    contender = importlib.import_module(module)
    if action == "facts":
        answer = facts(contender)
    elif action == "prepare":
        contender.prepare()
        answer = {}
    elif action == "send":
        answer = send(contender, int(arguments[0]), *arguments[1:])
    elif action == "call":
        answer = call(contender, int(arguments[0]))
    else:
        raise SystemExit(f"side: unknown action {action!r}")
    print("\n@@" + json.dumps(answer), flush=True)  # whatever libraries print stands before it


if __name__ == "__main__":
    main(*sys.argv[1:])
