"""The tables, their version, and the steps from one version to the next.

A message's row (``taskq_message``) is written once and never changed: where the message stands is a small row in one of
four other tables. A claim, a hand-back or a reaped consumer moves small rows only, whole ranges in one statement,
however large the payloads are; and each of these tables is its own index.

| table | one row per |
|---|---|
| ``taskq_ready`` | message that may be fetched, in the order of delivery: queue, rank (9 - priority), seq |
| ``taskq_held`` | message that a consumer holds |
| ``taskq_delayed`` | message that is not due yet, by due time (seconds since the epoch) |
| ``taskq_behind`` | message of an ordered queue that waits for the one before it in its group |
| ``taskq_group`` | group of an ordered queue that has a message in one of the first three; ``front`` is that message |
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from taskq_lib_sqlite.trouble import Kind, Trouble

VERSION = 1

_VERSION_1 = (
    """CREATE TABLE taskq_queue (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
        ordered INTEGER NOT NULL DEFAULT 0)""",
    "CREATE TABLE taskq_message (seq INTEGER PRIMARY KEY, sent REAL, id TEXT, grp TEXT, payload BLOB)",
    """CREATE TABLE taskq_ready (queue INTEGER, rank INTEGER, seq INTEGER, deliveries INTEGER,
        PRIMARY KEY (queue, rank, seq)) WITHOUT ROWID""",
    """CREATE TABLE taskq_held (consumer INTEGER, seq INTEGER, queue INTEGER, rank INTEGER, deliveries INTEGER,
        PRIMARY KEY (consumer, seq)) WITHOUT ROWID""",
    """CREATE TABLE taskq_delayed (due REAL, seq INTEGER, queue INTEGER, rank INTEGER, deliveries INTEGER,
        PRIMARY KEY (due, seq)) WITHOUT ROWID""",
    """CREATE TABLE taskq_behind (queue INTEGER, grp TEXT, seq INTEGER, rank INTEGER, deliveries INTEGER,
        PRIMARY KEY (queue, grp, seq)) WITHOUT ROWID""",
    "CREATE TABLE taskq_group (queue INTEGER, grp TEXT, front INTEGER, PRIMARY KEY (queue, grp)) WITHOUT ROWID",
    # AUTOINCREMENT gives no number twice: a consumer that was taken for dead cannot settle another's messages.
    """CREATE TABLE taskq_consumer (number INTEGER PRIMARY KEY AUTOINCREMENT, boot TEXT, until REAL, until_wall REAL,
        bell TEXT, slot INTEGER, queues TEXT NOT NULL DEFAULT '', process TEXT)""",
    """CREATE TABLE taskq_record (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, epoch INTEGER NOT NULL,
        attempt INTEGER NOT NULL, terminal INTEGER NOT NULL, expires REAL NOT NULL, state TEXT, reply TEXT,
        follow_ups BLOB, payload BLOB)""",
    "CREATE INDEX taskq_record_expires ON taskq_record (expires)",
    "CREATE TABLE taskq_entry (name TEXT PRIMARY KEY, value BLOB, expires REAL) WITHOUT ROWID",
    "CREATE INDEX taskq_entry_expires ON taskq_entry (expires) WHERE expires IS NOT NULL",
    "CREATE TABLE taskq_place (name TEXT, owner TEXT, expires REAL NOT NULL, PRIMARY KEY (name, owner)) WITHOUT ROWID",
    "CREATE INDEX taskq_place_expires ON taskq_place (expires)",
    "CREATE TABLE taskq_due (name TEXT, member TEXT, at REAL NOT NULL, PRIMARY KEY (name, member)) WITHOUT ROWID",
    "CREATE INDEX taskq_due_at ON taskq_due (name, at)",
)

MIGRATIONS: dict[int, Sequence[str]] = {1: _VERSION_1}
"""Statements that lead to each version from the one before; version 0 is a file without our tables."""


def found_version(connection: sqlite3.Connection) -> int:
    """Return the version of taskq's tables in a file, 0 where there are none."""
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'taskq_meta'").fetchone() is None:
        return 0
    row = connection.execute("SELECT value FROM taskq_meta WHERE name = 'version'").fetchone()
    return int(row[0]) if row is not None and isinstance(row[0], int) else 0


def file_id(connection: sqlite3.Connection) -> str:
    """Return what tells this file from another one that is put in its place."""
    row = connection.execute("SELECT value FROM taskq_meta WHERE name = 'file'").fetchone()
    return str(row[0]) if row is not None else ""


def check_version(found: int, path: str) -> bool:
    """Return whether a file needs ``migrate``.

    Raises:
        Trouble: the file was written by a newer taskq.
    """
    if found > VERSION:
        raise Trouble(
            Kind.SCHEMA,
            f"the tables in {path} have version {found}, this taskq-lib-sqlite knows versions up to {VERSION}: upgrade "
            "taskq-lib-sqlite here (a newer one has been used on this file), or name another file; nothing was changed",
        )
    return found < VERSION


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Bring the tables to ``VERSION``, inside the transaction that the caller has begun.

    Raises:
        Trouble: the file was written by a newer taskq, or a step is missing.
    """
    found = found_version(connection)
    if not check_version(found, path):
        return  # another process was faster
    if found == 0:
        connection.execute("CREATE TABLE IF NOT EXISTS taskq_meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID")
        connection.execute("INSERT OR REPLACE INTO taskq_meta VALUES ('file', lower(hex(randomblob(16))))")
    for version in range(found + 1, VERSION + 1):
        if version not in MIGRATIONS:
            raise Trouble(
                Kind.SCHEMA,
                f"the tables in {path} have version {found} and this taskq-lib-sqlite cannot bring them to {VERSION}; "
                "drain the queues with the taskq that wrote them, then name another file; nothing was changed",
            )
        for statement in MIGRATIONS[version]:
            connection.execute(statement)
    connection.execute("INSERT OR REPLACE INTO taskq_meta VALUES ('version', ?)", (VERSION,))
