"""The measurements that every contender of a broker goes through, one round at a time.

Rates of a drain are taken between the first twentieth and the last task: as many claims as settlements lie between,
and the start is not in it. Contenders take turns within each round, so that they see the same machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.contender import START_TIMEOUT, Box, Contender, Failed, RunningWorker, box
from tests.bench.measure import Table, percentile, resident_mb, tree

DRAIN_TIMEOUT = 8.0
"""Seconds after which the rate of what was done so far is taken."""
LOOK = 0.002
"""Seconds between two looks at a count."""

START, BULK, SINGLE = "worker start to first task", "enqueue in bulk", "enqueue one by one"
DRAIN, DRAIN_KEPT, DISK = "drain", "drain, results stored", "disk per queued task"
TRIP, TRIP_99 = "round trip p50", "round trip p99"
MEMORY, SIZE = "memory after the drain", "message"


@dataclass(frozen=True)
class Sizes:
    """Messages per round for a contender of scale 1."""

    drain: int
    single: int
    calls: int

    def times(self, factor: float) -> Sizes:
        return Sizes(*(max(1, int(n * factor)) for n in (self.drain, self.single, self.calls)))


@dataclass(frozen=True)
class Turn:
    """One contender's turn in one round."""

    table: Table
    group: str
    contender: Contender
    sizes: Sizes
    work: Path
    server: str

    def add(self, case: str, unit: str, *values: float, note: str = "") -> None:
        self.table.add(self.group, case, self.contender.label, unit, *values, note=note)

    def count(self, base: int, least: int) -> int:
        return max(least, int(base * self.contender.scale))

    def step(self, case: str, take: Callable[[Turn, Box], None], *, results: bool = False) -> None:
        """Take one step in surroundings of its own; what fails is noted and stops nothing else."""
        try:
            with box(self.contender, self.work, self.server, results=results) as made:
                take(self, made)
        except Failed as error:
            self.table.fail(self.group, case, self.contender.label, str(error))
        except Exception as error:  # a peer's or server's surprise must not end the run
            self.table.fail(self.group, case, self.contender.label, f"{type(error).__name__}: {error}"[:300])


def broker(turn: Turn) -> None:
    """Measure everything that a broker is compared by."""
    turn.step("enqueue and drain", enqueue_and_drain)
    turn.step("results and round trip", results_and_round_trip, results=True)


def enqueue_and_drain(turn: Turn, made: Box) -> None:
    """Enqueue one by one, each accepted before the next; then in bulk; then let a worker drain, nothing stored."""
    single = min(turn.count(turn.sizes.single, 50), turn.sizes.single)
    turn.add(SINGLE, "tasks/s", single / made.side("send", single, "single", "plain")["seconds"])
    if (size := made.at.message_bytes(single + 1)) is not None:
        turn.add(SIZE, "bytes", size)
    bulk = turn.count(turn.sizes.drain, 100)
    empty = made.size()
    turn.add(BULK, "tasks/s", bulk / made.side("send", bulk, "bulk", "plain")["seconds"])
    if grown := made.size() - empty:
        turn.add(DISK, "bytes", grown / (bulk + 1))
    made.close()  # an idle client's heartbeat is no part of a worker's speed
    with made.worker() as worker:
        start, rate, note = drained(worker, single + bulk + 2)
        turn.add(START, "s", start)
        turn.add(DRAIN, "tasks/s", rate, note=note)
        pids = tree(worker.process.pid)
        turn.add(MEMORY, "MB", resident_mb(pids), note=f"{len(pids)} processes" if len(pids) > 1 else "")


def results_and_round_trip(turn: Turn, made: Box) -> None:
    """Drain tasks whose results are stored; then send one and wait for its result, repeatedly, with the same worker."""
    total = 0
    if kept := turn.contender.facts["results"]:
        total = turn.count(turn.sizes.drain // 2, 100)
        made.side("send", total, "bulk", "results")
    with made.worker() as worker:
        if kept:
            _, rate, note = drained(worker, total + 1)
            turn.add(DRAIN_KEPT, "tasks/s", rate, note=note)
            if worker.count.read() < total:
                raise Failed(f"no round trip: {note}")
        took = made.side("call", max(20, int(turn.sizes.calls * turn.contender.call_scale)))["milliseconds"]
    turn.add(TRIP, "ms", percentile(took, 0.5))
    turn.add(TRIP_99, "ms", percentile(took, 0.99))


def drained(worker: RunningWorker, total: int, timeout: float = DRAIN_TIMEOUT) -> tuple[float, float, str]:
    """Have a worker drain so many tasks; return its seconds to the first, its rate, and a note if time ran out."""
    if not worker.wait(1, START_TIMEOUT):
        raise Failed(f"no task was run within {START_TIMEOUT:.0f} s; the worker said: {worker.said().strip()[-200:]}")
    seen = time.monotonic()
    start = seen - worker.started
    worker.wait(max(2, total // 20), timeout, LOOK)
    began, first = time.monotonic(), worker.count.read()
    done = worker.wait(total, timeout, LOOK)
    ended, last = time.monotonic(), worker.count.read()
    if last <= first and not done:
        raise Failed(f"{last} of {total} tasks in {timeout:.0f} s")
    if last <= first:
        return start, last / max(ended - seen, LOOK), "all at once: too few to tell"
    return start, (last - first) / (ended - began), "" if done else f"{last} of {total} in {timeout:.0f} s"
