"""The clock of leases, and who is dead.

A lease counts time that passes while the machine runs: a step of the wall clock, or a laptop's sleep, ends none. That
clock starts anew at boot, so a lease also carries the boot it belongs to and its end by the wall clock, which decides
where the boot (or the container's clock) is another one.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from functools import cache

from taskq.spi import SYSTEM_CLOCK, Clock
from taskq_lib_sqlite import Bells
from taskq_transport_sqlite.tables import give_back


@cache
def _boot() -> str | None:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()}/{os.readlink('/proc/self/ns/time')}"
    except OSError:
        return None


class LeaseClock:
    """Reads one transport's clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.boot = _boot() if clock is SYSTEM_CLOCK else None

    def end(self, lease_s: float) -> tuple[float, float]:
        """Return when a lease that starts now ends, by both clocks."""
        return self._clock.monotonic() + lease_s, self._clock.now() + lease_s

    def left(self, boot: str | None, until: float | None, until_wall: float | None) -> float:
        """Return how many seconds a consumer's lease still runs."""
        if boot is not None and boot == self.boot:
            return (until or 0.0) - self._clock.monotonic()
        return (until_wall or 0.0) - self._clock.now()


CONSUMERS = "SELECT number, boot, until, until_wall, bell FROM taskq_consumer"


def reap(connection: sqlite3.Connection, clock: LeaseClock, bells: Bells) -> Mapping[int, int]:
    """Give back what dead consumers held, inside a transaction; return how many messages per queue number."""
    counts: dict[int, int] = {}
    for number, boot, until, until_wall, bell in connection.execute(CONSUMERS).fetchall():
        if clock.left(boot, until, until_wall) <= 0 or bells.is_dead(bell):
            for queue, n in give_back(connection, number, counted=True).items():
                counts[queue] = counts.get(queue, 0) + n
    # Held by nobody: only after somebody edited the tables.
    orphans = "SELECT DISTINCT consumer FROM taskq_held WHERE consumer NOT IN (SELECT number FROM taskq_consumer)"
    for (number,) in connection.execute(orphans).fetchall():
        for queue, n in give_back(connection, number, counted=True).items():
            counts[queue] = counts.get(queue, 0) + n
    return counts
