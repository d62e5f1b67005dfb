"""What pools are compared by: what they cost, processors kept busy, many waits at once, short beside long ones."""

from __future__ import annotations

import time

from tests.bench.cases import (
    DRAIN,
    DRAIN_TIMEOUT,
    START,
    TRIP,
    TRIP_99,
    Turn,
    drained,
)
from tests.bench.contender import START_TIMEOUT, Box, Failed
from tests.bench.measure import percentile, resident_mb, tree, unique_mb

BURN, NAP = "tasks that compute 10 ms", "tasks that wait 100 ms"
MIXED, OVERHEAD = "wait of 1 ms tasks beside one of 1 s, p99", "time per no-op task"
PARENT, CHILD = "memory of the parent", "memory of a child, unshared"
BURN_MS, NAP_MS = 10.0, 100.0


def prefork(turn: Turn) -> None:
    """Measure pools of processes."""
    if turn.contender.role == "floor":
        turn.step(BURN, burning)
        return
    light(turn)
    turn.step(BURN, burning)
    turn.step(MIXED, mixed)


def concurrent(turn: Turn) -> None:
    """Measure pools that wait for many tasks at once."""
    light(turn)
    turn.step(NAP, napping)


def light(turn: Turn) -> None:
    """Drain no-op tasks and look at the processes; send one and wait for its result, repeatedly."""
    turn.step(DRAIN, draining)
    turn.step(TRIP, tripping, results=True)


def draining(turn: Turn, made: Box) -> None:
    count = turn.count(turn.sizes.drain, 400)
    made.side("send", count, "bulk", "plain")
    made.close()
    with made.worker() as worker:
        start, rate, note = drained(worker, count + 1)
        turn.add(START, "s", start)
        turn.add(DRAIN, "tasks/s", rate, note=note)
        turn.add(OVERHEAD, "µs", 1e6 / rate)
        parent, *children = tree(worker.process.pid)
        turn.add(PARENT, "MB", resident_mb([parent]))
        if children:
            largest = max(map(unique_mb, children))
            turn.add(CHILD, "MB", largest, note=f"{len(children)} descendants; the largest")


def tripping(turn: Turn, made: Box) -> None:
    with made.worker():
        took = made.side("call", turn.sizes.calls)["milliseconds"]
    turn.add(TRIP, "ms", percentile(took, 0.5))
    turn.add(TRIP_99, "ms", percentile(took, 0.99))


def burning(turn: Turn, made: Box) -> None:
    submitted(turn, made, BURN, "burn", BURN_MS, max(40, turn.sizes.single))


def napping(turn: Turn, made: Box) -> None:
    count = max(400, int(turn.sizes.single * max(turn.contender.scale, 0.2)))
    submitted(turn, made, NAP, "nap", NAP_MS, count)


def submitted(turn: Turn, made: Box, case: str, kind: str, milliseconds: float, count: int) -> None:
    """Have a worker run so many tasks of a kind; the rate is from the first one's start to the last one's end.

    Tasks that compute are sent to a worker whose processes have all begun; the bare loop has its work beforehand.
    """
    warm = 0 if kind == "nap" or turn.contender.role == "floor" else 8
    made.side("submit", kind, milliseconds, warm or count)
    with made.worker() as worker:
        if not worker.wait(max(warm, 1), START_TIMEOUT, 0.002):
            raise Failed(f"no task was run within {START_TIMEOUT:.0f} s")
        if warm:
            made.side("submit", kind, milliseconds, count)
            worker.wait(warm + 1, START_TIMEOUT, 0.002)
        began = time.monotonic() - milliseconds / 1000
        worker.wait(warm + count, DRAIN_TIMEOUT)
        done, seconds = worker.count.read() - warm, time.monotonic() - began
    note = "" if done >= count else f"{done} of {count} in {DRAIN_TIMEOUT:.0f} s"
    turn.add(case, "tasks/s", done / seconds, note=note)


def mixed(turn: Turn, made: Box) -> None:
    """Send to a running worker; a child is free all the time, so that short tasks could run at once."""
    with made.worker() as worker:
        answer = made.side("mixed")
        if not worker.wait(answer["tasks"], DRAIN_TIMEOUT if worker.count.read() else START_TIMEOUT):
            raise Failed(f"{worker.count.read()} of {answer['tasks']} mixed tasks were run")
        lines = [line.split() for line in (made.folder / "waits").read_text().splitlines()]
    waits = [float(wait) for length, wait in lines if length == "1"][answer["warming"] :]
    turn.add(MIXED, "ms", percentile(waits, 0.99))
