"""How results are written: by the store, and by the transport's committer inside its own transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from taskq.message import Record
from taskq_lib_sqlite.bells import Bells
from taskq_lib_sqlite.database import Database

# The one place that knows which record replaces which; an expired one counts as not there.
_UPSERT = """
INSERT INTO taskq_record (id, epoch, attempt, terminal, expires, state, reply, follow_ups, payload)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
ON CONFLICT (id) DO UPDATE SET epoch = excluded.epoch, attempt = excluded.attempt, terminal = excluded.terminal,
    expires = excluded.expires, state = excluded.state, reply = excluded.reply, follow_ups = excluded.follow_ups,
    payload = excluded.payload
WHERE excluded.epoch > epoch
   OR (excluded.epoch = epoch AND (excluded.attempt > attempt OR (excluded.attempt = attempt AND NOT terminal)))
   OR expires <= ?10
"""

_PUSH_BYTES = 60_000  # of one datagram: well below every system's limit


@runtime_checkable
class SqliteResults(Protocol):
    """A store whose records a transport on the same file may write."""

    @property
    def results_database(self) -> Database | None:
        """The file that the store has open, None while it is closed."""
        ...

    def check_records(self, records: Sequence[Record]) -> None:
        """Refuse records that the store would not take. Raises: ResultTooLarge."""
        ...


def as_bytes(value: Any) -> bytes:
    """Return a payload column as bytes, whatever stands in it: what cannot be decoded is the kernel's to report."""
    if isinstance(value, bytes):
        return value
    return b"" if value is None else str(value).encode()


def put_records(connection: sqlite3.Connection, records: Sequence[Record], now: float) -> list[str]:
    """Store records inside the caller's transaction; return the ids of those that a better one is kept for."""
    # sqlite3 binds bool and bytes by a slow path, through its adapters; int and bytearray go straight in
    rows = [
        (r.id, r.epoch, r.attempt, +r.terminal, now + r.ttl, r.state, r.reply, r.follow_ups, bytearray(r.payload), now)
        for r in records
    ]
    if len(rows) == 1:
        return [] if connection.execute(_UPSERT, rows[0]).rowcount else [rows[0][0]]
    connection.execute("SAVEPOINT taskq_put")
    if connection.executemany(_UPSERT, rows).rowcount == len(rows):
        connection.execute("RELEASE taskq_put")
        return []
    # Rare: a result was written twice. The sum does not say which, so each is written by itself.
    connection.execute("ROLLBACK TO taskq_put")
    superseded = [row[0] for row in rows if not connection.execute(_UPSERT, row).rowcount]
    connection.execute("RELEASE taskq_put")
    return superseded


def push_records(bells: Bells, records: Iterable[Record]) -> None:
    """Tell those who wait for records, after the commit, which ids to look at."""
    waiting: dict[str, list[str]] = {}
    for record in records:
        if record.reply is not None:
            waiting.setdefault(record.reply, []).append(record.id)
    for address, ids in waiting.items():
        if len(ids) == 1:
            bells.ring(address, ids[0].encode())
            continue
        part: list[bytes] = []
        size = 0
        for i in map(str.encode, ids):
            if size + len(i) >= _PUSH_BYTES:
                bells.ring(address, b"\n".join(part))
                part, size = [], 0
            part.append(i)
            size += len(i) + 1
        bells.ring(address, b"\n".join(part))
