"""What the transport does to the tables, each function inside a transaction that the caller has begun."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from taskq.message import Outbound

PROMOTE_AT_ONCE = 1000

# The braces take the name under which the file is attached to somebody's connection, with a dot; nothing in our own.
_MESSAGE = "INSERT INTO {}taskq_message (seq, sent, id, grp, payload) VALUES (?, ?, ?, ?, ?)"
_READY = "INSERT INTO {}taskq_ready (queue, rank, seq, deliveries) VALUES (?, ?, ?, ?)"
_DELAYED = "INSERT INTO {}taskq_delayed (due, seq, queue, rank, deliveries) VALUES (?, ?, ?, ?, ?)"
_BEHIND = "INSERT INTO {}taskq_behind (queue, grp, seq, rank, deliveries) VALUES (?, ?, ?, ?, ?)"
_ENTER = "INSERT OR IGNORE INTO {}taskq_group (queue, grp, front) VALUES (?, ?, ?)"


def find_queue(connection: sqlite3.Connection, name: str, schema: str = "") -> int:
    """Return a queue's number; a new queue is made."""
    row = connection.execute(f"SELECT number FROM {schema}taskq_queue WHERE name = ?", (name,)).fetchone()  # noqa: S608
    if row is None:
        row = [connection.execute(f"INSERT INTO {schema}taskq_queue (name) VALUES (?)", (name,)).lastrowid]  # noqa: S608
    return int(row[0])


def insert(
    connection: sqlite3.Connection,
    batch: Sequence[Outbound],
    now: float,
    number_of: Callable[[str], int],
    schema: str = "",
) -> Mapping[int, int]:
    """Write messages; return how many per queue number.

    ``schema`` is "" or the name, with a dot, under which the file is attached to the connection.
    """
    first = batch[0]
    kinds = {(o.queue, o.priority, o.delay, o.group) for o in batch}
    if len(kinds) == 1 and first.delay <= 0.0 and first.group is None:
        queue, rank = number_of(first.queue), 9 - first.priority
        if len(batch) == 1:
            row = (None, now, first.id, None, first.payload)
            seq = connection.execute(_MESSAGE.format(schema), row).lastrowid
            connection.execute(_READY.format(schema), (queue, rank, seq, 0))
            return {queue: 1}
        last = _last_seq(connection, schema)
        # sqlite3 binds bytes by a slow path, through its adapters; a bytearray goes straight in
        rows = [(seq, now, o.id, None, bytearray(o.payload)) for seq, o in enumerate(batch, last + 1)]
        connection.executemany(_MESSAGE.format(schema), rows)
        connection.execute(
            f"INSERT INTO {schema}taskq_ready (queue, rank, seq, deliveries) "  # noqa: S608  a fixed name
            f"SELECT ?, ?, seq, 0 FROM {schema}taskq_message WHERE seq > ?",
            (queue, rank, last),
        )
        return {queue: len(batch)}
    return _insert_mixed(connection, batch, now, number_of, schema)


def _last_seq(connection: sqlite3.Connection, schema: str) -> int:
    return connection.execute(f"SELECT max(seq) FROM {schema}taskq_message").fetchone()[0] or 0  # noqa: S608


def _insert_mixed(
    connection: sqlite3.Connection,
    batch: Sequence[Outbound],
    now: float,
    number_of: Callable[[str], int],
    schema: str,
) -> Mapping[int, int]:
    first = _last_seq(connection, schema) + 1
    numbers = {name: number_of(name) for name in dict.fromkeys(o.queue for o in batch)}
    ordered: set[int] = set()
    if any(o.group is not None for o in batch):
        ordered.update(r[0] for r in connection.execute(f"SELECT number FROM {schema}taskq_queue WHERE ordered"))  # noqa: S608
    ready = []
    delayed = []
    counts: Counter[int] = Counter()
    for seq, o in enumerate(batch, first):
        queue, rank = numbers[o.queue], 9 - o.priority
        if o.delay > 0.0:
            delayed.append((now + o.delay, seq, queue, rank, 0))
        elif o.group is None or queue not in ordered or enter(connection, queue, o.group, seq, rank, 0, schema):
            ready.append((queue, rank, seq, 0))
        counts[queue] += 1
    rows = [(seq, now, o.id, o.group, o.payload) for seq, o in enumerate(batch, first)]
    connection.executemany(_MESSAGE.format(schema), rows)
    connection.executemany(_READY.format(schema), ready)
    if delayed:
        connection.executemany(_DELAYED.format(schema), delayed)
    return counts


# ------------------------------------------------------------------------------------------------------- groups


def enter(
    connection: sqlite3.Connection, queue: int, group: str, seq: int, rank: int, deliveries: int, schema: str = ""
) -> bool:
    """Let a message be its group's front, and return True, or put it behind the one that is."""
    if connection.execute(_ENTER.format(schema), (queue, group, seq)).rowcount:
        return True
    connection.execute(_BEHIND.format(schema), (queue, group, seq, rank, deliveries))
    return False


def leave(connection: sqlite3.Connection, queue: int, group: str, seq: int) -> bool:
    """End a group's front message: the next one becomes ready. Returns whether there was a next one."""
    row = connection.execute("SELECT front FROM taskq_group WHERE queue = ? AND grp = ?", (queue, group)).fetchone()
    if row is None or row[0] != seq:
        return False  # not an ordered queue
    following = connection.execute(
        "SELECT seq, rank, deliveries FROM taskq_behind WHERE queue = ? AND grp = ? ORDER BY seq LIMIT 1",
        (queue, group),
    ).fetchone()
    if following is None:
        connection.execute("DELETE FROM taskq_group WHERE queue = ? AND grp = ?", (queue, group))
        return False
    connection.execute("DELETE FROM taskq_behind WHERE queue = ? AND grp = ? AND seq = ?", (queue, group, following[0]))
    connection.execute("UPDATE taskq_group SET front = ? WHERE queue = ? AND grp = ?", (following[0], queue, group))
    connection.execute(_READY.format(""), (queue, following[1], following[0], following[2]))
    return True


# -------------------------------------------------------------------------------------------- moving by the clock


def promote(connection: sqlite3.Connection, now: float) -> Mapping[int, int]:
    """Make due messages ready, some at a time; return how many per queue number."""
    rows = connection.execute(
        "SELECT d.due, d.seq, d.queue, d.rank, d.deliveries, m.grp, q.ordered, g.front FROM taskq_delayed d "
        "LEFT JOIN taskq_queue q ON q.number = d.queue LEFT JOIN taskq_message m ON m.seq = d.seq "
        "LEFT JOIN taskq_group g ON g.queue = d.queue AND g.grp = m.grp "
        "WHERE d.due <= ? ORDER BY d.due, d.seq LIMIT ?",
        (now, PROMOTE_AT_ONCE),
    ).fetchall()
    if not rows:
        return {}
    connection.execute("DELETE FROM taskq_delayed WHERE (due, seq) <= (?, ?)", rows[-1][:2])
    ready = []
    for _, seq, queue, rank, deliveries, group, ordered, front in rows:
        # A front that was released with a delay has kept its place; a message sent with one takes its place now.
        if not ordered or group is None or front == seq or enter(connection, queue, group, seq, rank, deliveries):
            ready.append((queue, rank, seq, deliveries))
    connection.executemany(_READY.format(""), ready)
    return Counter(row[0] for row in ready)


def give_back(connection: sqlite3.Connection, consumer: int, *, counted: bool) -> Mapping[int, int]:
    """Return all that a consumer holds to the queues, and strike the consumer off; return how many per queue number."""
    counts = dict(
        connection.execute("SELECT queue, count(*) FROM taskq_held WHERE consumer = ? GROUP BY queue", (consumer,))
    )
    if counts:
        connection.execute(
            "INSERT INTO taskq_ready (queue, rank, seq, deliveries) "
            "SELECT queue, rank, seq, deliveries - ? FROM taskq_held WHERE consumer = ?",
            (0 if counted else 1, consumer),
        )
        connection.execute("DELETE FROM taskq_held WHERE consumer = ?", (consumer,))
    connection.execute("DELETE FROM taskq_consumer WHERE number = ?", (consumer,))
    return counts


def purge(connection: sqlite3.Connection, queue: int, up_to: int, limit: int) -> int:
    """Remove some messages of a queue that are not in flight, and not sent after ``up_to``; return how many."""
    removed = 0
    for table, order in (("ready", "rank, seq"), ("behind", "grp, seq"), ("delayed", "due, seq")):
        rows = connection.execute(
            f"SELECT seq, {order.split(',')[0]} FROM taskq_{table} WHERE queue = ? AND seq <= ? LIMIT ?",  # noqa: S608
            (queue, up_to, limit - removed),
        ).fetchall()
        if not rows:
            continue
        column = order.split(",")[0]
        connection.executemany("DELETE FROM taskq_message WHERE seq = ?", [(row[0],) for row in rows])
        connection.executemany(
            f"DELETE FROM taskq_{table} WHERE queue = ? AND seq = ? AND {column} = ?",  # noqa: S608
            [(queue, *row) for row in rows],
        )
        removed += len(rows)
        if removed >= limit:
            return removed
    # Groups whose front is gone go on with what came while this ran.
    orphans = connection.execute(
        "SELECT grp, front FROM taskq_group WHERE queue = ? AND front <= ? "
        "AND NOT EXISTS (SELECT 1 FROM taskq_message WHERE seq = front)",
        (queue, up_to),
    ).fetchall()
    for group, front in orphans:
        leave(connection, queue, group, front)
    return removed
