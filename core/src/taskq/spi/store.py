"""The result store interface, and the coordination ability that the kernel's cluster-wide features stand on.

Threads: every method may be called by any thread at any time. Every call to a server has a timeout. Nothing opened
survives a fork. Errors are ``taskq.errors`` types: StoreUnavailable where repeating may help.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Protocol, runtime_checkable

from msgspec import Struct

from taskq.message import Record
from taskq.spi.capabilities import StoreCapabilities


class ResultStore(Protocol):
    """Keeps one record per task id until its ttl."""

    @property
    def capabilities(self) -> StoreCapabilities:
        """What this server can do, exact once ``open`` has returned."""
        ...

    def open(self) -> None:
        """Connect and check the server.

        Blocking: up to the connect timeout. Threads: any. Idempotence: yes. Order: first. Errors: StoreError.
        """
        ...

    def close(self, *, timeout: float = 5.0) -> None:
        """Close connections and stop threads; a ``wait`` that still runs returns.

        Blocking: up to ``timeout``. Threads: any. Idempotence: yes. Order: last. Errors: none.
        """
        ...

    def put(self, records: Sequence[Record]) -> Sequence[str]:
        """Store records; return the ids that were superseded, that is, not stored because a better one is there.

        A terminal record is never replaced by one of the same or an earlier (epoch, attempt), and no record by one of
        an earlier (epoch, attempt) or, at the same, a terminal by a non-terminal one. Whoever waits for an id is
        told.

        Blocking: a round trip per batch limit. Threads: any. Idempotence: yes (the repeat is reported as superseded).
        Order: within the batch as given. Errors: StoreUnavailable: nothing is known, repeat; ResultTooLarge: nothing
        was stored.
        """
        ...

    def get(self, ids: Sequence[str]) -> Sequence[Record | None]:
        """Return each id's record, None where there is none or it has expired; same length and order as ``ids``.

        Blocking: a round trip per batch limit. Threads: any. Idempotence: yes. Order: free. Errors: StoreError.
        """
        ...

    def delete(self, ids: Sequence[str]) -> None:
        """Forget records; an unknown id is fine.

        Blocking: a round trip per batch limit. Threads: any. Idempotence: yes. Order: free. Errors: StoreError.
        """
        ...

    def reply_address(self) -> str | None:
        """Return where results for this process should be pushed (at most 200 ASCII characters), None for no push.

        It travels in the message and comes back in ``Record.reply``. Blocking: may set up the channel, a round trip.
        Threads: any. Idempotence: yes, constant per process. Order: after open. Errors: StoreError.
        """
        ...


@runtime_checkable
class SupportsWait(Protocol):
    """A store that can wait for results better than by asking again and again."""

    def wait(self, ids: Sequence[str], timeout: float) -> Sequence[Record]:
        """Return the terminal records among ``ids`` as soon as there is one, or none after ``timeout`` or a ``wake``.

        One thread per process waits at a time, for all ids of the process. A record stored before the call counts.

        Blocking: up to ``timeout``. Threads: one at a time. Idempotence: yes. Order: free. Errors: StoreError.
        """
        ...

    def wake(self) -> None:
        """Make the running or else the next ``wait`` return soon, so that ids can be added. Sticky.

        Blocking: no. Threads: any. Idempotence: yes. Order: free. Errors: none.
        """
        ...


@runtime_checkable
class SupportsStoreMaintenance(Protocol):
    """A store whose expired records must be swept by somebody."""

    def maintain(self, budget_s: float) -> float:
        """Sweep expired records; return seconds until due again. As ``SupportsMaintenance`` of transports."""
        ...


class OpKind(StrEnum):
    """What a coordination operation does."""

    GET = "get"
    PUT = "put"
    PUT_IF_ABSENT = "put_if_absent"
    COMPARE_AND_SET = "compare_and_set"
    INCREMENT = "increment"
    DELETE = "delete"


class Op(Struct, frozen=True, kw_only=True):
    """One operation on one key (ASCII, at most 200 bytes).

    ``value``: new value for PUT, PUT_IF_ABSENT, COMPARE_AND_SET; ``expected``: for COMPARE_AND_SET and DELETE (None:
    must be absent, or for DELETE any); ``amount``: for INCREMENT, of a decimal number; ``ttl``: seconds the key lives
    from now, None for ever. INCREMENT sets the ttl only when it makes the key.
    """

    kind: OpKind
    key: str
    value: bytes | None = None
    expected: bytes | None = None
    amount: int = 1
    ttl: float | None = None


class OpResult(Struct, frozen=True):
    """``applied``: the operation took effect; ``current``: the key's value after it, None when absent."""

    applied: bool
    current: bytes | None = None


@runtime_checkable
class Coordination(Protocol):
    """Small shared state with atomic operations: deduplication, counters, semaphores, leader election.

    ``StoreCapabilities.keeps`` says whether entries may be evicted; the kernel refuses an evictable store for
    uniqueness, locks and limits. Every method: Blocking: a round trip per batch limit. Threads: any. Order: within
    the batch as given. Errors: OutcomeUnknown when sent but unanswered; StoreUnavailable when not sent.
    """

    def apply(self, ops: Sequence[Op]) -> Sequence[OpResult]:
        """Run operations, each atomic by itself; same length and order as ``ops``. Idempotence: per kind."""
        ...

    def acquire(self, key: str, owner: str, *, slots: int = 1, ttl: float) -> bool:
        """Take one of ``slots`` places for ``owner`` until ``ttl``.

        True also when the owner has one. Idempotence: yes.
        """
        ...

    def renew(self, key: str, owner: str, *, ttl: float) -> bool:
        """Keep the owner's place; False when it was lost. Idempotence: yes."""
        ...

    def release(self, key: str, owner: str) -> None:
        """Give the place back. Idempotence: yes."""
        ...


@runtime_checkable
class SupportsTimeIndex(Protocol):
    """A store that can keep entries sorted by time and hand out what is due."""

    def index_put(self, index: str, entries: Mapping[str, float]) -> None:
        """Set entries' due times (seconds since the epoch). As ``Coordination`` methods otherwise."""
        ...

    def index_due(self, index: str, now: float, limit: int) -> Sequence[tuple[str, float]]:
        """Return up to ``limit`` entries due at ``now``, earliest first, without removing them."""
        ...

    def index_remove(self, index: str, members: Sequence[str]) -> Sequence[str]:
        """Remove entries; return those that were there (so that one of several callers wins each)."""
        ...
