"""Sending inside the application's own transaction."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from taskq.errors import NotSupported
from taskq_transport_sqlalchemy.consumer import SqlConsumer
from taskq_transport_sqlalchemy.transport import SqlTransport
from tests.support.steps import consumer_of, messages

Open = Callable[..., SqlTransport]


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(50))


@pytest.fixture
def orders(engine: sa.Engine) -> Iterator[sa.Engine]:
    Base.metadata.create_all(engine)
    yield engine
    Base.metadata.drop_all(engine)


def payloads(consumer: SqlConsumer, wait: float = 5.0) -> list[str]:
    return [d.payload.decode() for d in consumer.fetch(10, wait).deliveries]


def test_rows_and_messages_share_one_fate(url: str, orders: sa.Engine, open_transport: Open) -> None:
    transport = open_transport(url)
    consumer = consumer_of(transport)
    with Session(orders) as session:
        session.add(Order(name="lost"))
        session.flush()
        transport.send_in(session, messages("lost"))
        session.rollback()
        session.add(Order(name="kept"))
        transport.send_in(session, messages("kept", priority=7))
        session.commit()
        assert [order.name for order in session.scalars(sa.select(Order))] == ["kept"]
    assert payloads(consumer) == ["kept"]
    assert payloads(consumer, 0.1) == []


def test_nothing_is_seen_before_the_commit(url: str, engine: sa.Engine, open_transport: Open) -> None:
    transport = open_transport(url)
    consumer = consumer_of(open_transport(url))
    with engine.begin() as connection:
        transport.send_in(connection, messages("a"))
        assert payloads(consumer, 0.2) == []
    assert payloads(consumer) == ["a"]


def test_a_batch_keeps_its_order_priorities_groups_and_delays(
    url: str, engine: sa.Engine, open_transport: Open
) -> None:
    transport = open_transport(url)
    consumer = consumer_of(transport)
    with engine.begin() as connection:
        batch = [
            *messages("c", priority=1), *messages("a", priority=9), *messages("b"), *messages("later", delay=0.4),
        ]  # fmt: skip
        batch[0].group = "g"
        transport.send_in(connection, batch)
        transport.send_in(connection, [])
    deliveries = list(consumer.fetch(10, 5.0).deliveries)
    assert [d.payload for d in deliveries] == [b"a", b"b", b"c"]
    assert [d.group for d in deliveries] == [None, None, "g"]
    assert payloads(consumer) == ["later"]


def test_sessions_of_all_kinds_are_taken(url: str, orders: sa.Engine, open_transport: Open) -> None:
    transport = open_transport(url)
    consumer = consumer_of(transport)
    registry = scoped_session(sessionmaker(orders))
    transport.send_in(registry, messages("scoped"))
    registry.commit()
    registry.remove()
    assert payloads(consumer) == ["scoped"]
    with Session(orders) as session, session.begin():
        with session.begin_nested() as savepoint:
            transport.send_in(session, messages("undone"))
            savepoint.rollback()
        transport.send_in(session, messages("done"))
    assert payloads(consumer) == ["done"]


def test_a_connection_to_another_database_is_refused(url: str, tmp_path: Path, open_transport: Open) -> None:
    transport = open_transport(url)
    other = sa.create_engine(f"sqlite:///{tmp_path}/other.db")
    with other.connect() as connection:
        with pytest.raises(NotSupported, match="same"):
            transport.send_in(connection, messages("a"))
        # The caller's transaction goes on.
        assert connection.scalar(sa.text("SELECT 1")) == 1
    other.dispose()


def test_another_database_of_the_same_server_is_refused(
    postgresql: str, database_url: Callable[[str], str], open_transport: Open
) -> None:
    transport = open_transport(postgresql)
    elsewhere = database_url("postgresql")
    other = sa.create_engine(elsewhere.replace("postgresql:", "postgresql+psycopg:"), poolclass=sa.NullPool)
    with other.connect() as connection:
        with pytest.raises(NotSupported, match="another database"):
            transport.send_in(connection, messages("a"))
        assert connection.scalar(sa.text("SELECT 1")) == 1
    open_transport(elsewhere)  # it has tables of its own now
    with other.connect() as connection, pytest.raises(NotSupported, match="another database"):
        transport.send_in(connection, messages("a"))


def test_what_cannot_be_used_is_told_how(url: str, open_transport: Open) -> None:
    transport = open_transport(url)
    with pytest.raises(NotSupported, match=r"Connection or Session, not builtins\.str"):
        transport.send_in("connection", messages("a"))
    # Needs no greenlet: the class is known by where it comes from.
    asynchronous = type("AsyncSession", (), {"__module__": "sqlalchemy.ext.asyncio.session"})()
    with pytest.raises(NotSupported, match="run_sync"):
        transport.send_in(asynchronous, messages("a"))


def test_a_notification_comes_with_the_commit(postgresql: str, open_transport: Open) -> None:
    """A waiting consumer is notified by the commit, and not before."""
    transport = open_transport(postgresql)
    consumer = consumer_of(open_transport(postgresql))
    engine = sa.create_engine(postgresql.replace("postgresql:", "postgresql+psycopg:"))
    told = threading.Event()
    heard = consumer._ears.heard

    def noticing() -> list[tuple[str, str]]:
        found = heard()
        if found:
            told.set()
        return found

    consumer._ears.heard = noticing  # type: ignore[method-assign]
    box: list[str] = []
    thread = threading.Thread(target=lambda: box.extend(payloads(consumer, 10.0)))
    with engine.begin() as connection:
        transport.send_in(connection, messages("a"))
        thread.start()
        assert not told.wait(0.4)
    engine.dispose()
    thread.join(5.0)
    assert box == ["a"]
    assert told.is_set() or heard()


def test_a_refused_statement_is_typed(url: str, engine: sa.Engine, open_transport: Open) -> None:
    from taskq.errors import TaskQError

    transport = open_transport(url)
    with engine.connect() as connection:
        transport.send_in(connection, messages("a"))
        connection.rollback()
        table = transport.strategy.tables.messages.name
        connection.execute(sa.text(f"DROP TABLE {table}"))
        connection.commit()
        with pytest.raises(TaskQError, match="sending inside your transaction"):
            transport.send_in(connection, messages("a"))
