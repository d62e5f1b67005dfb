"""A contender's side of the measurements: its own interpreter, kept for a turn. Standard library only.

    python -m tests.bench.side MODULE

reads orders as lines of JSON and answers each with a line @@ + JSON:

    ["facts"]                                          what it is and how its worker is started
    ["prepare"]                                        what a new database needs
    ["send", COUNT, "bulk"|"single", "results"|"plain"]    seconds for so many sends
    ["call", COUNT]                                    milliseconds of each round trip
    ["submit", KIND, MILLISECONDS, COUNT]              enqueue tasks of a kind: burn the processor, nap
    ["mixed"]                                          short tasks beside long ones, paced and in bursts

A contender's module has ACK, DURABILITY and NOTE (texts), RESULTS (whether it keeps any), VERSIONS (distributions), and

    worker() -> list[str]                              the command line of a worker with one task at a time; {url} in it
                                                       becomes the broker's
    send(count, *, bulk, results) -> None              enqueue no-op tasks; results: such whose result is stored
    call() -> None                                     enqueue one, wait for its result

and, where needed, prepare(); server() -> list[str], a broker of its own at port {port}, started before; submit(kind,
arguments, pause); QUEUES, its names on the server, {name} being BENCH_NAME, for a look at a message.
BENCH_URL is its broker, BENCH_NAME a name for its queue that nobody else has, BENCH_DIR its folder.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import platform
import signal
import sys
import time
from typing import Any

WARM_CALLS = 10
CALL_TIMEOUT = 20.0
"""Seconds after which a round trip counts as failed."""
TRIPS_SECONDS = 4.0
"""No new round trip after so long: slow contenders make fewer, at least 5."""


def facts(contender: Any) -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in contender.VERSIONS}
    return {
        "versions": versions,
        "python": platform.python_version(),
        "ack": contender.ACK,
        "durability": contender.DURABILITY,
        "note": contender.NOTE,
        "results": contender.RESULTS,
        "worker": contender.worker(),
        "server": contender.server() if hasattr(contender, "server") else [],
        "prepares": hasattr(contender, "prepare"),
        "queues": list(getattr(contender, "QUEUES", ())),
    }


def send(contender: Any, count: int, how: str, what: str) -> dict[str, Any]:
    bulk, results = how == "bulk", what == "results"
    contender.send(1, bulk=bulk, results=results)  # connects, and compiles what is compiled at first use
    started = time.perf_counter()
    contender.send(count, bulk=bulk, results=results)
    return {"seconds": time.perf_counter() - started}


def call(contender: Any, count: int) -> dict[str, Any]:
    took: list[float] = []
    until = time.monotonic() + TRIPS_SECONDS
    number = -WARM_CALLS
    while number < count and not (len(took) >= 5 and time.monotonic() > until):
        signal.setitimer(signal.ITIMER_REAL, CALL_TIMEOUT)  # its default action ends this process
        started = time.perf_counter()
        contender.call()
        if number >= 0:
            took.append(1000 * (time.perf_counter() - started))
        number = 0 if number < 0 and time.monotonic() > until - TRIPS_SECONDS / 2 else number + 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    return {"milliseconds": took}


def mixed(contender: Any) -> dict[str, Any]:
    """Enqueue 1 ms tasks beside one of 1 s: one every 10 ms, then ten at once every 100 ms; say how many of both."""
    contender.submit("stamped", [[1.0]] * 4, 0.05)  # connects; children that start late are there
    time.sleep(0.5)
    contender.submit("stamped", [[1000.0]], 0.05)
    contender.submit("stamped", [[1.0]] * 90, 0.01)
    time.sleep(1.0)
    contender.submit("stamped", [[1000.0]], 0.05)
    for _ in range(9):
        contender.submit("stamped", [[1.0]] * 10, 0.0)
        time.sleep(0.1)
    return {"tasks": 4 + 1 + 90 + 1 + 90, "warming": 4}


def main(module: str) -> None:
    contender = importlib.import_module(module)
    for line in sys.stdin:
        action, *arguments = json.loads(line)
        answer: dict[str, Any] = {}
        if action == "facts":
            answer = facts(contender)
        elif action == "prepare":
            contender.prepare()
        elif action == "send":
            answer = send(contender, *arguments)
        elif action == "call":
            answer = call(contender, *arguments)
        elif action == "submit":
            kind, milliseconds, count = arguments
            contender.submit(kind, [[milliseconds]] * count)
        elif action == "mixed":
            answer = mixed(contender)
        else:
            raise SystemExit(f"side: unknown action {action!r}")
        print("\n@@" + json.dumps(answer), flush=True)  # whatever libraries print stands before it


if __name__ == "__main__":
    main(*sys.argv[1:])
