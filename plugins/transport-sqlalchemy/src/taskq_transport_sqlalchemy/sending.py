"""Sending inside the caller's own database transaction."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from taskq.errors import NotSupported
from taskq.message import Outbound
from taskq_lib_sqlalchemy.schema import INSTANCE
from taskq_lib_sqlalchemy.strategy import Strategy, message_row

_verified: WeakKeyDictionary[Engine, set[int]] = WeakKeyDictionary()
"""Which tables (by their instance number) each of the application's engines has been seen to reach."""


def send_in(strategy: Strategy, instance: int, connection: Any, batch: Sequence[Outbound]) -> None:
    """Write a batch through the caller's connection or session.

    Only portable constructs: the caller's driver need not be ours.

    Raises:
        NotSupported: not a SQLAlchemy connection or session, or one to another database.
        TransportError: the database refused; the caller's transaction has to be rolled back.
    """
    own = _connection_of(connection)
    _verify(strategy, instance, own)
    if not batch:
        return
    table = strategy.tables.messages
    now = sa.literal_column(strategy.now) if ":now" not in strategy.now else sa.literal(strategy.database.clock.now())
    statement = sa.insert(table).values(
        {
            **{name: sa.bindparam(name) for name in ("state", "level", "size", "queue", "uid", "grp", "payload")},
            "deliveries": 0,
            "owner": sa.null(),
            "sent": now,
            "due": now + sa.bindparam("delay", type_=sa.Double()),
        }
    )
    try:
        own.execute(statement, [message_row(out) for out in batch])
        if strategy.pushes:
            # Part of the transaction: delivered when, and only if, it commits.
            for queue in sorted({out.queue for out in batch}):
                own.execute(sa.select(sa.func.pg_notify(strategy.channel(queue), "")))
    except Exception as error:
        raise strategy.database.translated(error, "sending inside your transaction") from error


def _connection_of(connection: Any) -> Connection:
    if isinstance(connection, Connection):
        return connection
    kind = type(connection)
    if kind.__module__.startswith("sqlalchemy.ext.asyncio"):
        raise NotSupported(
            f"an {kind.__name__} cannot be used directly: await {kind.__name__}.run_sync(lambda c: … send inside c …)"
        )
    method = getattr(connection, "connection", None)
    if kind.__module__.startswith("sqlalchemy.orm") and callable(method) and not inspect.iscoroutinefunction(method):
        found = method()
        if isinstance(found, Connection):
            return found
    raise NotSupported(
        "sending inside a transaction takes a SQLAlchemy Connection or Session, "
        f"not {kind.__module__}.{kind.__qualname__}"
    )


def _verify(strategy: Strategy, instance: int, connection: Connection) -> None:
    """Make sure that this connection reaches the very tables that the transport uses."""
    seen = _verified.setdefault(connection.engine, set())
    if instance in seen:
        return
    where = strategy.database.current.text
    if connection.dialect.name != strategy.tables.dialect.name:
        raise NotSupported(
            f"this connection's database is {connection.dialect.name}, the queues are in {where}: "
            "both must be the same database for one transaction to cover them"
        )
    version = strategy.tables.version
    found = None
    # Looking first: a failed statement would spoil the caller's transaction.
    if sa.inspect(connection).has_table(version.name, schema=version.schema):
        found = connection.scalar(sa.select(version.c.version).where(version.c.component == INSTANCE))
    if found != instance:
        raise NotSupported(
            f"this connection reaches another database than {where}, where the queues are: "
            "both must be the same for one transaction to cover them"
        )
    seen.add(instance)
