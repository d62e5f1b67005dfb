"""Atomic keys, semaphores and a time index, each function inside a transaction that the caller has begun."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

from taskq.errors import StoreError
from taskq.spi import Op, OpKind, OpResult


def checked_key(key: str) -> str:
    """Return a key that every server could keep.

    Raises:
        StoreError: empty, longer than 200 bytes, or not printable ASCII.
    """
    if not key or len(key) > 200 or not key.isascii() or not key.isprintable():
        error = StoreError(f"coordination key {key[:210]!r} is not 1 to 200 printable ASCII characters")
        error.retryable = False
        raise error
    return key


def apply(connection: sqlite3.Connection, op: Op, now: float) -> OpResult:
    """Run one operation."""
    row = connection.execute("SELECT value, expires FROM taskq_entry WHERE name = ?", (op.key,)).fetchone()
    if row is not None and row[1] is not None and row[1] <= now:
        row = None
    current = bytes(row[0]) if row is not None else None
    expires = None if op.ttl is None else now + op.ttl
    value = op.value or b""
    match op.kind:
        case OpKind.GET:
            return OpResult(current is not None, current)
        case OpKind.DELETE:
            if current is None or (op.expected is not None and op.expected != current):
                return OpResult(False, current)
            connection.execute("DELETE FROM taskq_entry WHERE name = ?", (op.key,))
            return OpResult(True, None)
        case OpKind.INCREMENT:
            try:
                value = b"%d" % (int(current or b"0") + op.amount)
            except ValueError:  # not a number: left as it is
                return OpResult(False, current)
            if row is not None:
                expires = row[1]
            wanted = True
        case OpKind.PUT_IF_ABSENT:
            wanted = current is None
        case OpKind.COMPARE_AND_SET:
            wanted = current == op.expected
        case OpKind.PUT:
            wanted = True
    if not wanted:
        return OpResult(False, current)
    connection.execute(
        "INSERT OR REPLACE INTO taskq_entry (name, value, expires) VALUES (?, ?, ?)", (op.key, value, expires)
    )
    return OpResult(True, value)


def acquire(connection: sqlite3.Connection, key: str, owner: str, slots: int, ttl: float, now: float) -> bool:
    """Take a place for an owner, where fewer than ``slots`` others have one."""
    connection.execute("DELETE FROM taskq_place WHERE name = ? AND expires <= ?", (key, now))
    others = "SELECT count(*) FROM taskq_place WHERE name = ? AND owner <> ?"
    mine = "SELECT 1 FROM taskq_place WHERE name = ? AND owner = ?"
    if (
        connection.execute(mine, (key, owner)).fetchone() is None
        and connection.execute(others, (key, owner)).fetchone()[0] >= slots
    ):
        return False
    connection.execute(
        "INSERT OR REPLACE INTO taskq_place (name, owner, expires) VALUES (?, ?, ?)", (key, owner, now + ttl)
    )
    return True


def renew(connection: sqlite3.Connection, key: str, owner: str, ttl: float, now: float) -> bool:
    """Keep an owner's place."""
    statement = "UPDATE taskq_place SET expires = ? WHERE name = ? AND owner = ? AND expires > ?"
    return connection.execute(statement, (now + ttl, key, owner, now)).rowcount > 0


def index_put(connection: sqlite3.Connection, index: str, entries: Mapping[str, float]) -> None:
    """Set due times."""
    connection.executemany(
        "INSERT OR REPLACE INTO taskq_due (name, member, at) VALUES (?, ?, ?)",
        [(index, member, at) for member, at in entries.items()],
    )


def index_remove(connection: sqlite3.Connection, index: str, members: Sequence[str]) -> list[str]:
    """Remove members; return those that were there."""
    statement = "DELETE FROM taskq_due WHERE name = ? AND member = ?"
    return [member for member in members if connection.execute(statement, (index, member)).rowcount]


def sweep(connection: sqlite3.Connection, now: float, limit: int) -> int:
    """Remove some of what has expired, results included; return how many."""
    swept = 0
    for table, key in (("record", "number"), ("entry", "name"), ("place", "name, owner")):
        swept += connection.execute(
            f"DELETE FROM taskq_{table} WHERE ({key}) IN "  # noqa: S608  fixed names
            f"(SELECT {key} FROM taskq_{table} WHERE expires <= ? LIMIT ?)",
            (now, limit),
        ).rowcount
    return swept
