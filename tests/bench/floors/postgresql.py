"""psycopg alone: claim a batch with SKIP LOCKED, run, delete it; woken by NOTIFY."""

from __future__ import annotations

import functools
import os
import sys

import psycopg

from tests.bench.floors import BATCH, PAYLOAD
from tests.bench.stopwatch import tick

ACK = "after the run (at least once)"
DURABILITY = "the server's: commit with fsync"
NOTE = "no lease, no retry, one queue; LISTEN/NOTIFY"
RESULTS = True
VERSIONS = ("psycopg",)

_SCHEMA = """
    CREATE TABLE message (id bigserial PRIMARY KEY, owner int NOT NULL DEFAULT 0, payload bytea, keep bool);
    CREATE INDEX ready ON message (id) WHERE owner = 0;
    CREATE TABLE result (id bigint PRIMARY KEY, payload bytea);
"""
_CLAIM = f"""
    UPDATE message SET owner = 1 WHERE id IN
        (SELECT id FROM message WHERE owner = 0 ORDER BY id LIMIT {BATCH} FOR UPDATE SKIP LOCKED)
    RETURNING id, payload, keep
"""
_ONE = "INSERT INTO message (payload, keep) VALUES (%s, %s) RETURNING id"
_MANY = "INSERT INTO message (payload, keep) SELECT unnest(%s::bytea[]), %s"
_DONE = "DELETE FROM message WHERE id = ANY(%s)"
_KEEP = "INSERT INTO result SELECT unnest(%s::bigint[]), %s"


@functools.cache
def connection(purpose: str = "") -> psycopg.Connection:
    made = psycopg.connect(os.environ["BENCH_URL"], autocommit=True, prepare_threshold=1)
    if purpose:
        made.execute(f"LISTEN {purpose}")
    return made


def prepare() -> None:
    connection().execute(_SCHEMA)


def wait(purpose: str) -> None:
    for _ in connection(purpose).notifies(timeout=1, stop_after=1):
        pass


def worker() -> list[str]:
    return [sys.executable, "-m", __name__]


def send(count: int, *, bulk: bool, results: bool) -> None:
    db = connection()
    if bulk:
        for start in range(0, count, 10_000):
            db.execute(_MANY, ([PAYLOAD] * min(10_000, count - start), results))
    else:
        for _ in range(count):
            db.execute(_ONE, (PAYLOAD, results))


def call() -> None:
    connection("client")
    db = connection()
    with db.transaction():
        number = db.execute(_ONE, (PAYLOAD, True)).fetchone()[0]
        db.execute("NOTIFY worker")
    while db.execute("SELECT payload FROM result WHERE id = %s", (number,)).fetchone() is None:
        wait("client")


def serve() -> None:
    connection("worker")
    db = connection()
    while True:
        rows = db.execute(_CLAIM).fetchall()
        if not rows:
            wait("worker")
            continue
        for _ in rows:
            tick()
        with db.transaction():
            kept = [number for number, _, keep in rows if keep]
            if kept:
                db.execute(_KEEP, (kept, PAYLOAD))
                db.execute("NOTIFY client")
            db.execute(_DONE, ([number for number, _, _ in rows],))


if __name__ == "__main__":
    serve()
