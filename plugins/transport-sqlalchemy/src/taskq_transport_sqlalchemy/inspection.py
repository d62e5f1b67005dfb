"""Looking at queues without touching them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from taskq.errors import NotSupported
from taskq.message import Peeked, QueueStats
from taskq_lib_sqlalchemy.strategy import Strategy
from taskq_lib_sqlalchemy.tables import DELAYED, HELD, READY

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


def stats(connection: Connection, strategy: Strategy, queues: Sequence[str]) -> dict[str, QueueStats]:
    """Count queues' messages by state."""
    now = strategy.server_time(connection)
    m = strategy.tables.messages.c
    due_by_now = m.due <= now  # what is due is ready, even if nobody has moved it yet
    rows = connection.execute(
        sa.select(m.queue, m.state, due_by_now, sa.func.count(), sa.func.min(m.due))
        .where(m.queue.in_(queues))
        .group_by(m.queue, m.state, due_by_now)
    ).all()
    found = {name: QueueStats(0, 0, 0, None) for name in strategy.known_queues(connection, queues)}
    for queue, state, due, count, oldest in rows:
        entry = found.setdefault(queue, QueueStats(0, 0, 0, None))
        if state == HELD:
            entry.in_flight = (entry.in_flight or 0) + count
        elif state == DELAYED and not due:
            entry.delayed = (entry.delayed or 0) + count
        else:
            entry.ready = (entry.ready or 0) + count
            age = max(0.0, now - oldest)
            entry.oldest_age = age if entry.oldest_age is None else max(age, entry.oldest_age)
    return found


def peek(connection: Connection, strategy: Strategy, queue: str, limit: int, after: str | None) -> list[Peeked]:
    """List messages as they will be, or are, delivered: those in flight, those ready, those delayed."""
    now = strategy.server_time(connection)
    found: list[Peeked] = []
    stage, first, second = _read_cursor(after)
    for state in (HELD, READY, DELAYED)[stage:]:
        if len(found) >= limit:
            break
        found += _stage(connection, strategy, queue, state, now, limit - len(found), first, second)
        first = second = None
    return found


_STAGES = {HELD: 0, READY: 1, DELAYED: 2}


def _stage(
    connection: Connection, strategy: Strategy, queue: str, state: int, now: float, limit: int, first: Any, second: Any
) -> Iterator[Peeked]:
    m = strategy.tables.messages.c
    key = m.due if state == DELAYED else m.level
    query = sa.select(m.id, m.level, m.deliveries, m.sent, m.due, m.uid, m.payload).where(
        m.queue == queue, m.state == state
    )
    if first is not None:
        query = query.where(sa.or_(key > first, sa.and_(key == first, m.id > second)))
    for row in connection.execute(query.order_by(key, m.id).limit(limit)):
        yield Peeked(
            cursor=f"{_STAGES[state]}/{row.due if state == DELAYED else row.level!r}/{row.id}",
            payload=row.payload,
            queue=queue,
            id=row.uid,
            priority=9 - row.level,
            delay=max(0.0, row.due - now) if state == DELAYED else 0.0,
            deliveries=row.deliveries,
            age=max(0.0, now - row.sent),
            in_flight=state == HELD,
        )


def _read_cursor(after: str | None) -> tuple[int, float | None, int | None]:
    if after is None:
        return 0, None, None
    try:
        stage, first, second = after.split("/")
        return int(stage), float(first), int(second)
    except ValueError:
        raise NotSupported(f"{after!r} is not a cursor that peek gave") from None
