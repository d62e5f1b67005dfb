"""Settling inside a transaction, and the one-step commit with the SQLite store."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from taskq.message import RELEASE, Lost, Settlement
from taskq_lib_sqlite import SqliteResults, transport_errors
from taskq_transport_sqlite import tables

if TYPE_CHECKING:
    from taskq.spi import Commit
    from taskq_transport_sqlite.consumer import SqliteConsumer

_DROP = "DELETE FROM taskq_held WHERE consumer = ? AND seq = ?"
_DROP_STRETCH = "DELETE FROM taskq_held WHERE consumer = ? AND seq BETWEEN ? AND ?"
_DROP_MESSAGE = "DELETE FROM taskq_message WHERE seq = ?"
_DROP_MESSAGES = "DELETE FROM taskq_message WHERE seq BETWEEN ? AND ?"
_HOLDS = "SELECT 1 FROM taskq_held WHERE consumer = ? AND seq = ?"
_RETURN = (
    "INSERT INTO taskq_ready (queue, rank, seq, deliveries) "
    "SELECT queue, rank, seq, deliveries - ? FROM taskq_held WHERE consumer = ? AND seq = ?"
)
_DELAY = (
    "INSERT INTO taskq_delayed (due, seq, queue, rank, deliveries) "
    "SELECT ?, seq, queue, rank, deliveries - ? FROM taskq_held WHERE consumer = ? AND seq = ?"
)


class Held(NamedTuple):
    """A message that a consumer holds."""

    seq: int
    queue: int
    size: int
    group: str | None


class Mismatch(Exception):
    """Something of a batch is held no longer; only settling it one by one tells what."""


class Settled(NamedTuple):
    """What became of a batch: the losses, and how many messages are ready now per queue number."""

    lost: list[Lost]
    ready: dict[int, int]


def settle(
    connection: sqlite3.Connection,
    consumer: int,
    held: Mapping[Any, Held],
    settlements: Sequence[Settlement],
    now: float,
    *,
    one_by_one: bool,
) -> Settled:
    """Settle a batch, at once where all of it is held, else one by one.

    Raises:
        Mismatch: not all is held; the transaction must be rolled back, and the batch settled with ``one_by_one``.
    """
    lost = []
    acked: list[Held] = []
    released: list[tuple[Held, Settlement]] = []
    seen = set()
    for s in settlements:
        entry = held.get(s.receipt)
        if entry is None or s.receipt in seen:
            lost.append(Lost(s.receipt, "not held: it was settled before, or the lease ended"))
            continue
        seen.add(s.receipt)
        if one_by_one and connection.execute(_HOLDS, (consumer, entry.seq)).fetchone() is None:
            lost.append(Lost(s.receipt, "the lease ended and the message was given back"))
        elif s.kind == RELEASE:
            released.append((entry, s))
        else:
            acked.append(entry)
    ready: dict[int, int] = {}
    if acked:
        _acknowledge(connection, consumer, [entry.seq for entry in acked])
        for entry in acked:
            if entry.group is not None and tables.leave(connection, entry.queue, entry.group, entry.seq):
                ready[entry.queue] = ready.get(entry.queue, 0) + 1
    if released:
        _release(connection, consumer, released, now)
        for entry, _ in released:
            ready[entry.queue] = ready.get(entry.queue, 0) + 1
    return Settled(lost, ready)


def _acknowledge(connection: sqlite3.Connection, consumer: int, seqs: list[int]) -> None:
    first, last, n = min(seqs), max(seqs), len(seqs)
    if last - first == n - 1:  # the usual case: a stretch without gaps, as it was sent and fetched
        if connection.execute(_DROP_STRETCH, (consumer, first, last)).rowcount != n:
            raise Mismatch
        connection.execute(_DROP_MESSAGES, (first, last))
        return
    if connection.executemany(_DROP, [(consumer, seq) for seq in seqs]).rowcount != n:
        raise Mismatch
    connection.executemany(_DROP_MESSAGE, [(seq,) for seq in seqs])


def _release(
    connection: sqlite3.Connection, consumer: int, released: Sequence[tuple[Held, Settlement]], now: float
) -> None:
    back = [(0 if s.counted else 1, consumer, e.seq) for e, s in released if s.delay <= 0]
    later = [(now + s.delay, 0 if s.counted else 1, consumer, e.seq) for e, s in released if s.delay > 0]
    if back and connection.executemany(_RETURN, back).rowcount != len(back):
        raise Mismatch
    if later and connection.executemany(_DELAY, later).rowcount != len(later):
        raise Mismatch
    connection.executemany(_DROP, [(consumer, e.seq) for e, _ in released])


class SqliteCommitter:
    """Stores outcomes, sends follow-ups and settles in one transaction."""

    def __init__(self, consumer: SqliteConsumer, store: SqliteResults) -> None:
        self._consumer = consumer
        self._store = store

    @transport_errors
    def commit(self, commits: Sequence[Commit]) -> Sequence[Lost]:
        consumer = self._consumer
        consumer.check()
        records = [c.record for c in commits if c.record is not None]
        if records:
            self._store.check_records(records)
        follow_ups = [o for c in commits for o in c.follow_ups]
        if follow_ups:
            consumer.transport.check(follow_ups)
        return consumer.end([c.settlement for c in commits], commits)
