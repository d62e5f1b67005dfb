"""Looking at queues without touching them: counts and listings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from taskq.errors import NotSupported
from taskq.message import Peeked, QueueStats
from taskq_lib_sqlite import as_bytes

Read = Callable[..., list[Any]]

_COUNTS = "SELECT queue, count(*) FROM taskq_{} GROUP BY queue"
_DUE = "SELECT queue, count(*) FROM taskq_delayed WHERE due <= ? GROUP BY queue"
_HEAD = "SELECT min(seq) AS seq FROM taskq_ready WHERE queue = ?1 AND rank = {}"
_HEADS = " UNION ALL ".join(_HEAD.format(rank) for rank in range(10))
_QUEUE = f"""
SELECT (SELECT count(*) FROM taskq_ready WHERE queue = ?1),
       (SELECT count(*) FROM taskq_behind WHERE queue = ?1),
       (SELECT sent FROM taskq_message WHERE seq = (SELECT min(seq) FROM ({_HEADS})))
"""  # noqa: S608  fixed text


def stats(read: Read, queues: Sequence[str], now: float) -> Mapping[str, QueueStats]:
    """Count messages; a delayed one that is due counts as ready, and so does one behind another of its group."""
    numbers = dict(read("SELECT name, number FROM taskq_queue"))
    held = dict(read(_COUNTS.format("held")))
    delayed = dict(read(_COUNTS.format("delayed")))
    due = dict(read(_DUE, (now,)))
    found = {}
    for name in queues:
        if name in numbers:
            n = numbers[name]
            ((ready, behind, sent),) = read(_QUEUE, (n,))
            age = max(0.0, now - sent) if isinstance(sent, int | float) else None
            late = due.get(n, 0)
            found[name] = QueueStats(ready + behind + late, held.get(n, 0), delayed.get(n, 0) - late, age)
    return found


def _stage(table: str, major: str) -> str:
    return f"""
        SELECT {major}, t.seq, t.rank, t.deliveries, m.sent, m.id, m.payload
        FROM taskq_{table} t LEFT JOIN taskq_message m ON m.seq = t.seq
        WHERE t.queue = ? AND ({major}, t.seq) > (?, ?) ORDER BY {major}, t.seq LIMIT ?
    """  # noqa: S608  fixed text


_IN_FLIGHT_STAGE = 0
_DELAYED_STAGE = 3
_STAGES = (
    _stage("held", "t.consumer"),
    _stage("ready", "t.rank"),
    _stage("behind", "0.0"),
    _stage("delayed", "t.due"),
)


def peek(read: Read, queue: str, limit: int, after: str | None, now: float) -> Sequence[Peeked]:
    """List messages: those in flight, then in the order of delivery, then the delayed ones by their time.

    A cursor names a place in that order, not a message: the listing goes on whether or not that message is still there.

    Raises:
        NotSupported: the cursor is not one of ours.
    """
    row = read("SELECT number FROM taskq_queue WHERE name = ?", (queue,))
    if not row:
        return []
    first, start = 0, (float("-inf"), 0)
    if after is not None:
        try:
            stage, major, seq = after.split(":")
            first, start = int(stage), (float.fromhex(major), int(seq))
        except ValueError:
            raise NotSupported(f"{after!r} is not a cursor of a listing of sqlite messages") from None
    listed: list[Peeked] = []
    for number in range(first, len(_STAGES)):
        key = start if number == first else (float("-inf"), 0)
        for at, seq_, rank, deliveries, sent, i, payload in read(
            _STAGES[number], (row[0][0], *key, limit - len(listed))
        ):
            delay = max(0.0, at - now) if number == _DELAYED_STAGE else 0.0
            cursor = f"{number}:{float(at).hex()}:{seq_}"
            age = max(0.0, now - sent) if isinstance(sent, int | float) else None
            data = as_bytes(payload)
            listed.append(
                Peeked(cursor, data, queue, i or "", 9 - rank, delay, deliveries or 0, age, number == _IN_FLIGHT_STAGE)
            )
        if len(listed) >= limit:
            break
    return listed
