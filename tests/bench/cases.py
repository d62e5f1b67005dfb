"""The measurements that every contender of a broker goes through, one round at a time.

Rates of a drain are taken between the first twentieth and the last task: as many claims as settlements lie between,
and the start is not in it. Contenders take turns within each round, so that they see the same machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.contender import START_TIMEOUT, Box, Contender, Failed, box
from tests.bench.measure import Table, percentile

DRAIN_TIMEOUT = 40.0
"""Seconds after which the rate of what was done so far is taken."""
MARKS = 20

START, BULK, SINGLE = "worker start to first task", "enqueue in bulk", "enqueue one by one"
DRAIN, DRAIN_KEPT, DISK = "drain", "drain, results stored", "disk per queued task"
TRIP, TRIP_99 = "round trip p50", "round trip p99"


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

    def take(self, step: Callable[[Turn, Box], None]) -> None:
        """Run one step in surroundings of its own; what fails is noted and stops nothing."""
        try:
            with box(self.contender, self.work, self.server) as made:
                step(self, made)
        except Failed as error:
            self.table.fail(self.group, step.__name__, self.contender.label, str(error))


def drain(turn: Turn, made: Box) -> None:
    """Enqueue in bulk, then let a worker drain; nothing is stored where that can be chosen."""
    count = turn.count(turn.sizes.drain, 400)
    empty = made.size()
    seconds = made.side("send", count, "bulk", "plain")["seconds"]
    turn.add(BULK, "tasks/s", count / seconds)
    if "{folder}" in turn.contender.url or not turn.server:
        turn.add(DISK, "bytes", (made.size() - empty) / (count + 1))
    start, rate, note = drained(made, count + 1)
    turn.add(START, "s", start)
    turn.add(DRAIN, "tasks/s", rate, note=note)


def drain_kept(turn: Turn, made: Box) -> None:
    """Drain tasks whose results are stored."""
    if not turn.contender.facts["results"]:
        return
    count = turn.count(turn.sizes.drain // 2, 400)
    made.side("send", count, "bulk", "results")
    _, rate, note = drained(made, count + 1)
    turn.add(DRAIN_KEPT, "tasks/s", rate, note=note)


def enqueue(turn: Turn, made: Box) -> None:
    """Enqueue one by one, each accepted before the next."""
    count = turn.count(turn.sizes.single, 100)
    turn.add(SINGLE, "tasks/s", count / made.side("send", count, "single", "plain")["seconds"])


def round_trip(turn: Turn, made: Box) -> None:
    """Send from one process, run in another, have the result in the first."""
    count = max(20, int(turn.sizes.calls * turn.contender.call_scale))
    with made.worker():
        took = made.side("call", count)["milliseconds"]
    turn.add(TRIP, "ms", percentile(took, 0.5))
    turn.add(TRIP_99, "ms", percentile(took, 0.99))


STEPS = (enqueue, drain, drain_kept, round_trip)


def drained(made: Box, total: int) -> tuple[float, float, str]:
    """Have a worker drain so many tasks; return its seconds to the first, its rate, and a note if time ran out."""
    marks = [1, *sorted({max(2, total * part // MARKS) for part in range(1, MARKS + 1)})]
    with made.worker(marks) as worker:
        if not worker.wait(1, START_TIMEOUT):
            raise Failed(f"no task was run within {START_TIMEOUT:.0f} s")
        done = worker.wait(total, DRAIN_TIMEOUT)
        times = worker.marks()
    first, last = marks[1], max(times)
    if first not in times or last == first:
        raise Failed(f"fewer than a tenth of {total} tasks in {DRAIN_TIMEOUT:.0f} s")
    rate = (last - first) / (times[last] - times[first])
    return times[1] - worker.started, rate, "" if done else f"{last} of {total} in {DRAIN_TIMEOUT:.0f} s"
