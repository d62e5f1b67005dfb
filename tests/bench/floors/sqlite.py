"""The sqlite3 module alone: claim a batch, run, delete it; two transactions a batch, as at-least-once needs."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import sqlite3
import sys

from tests.bench.floors import BATCH, PAYLOAD
from tests.bench.stopwatch import tick

ACK = "after the run (at least once)"
DURABILITY = "WAL, synchronous=FULL"
NOTE = "no lease, no retry, one queue; woken by a datagram"
RESULTS = True
VERSIONS = ()

_folder = os.environ["BENCH_DIR"]
_SCHEMA = """
    CREATE TABLE IF NOT EXISTS message
        (id INTEGER PRIMARY KEY AUTOINCREMENT, owner INTEGER NOT NULL DEFAULT 0, payload BLOB, keep INTEGER);
    CREATE INDEX IF NOT EXISTS ready ON message (id) WHERE owner = 0;
    CREATE TABLE IF NOT EXISTS result (id INTEGER PRIMARY KEY, payload BLOB);
"""
_CLAIM = f"""
    UPDATE message SET owner = 1 WHERE id IN (SELECT id FROM message WHERE owner = 0 ORDER BY id LIMIT {BATCH})
    RETURNING id, payload, keep
"""


@functools.cache
def connection() -> sqlite3.Connection:
    made = sqlite3.connect(_folder + "/raw.db", isolation_level=None)
    made.execute("PRAGMA journal_mode = WAL")
    made.execute("PRAGMA synchronous = FULL")
    made.executescript(_SCHEMA)
    return made


@functools.cache
def bell(name: str) -> socket.socket:
    """Return the socket that hears this bell."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.bind(f"{_folder}/{name}")
    return made


def ring(name: str) -> None:
    with contextlib.suppress(OSError):  # nobody there, or rung often enough
        bell("sender" if name == "worker" else "answerer").sendto(b".", socket.MSG_DONTWAIT, f"{_folder}/{name}")


def worker() -> list[str]:
    return [sys.executable, "-m", __name__]


def send(count: int, *, bulk: bool, results: bool) -> None:
    db = connection()
    statement = "INSERT INTO message (payload, keep) VALUES (?, ?)"
    if bulk:
        for start in range(0, count, 10_000):
            db.execute("BEGIN IMMEDIATE")
            db.executemany(statement, [(PAYLOAD, results)] * min(10_000, count - start))
            db.execute("COMMIT")
    else:
        for _ in range(count):
            db.execute(statement, (PAYLOAD, results))


def call() -> None:
    bell("client")
    db = connection()
    number = db.execute("INSERT INTO message (payload, keep) VALUES (?, 1)", (PAYLOAD,)).lastrowid
    ring("worker")
    while db.execute("SELECT payload FROM result WHERE id = ?", (number,)).fetchone() is None:
        bell("client").recv(16)


def serve() -> None:
    db, heard = connection(), bell("worker")
    while True:
        rows = db.execute(_CLAIM).fetchall()
        if not rows:
            heard.recv(16)
            continue
        for _ in rows:
            tick()
        db.execute("BEGIN IMMEDIATE")
        kept = [(number, PAYLOAD) for number, _, keep in rows if keep]
        if kept:
            db.executemany("INSERT INTO result VALUES (?, ?)", kept)
        db.executemany("DELETE FROM message WHERE id = ?", [(number,) for number, _, _ in rows])
        db.execute("COMMIT")
        if kept:
            ring("client")


if __name__ == "__main__":
    serve()
