"""Schedulers keep schedules and say what is due; autoscalers say how many slots a worker should have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from msgspec import Struct


class Schedule(Struct, kw_only=True):
    """One schedule: what to send and when.

    ``rule`` is ``every SECONDS``, ``at EPOCH_SECONDS`` (once) or ``cron EXPRESSION`` where the scheduler declares it;
    ``args`` and ``kwargs`` are plain data of the json serializer; ``options`` are those of ``apply_async``.
    ``next_due`` is in seconds since the epoch, None when it will not fire again. ``version`` grows with every change.
    """

    id: str
    task: str
    rule: str
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    options: dict[str, Any] = {}
    enabled: bool = True
    next_due: float | None = None
    last_fired: float | None = None
    version: int = 0


class Fire(Struct, frozen=True, kw_only=True):
    """A due firing, leased to one owner: ``due`` is its nominal time; (schedule id, due) names it for ever."""

    schedule: Schedule
    due: float
    owner: str


class Scheduler(Protocol):
    """Keeps schedules; several processes may lease from one scheduler where it is shared.

    Every method: Threads: any. Errors: TaskQError subclasses.
    """

    def open(self) -> None:
        """Open the store. Blocking: a round trip. Idempotence: yes. Order: first."""
        ...

    def close(self) -> None:
        """Close the store; leases end by their ttl. Blocking: short. Idempotence: yes. Order: last."""
        ...

    def upsert(self, schedule: Schedule, *, now: float) -> Schedule:
        """Add or replace a schedule, computing ``next_due``; an unchanged rule keeps its ``next_due``.

        Blocking: a round trip. Idempotence: yes. Order: free. Errors: NotSupported for a rule it cannot keep.
        """
        ...

    def remove(self, schedule_id: str) -> bool:
        """Remove a schedule; whether it was there. Blocking: a round trip. Idempotence: yes. Order: free."""
        ...

    def get(self, schedule_id: str) -> Schedule | None:
        """Return one schedule. Blocking: a round trip. Idempotence: yes. Order: free."""
        ...

    def list(self, *, after: str | None = None, limit: int = 100) -> Sequence[Schedule]:
        """Return schedules sorted by id, starting after one. Blocking: a round trip. Idempotence: yes. Order: free."""
        ...

    def lease(self, owner: str, now: float, *, limit: int, ttl: float) -> Sequence[Fire]:
        """Return due firings that no other owner holds, earliest first, held for ``ttl`` seconds.

        A schedule that missed several times fires once, for the latest missed time.
        Blocking: a round trip. Idempotence: no. Order: by due time.
        """
        ...

    def settle(self, fired: Sequence[Fire], *, now: float) -> None:
        """Mark firings as sent and compute the next due times.

        Blocking: a round trip. Idempotence: yes. Order: free.
        """
        ...

    def next_due(self) -> float | None:
        """Return the earliest due time of an enabled schedule.

        Blocking: a round trip. Idempotence: yes. Order: free.
        """
        ...

    def wake(self, timeout: float) -> bool:
        """Wait until a schedule was changed by anybody, at most ``timeout`` seconds; whether one was.

        Blocking: up to ``timeout``. Idempotence: yes. Order: free.
        """
        ...


class LoadSample(Struct, frozen=True, kw_only=True):
    """What a worker knows of its load. Counts of messages, times in seconds; None where it cannot be known.

    ``oldest_age`` is the time that the oldest waiting message waits, ``wait_p95`` what tasks have waited that were
    started since the last sample; ``cpu`` is the share of the CPUs the worker may use that its processes used since.
    """

    at: float
    slots: int
    busy: int
    backlog: int | None = None
    oldest_age: float | None = None
    wait_p95: float | None = None
    completed_per_s: float = 0.0
    cpu: float | None = None


class Autoscaler(Protocol):
    """Chooses a number of slots. Pure: it keeps no state but the one it is given and has no clock but the sample's."""

    def decide(self, sample: LoadSample, state: Any) -> tuple[int, Any]:
        """Return the wanted number of slots and the state for the next call (None at first).

        The kernel clamps to the bounds, applies the cool-down and acts.
        Blocking: no. Threads: one. Idempotence: yes. Order: samples in time order. Errors: none.
        """
        ...
