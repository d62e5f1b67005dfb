"""What is special: connecting, failing over, recovering, waking, sharing."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from taskq.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    ConnectionLost,
    NotSupported,
    SchemaMismatch,
    StorageFull,
    TransportClosed,
    TransportError,
)
from taskq.spi import Capabilities, Durability, Outbound, QueueSpec, Settlement, Subscription, WakeUp
from taskq_lib_sqlalchemy.mysql import MySQL
from taskq_transport_sqlalchemy.shares import Shares
from taskq_transport_sqlalchemy.transport import SqlTransport
from tests.support.steps import collect, consumer_of, messages

Open = Callable[..., SqlTransport]


def scalar(transport: SqlTransport, statement: str, **parameters: Any) -> Any:
    strategy = transport.strategy
    return transport.database.run(lambda c: strategy.do(c, statement, **parameters).value(), "testing")


# ------------------------------------------------------------------------------------------------------- connecting


def test_a_database_that_is_not_there(postgresql: str, mariadb: str, open_transport: Open) -> None:
    with pytest.raises(ConnectionFailed, match=r"no database 'nowhere'.*createdb nowhere"):
        open_transport(postgresql.rpartition("/")[0] + "/nowhere")
    with pytest.raises(ConnectionFailed, match=r"no database 'nowhere'.*CREATE DATABASE `nowhere`"):
        open_transport(mariadb.rpartition("/")[0] + "/nowhere")


def test_credentials_that_are_refused(postgresql: str, mariadb: str, open_transport: Open) -> None:
    for url in (postgresql, mariadb):
        head, _, tail = url.partition("://")
        with pytest.raises(AuthenticationFailed) as caught:
            open_transport(f"{head}://nobody:s3cret@{tail.rpartition('@')[2]}")
        assert not caught.value.retryable
        assert "s3cret" not in str(caught.value)


def test_nobody_listens_there(open_transport: Open) -> None:
    for url in ("postgresql://u@127.0.0.1:1/db", "mysql://u@127.0.0.1:1/db"):
        with pytest.raises(ConnectionFailed, match=r"127\.0\.0\.1:1/db.*check that the server runs") as caught:
            open_transport(url, connect_timeout=1.0)
        assert caught.value.retryable


@pytest.mark.server
@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
def test_the_next_server_of_a_list_is_used(server: str, request: pytest.FixtureRequest, open_transport: Open) -> None:
    url = request.getfixturevalue(server)
    scheme = url.partition(":")[0]
    transport = open_transport(f"{scheme}://u@127.0.0.1:1/db;{url}", connect_timeout=1.0)
    assert not transport.send(messages("x"))
    assert transport.database.current.text in url
    with pytest.raises(ConnectionFailed, match="none of 2 servers"):
        open_transport(f"{scheme}://u@127.0.0.1:1/db;{scheme}://u@127.0.0.1:2/db", connect_timeout=1.0)


def test_a_replica_of_a_list_is_passed_over(mariadb: str, open_transport: Open) -> None:
    transport = open_transport(f"{mariadb};{mariadb}")
    asked = iter([True, False])
    transport.database._read_only = lambda connection: next(asked)  # type: ignore[method-assign]
    transport.database.engine.dispose()
    assert not transport.send(messages("x")), "the second of the list takes writes"
    transport.database._read_only = lambda connection: True  # type: ignore[method-assign]
    transport.database.engine.dispose()
    with pytest.raises(ConnectionFailed, match="is read-only"):
        transport.send(messages("x"))


def test_a_server_that_is_too_old_is_refused_before_anything_is_made(
    url: str, engine: sa.Engine, open_transport: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    from taskq_lib_sqlalchemy import mysql, postgresql, sqlite

    for module, kind in ((mysql, "MySQL"), (postgresql, "PostgreSQL"), (sqlite, "SQLite")):

        def refuse(self: Any, connection: Any) -> None:
            raise self.too_old("ancient", "newer")

        monkeypatch.setattr(getattr(module, kind), "check_server", refuse)
    with pytest.raises(SchemaMismatch, match="is ancient; taskq needs at least newer"):
        open_transport(url)
    assert not sa.inspect(engine).get_table_names()


def test_mariadb_has_a_scheme_of_its_own(mariadb: str, open_transport: Open) -> None:
    transport = open_transport(mariadb.replace("mysql:", "mariadb:"))
    assert not transport.send(messages("x"))
    assert open_transport(mariadb).instance == transport.instance


def test_a_file_that_cannot_be_opened(tmp_path: Path, open_transport: Open) -> None:
    with pytest.raises(ConnectionFailed, match="create the folder"):
        open_transport(f"sqlite+sqlalchemy:///{tmp_path}/no/such/folder/q.db")
    (tmp_path / "text.db").write_text("this is not a database, it is a text that is long enough to be looked at" * 20)
    with pytest.raises(TransportError, match="not a database"):
        open_transport(f"sqlite+sqlalchemy:///{tmp_path}/text.db")


def test_use_before_open_is_refused() -> None:
    from taskq.spi import TransportConfig, parse_urls
    from taskq_transport_sqlalchemy.options import SqlTransportOptions

    config = TransportConfig(urls=parse_urls("sqlite+sqlalchemy:///tmp/never.db"), options=SqlTransportOptions())
    with pytest.raises(TransportClosed, match="before open"):
        SqlTransport(config).send(messages("x"))


def test_capabilities_are_those_of_the_server(url: str, open_transport: Open) -> None:
    transport = open_transport(url)
    capabilities: Capabilities = transport.capabilities
    kind = url.partition(":")[0]
    assert capabilities.network is (kind != "sqlite+sqlalchemy")
    assert (capabilities.wake_up is WakeUp.PUSH) is (kind == "postgresql")
    if kind == "postgresql":
        fsync = transport.database.run(lambda c: c.exec_driver_sql("SHOW fsync").scalar(), "testing")
        assert (capabilities.durability is Durability.SERVER) is (fsync == "off")
    if kind == "sqlite+sqlalchemy":
        assert capabilities.durability is Durability.DISK
        assert open_transport(url, synchronous="normal").capabilities.durability is Durability.SERVER
    if kind == "mysql":
        packet = transport.database.run(lambda c: c.exec_driver_sql("SELECT @@max_allowed_packet").scalar(), "testing")
        assert capabilities.max_payload_bytes is not None
        assert capabilities.max_payload_bytes <= packet / 2


# ------------------------------------------------------------------------------------------------------------ trouble


def test_a_full_disk_accepts_nothing(sqlite: str, open_transport: Open) -> None:
    transport = open_transport(sqlite)
    transport.send(messages("before"))

    def full(driver: sqlite3.Connection, record: Any, proxy: Any) -> None:
        driver.execute("PRAGMA max_page_count=1")  # SQLite takes the present size where it is more

    sa.event.listen(transport.database.engine, "checkout", full)
    with pytest.raises(StorageFull, match=r"full.*make room") as caught:
        transport.send(messages("y" * 100_000, "z" * 100_000))
    assert caught.value.retryable
    assert [d.payload for d in collect(consumer_of(open_transport(sqlite)), 1)] == [b"before"]


def test_a_locked_file_is_waited_for_and_then_reported(sqlite: str, open_transport: Open) -> None:
    transport = open_transport(sqlite, lock_timeout=0.2)
    path = sqlite.partition("://")[2]
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(TransportError, match=r"locked.*another transaction holds a lock") as caught:
            transport.send(messages("a"))
        assert caught.value.retryable
        other.execute("ROLLBACK")
    assert not transport.send(messages("a"))


def test_idle_connections_that_the_server_closed_are_replaced_unnoticed(postgresql: str, open_transport: Open) -> None:
    transport = open_transport(postgresql)
    transport.send(messages("a"))
    _kill_all(postgresql)
    assert not transport.send(messages("b")), "a message that was certainly not sent was reported as maybe sent"
    assert transport.stats(["q"])["q"].ready == 2


def test_a_consumer_whose_connections_are_killed_goes_on(postgresql: str, open_transport: Open) -> None:
    transport = open_transport(postgresql)
    consumer = consumer_of(transport)
    transport.send(messages("a", "b"))
    held = collect(consumer, 2)
    _kill_all(postgresql)
    assert not consumer.settle([Settlement(held[0].receipt)]), "the settling connection was idle: it is replaced"
    _kill_all(postgresql)
    with pytest.raises(ConnectionLost):  # the other one listens: it finds out when it is used
        consumer.fetch(1, 0.0)
    assert not consumer.fetch(1, 0.0).lost
    assert not consumer.extend(None)
    assert not consumer.settle([Settlement(held[1].receipt)])
    transport.send(messages("c"))
    assert [d.payload for d in collect(consumer, 1)] == [b"c"]


def _kill_all(url: str) -> None:
    """End all other sessions of a database, as a restart of the server would."""
    with psycopg.connect(url, autocommit=True) as admin:
        others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        admin.execute(f"SELECT pg_terminate_backend(pid) {others}")
        deadline = time.monotonic() + 5
        while admin.execute(f"SELECT count(*) {others}").fetchone() != (0,) and time.monotonic() < deadline:
            time.sleep(0.01)


def test_a_claim_whose_answer_was_lost_is_undone(url: str, open_transport: Open) -> None:
    """The server has given messages that nobody knows of: they must not wait for this consumer's death."""
    transport = open_transport(url)
    consumer = consumer_of(transport)
    transport.send(messages("a", "b"))
    strategy = transport.strategy
    claim = strategy.claim

    def broken(*arguments: Any, **more: Any) -> Any:
        claim(*arguments, **more)
        raise ConnectionResetError("the answer was lost")

    strategy.claim = broken  # type: ignore[method-assign]
    with pytest.raises(TransportError):
        consumer.fetch(10, 1.0)
    strategy.claim = claim  # type: ignore[method-assign]
    back = collect(consumer, 2)
    assert [(d.payload, d.deliveries) for d in back] == [(b"a", 1), (b"b", 1)]
    assert not consumer.settle([Settlement(d.receipt) for d in back])


def test_what_was_claimed_before_an_interruption_comes_with_the_next_fetch(url: str, open_transport: Open) -> None:
    """The second look of one fetch fails, or a signal handler raises: what the first one brought is not forgotten."""
    transport = open_transport(url)
    consumer = consumer_of(transport, "one", "two")
    transport.send(messages(*map(str, range(9)), queue="one"))
    strategy = transport.strategy
    claim = strategy.claim
    calls = 0

    def interrupted(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return claim(*arguments, **more)

    strategy.claim = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        consumer.fetch(10, 1.0)
    assert [d.payload for d in collect(consumer, 9)] == [b"%d" % i for i in range(9)]


def test_a_settlement_whose_answer_was_lost_may_be_repeated(url: str, open_transport: Open) -> None:
    transport = open_transport(url)
    consumer = consumer_of(transport)
    transport.send(messages("a", "b"))
    held = collect(consumer, 2)
    strategy = transport.strategy
    acknowledge = strategy.acknowledge

    def broken(*arguments: Any) -> Any:
        acknowledge(*arguments)
        raise ConnectionResetError("the answer was lost")

    settlements = [Settlement(d.receipt) for d in held]
    strategy.acknowledge = broken  # type: ignore[method-assign]
    with pytest.raises(TransportError):
        consumer.settle(settlements)
    strategy.acknowledge = acknowledge  # type: ignore[method-assign]
    assert not consumer.settle(settlements), "what the first attempt has done is not lost"
    assert {lost.receipt for lost in consumer.settle(settlements)} == {d.receipt for d in held}


def test_a_send_whose_answer_was_lost_is_maybe_sent(url: str, open_transport: Open) -> None:
    transport = open_transport(url)
    transport.declare([QueueSpec(name="q")])
    strategy = transport.strategy
    insert = strategy.insert

    def broken(*arguments: Any) -> Any:
        insert(*arguments)
        raise ConnectionResetError("the answer was lost")

    strategy.insert = broken  # type: ignore[method-assign]
    failures = transport.send(messages("a"))
    assert [(f.index, f.maybe_sent, f.retryable) for f in failures] == [(0, True, True)]
    strategy.insert = insert  # type: ignore[method-assign]
    assert [d.payload for d in collect(consumer_of(transport), 1)] == [b"a"]


def test_messages_of_a_vanished_consumer_are_found(url: str, open_transport: Open) -> None:
    """Somebody emptied the consumers' table: what they held belongs to nobody and must not stay so."""
    transport = open_transport(url)
    holder = consumer_of(transport)
    transport.send(messages("a"))
    (held,) = collect(holder, 1)
    transport.database.run(lambda c: transport.strategy.do(c, "DELETE FROM {consumers}"), "testing")
    other = consumer_of(transport)
    other._orphans_at = 0.0
    (again,) = collect(other, 1)
    assert (again.payload, again.deliveries) == (b"a", 2)
    assert [lost.receipt for lost in holder.fetch(1, 0.0).lost] == [held.receipt]
    assert not other.settle([Settlement(again.receipt)])


def test_a_consumer_that_was_given_up_starts_again(url: str, open_transport: Open) -> None:
    transport = open_transport(url)
    consumer = consumer_of(transport)
    transport.send(messages("a"))
    (held,) = collect(consumer, 1)
    transport.database.run(lambda c: transport.strategy.do(c, "UPDATE {consumers} SET expires = {now} - 1"), "testing")
    assert transport.database.run(transport.strategy.reap, "testing") == 1
    lost = consumer.extend(None)
    assert [entry.receipt for entry in lost] == [held.receipt]
    (again,) = collect(consumer, 1)
    assert again.deliveries == 2
    assert [entry.receipt for entry in consumer.settle([Settlement(held.receipt)])] == [held.receipt]
    assert not consumer.settle([Settlement(again.receipt)])


def test_a_name_that_is_too_long_is_refused_not_cut(mariadb: str, open_transport: Open) -> None:
    transport = open_transport(mariadb)
    with pytest.raises(TransportError, match="too long") as caught:
        transport.send(messages("x", queue="q" * 300))
    assert not caught.value.retryable


def test_text_that_the_database_cannot_hold_is_refused(postgresql: str, open_transport: Open) -> None:
    transport = open_transport(postgresql)
    for bad in ("nul\x00byte", "surrogate\ud800"):
        with pytest.raises(TransportError) as caught:
            transport.send([Outbound(id=bad, queue="q", payload=b"")])
        assert not caught.value.retryable
    assert not transport.send(messages("x"))


def test_queue_options_and_order_per_group_are_refused(sqlite: str, open_transport: Open) -> None:
    transport = open_transport(sqlite)
    with pytest.raises(NotSupported, match="order"):
        transport.declare([QueueSpec(name="q", ordered=True)])
    with pytest.raises(NotSupported, match="cursor"):
        transport.peek("q", after="nonsense")


# ------------------------------------------------------------------------------------------------------------- waking


def test_senders_notify_only_while_somebody_waits(postgresql: str, open_transport: Open) -> None:
    transport = open_transport(postgresql)
    consumer = consumer_of(transport)
    ring = "SELECT count(*) FROM {consumers} WHERE ring"
    transport.send(messages(*map(str, range(100))))
    assert scalar(transport, ring) == 0
    consumer.fetch(100, 0.0)
    consumer.fetch(1, 1.0)
    assert scalar(transport, ring) == 1, "a consumer that waits has to be notified"
    for _ in range(4):
        transport.send(messages(*map(str, range(10))))
        assert len(consumer.fetch(10, 1.0).deliveries) == 10
    assert scalar(transport, ring) == 0, "under load a consumer finds messages without being notified"


def test_another_process_rings_at_once(postgresql: str, open_transport: Open) -> None:
    """Not by one of the looks: those come after 15 ms, 100 ms and then every second."""
    transport = open_transport(postgresql)
    consumer = consumer_of(transport)
    consumer.fetch(1, 0.3)
    told: list[str] = []
    heard = consumer._ears.heard

    def noticing() -> list[tuple[str, str]]:
        found = heard()
        told.extend(channel for channel, _ in found)
        return found

    consumer._ears.heard = noticing  # type: ignore[method-assign]
    sender = open_transport(postgresql)
    sender.neighbours = type(sender.neighbours)()  # as if it were another process
    timer = threading.Timer(0.3, sender.send, ([*messages("a"), *messages("other", queue="another")],))
    timer.start()
    assert [d.payload for d in consumer.fetch(1, 10.0).deliveries] == [b"a"]
    timer.join()
    told.extend(channel for channel, _ in heard())
    assert told == [transport.channel("q")], "one notification per send and queue, and only of queues subscribed to"


def test_without_listen_postgresql_is_polled(postgresql: str, open_transport: Open) -> None:
    transport = open_transport(postgresql, listen=False, prepare=False)
    assert transport.capabilities.wake_up is WakeUp.POLL
    consumer = consumer_of(transport)
    consumer.fetch(1, 0.1)
    sender = open_transport(postgresql)
    sender.neighbours = type(sender.neighbours)()
    timer = threading.Timer(0.1, sender.send, (messages("a"),))
    timer.start()
    assert [d.payload for d in consumer.fetch(1, 10.0).deliveries] == [b"a"]
    timer.join()


def test_polling_slows_down_in_silence_and_recovers(sqlite: str, open_transport: Open) -> None:
    transport = open_transport(sqlite, poll_min=0.01, poll_max=0.08)
    consumer = consumer_of(transport)
    consumer.fetch(1, 0.4)
    assert consumer._interval == 0.08
    transport.send(messages("a"))
    assert collect(consumer, 1)
    assert consumer._interval == 0.01


def test_a_sender_in_the_same_process_wakes_at_once(url: str, open_transport: Open) -> None:
    transport = open_transport(url, poll_min=30.0, poll_max=30.0)
    consumer = consumer_of(transport)
    consumer.fetch(1, 0.0)
    sender = open_transport(url)
    timer = threading.Timer(0.2, sender.send, (messages("a"),))
    timer.start()
    started = time.monotonic()
    # Upkeep looks for delayed messages and dead consumers every second, not for messages.
    assert [d.payload for d in consumer.fetch(1, 20.0).deliveries] == [b"a"]
    assert time.monotonic() - started < 10.0
    timer.join()


# --------------------------------------------------------------------------------------------------------- one at once


def test_fair_shares_reach_every_queue_of_many() -> None:
    shares = Shares([Subscription(f"q{i}") for i in range(20)])
    for _ in range(20):
        first = shares.plan(1)[0][0]
        shares.took({first: 1})
    assert sorted(shares._clocks.values()) == [1.0] * 20


def test_weights_are_proportions() -> None:
    shares = Shares([Subscription("light", 1), Subscription("heavy", 3)], "weighted")
    taken = {"light": 0, "heavy": 0}
    for _ in range(400):
        first = shares.plan(1)[0][0]
        taken[first] += 1
        shares.took({first: 1})
    assert taken == {"light": 100, "heavy": 300}


def test_an_empty_queue_saves_nothing_up() -> None:
    shares = Shares([Subscription("idle"), Subscription("busy")])
    for _ in range(1000):
        shares.took({"busy": 1})
    run = 0
    while shares.plan(1)[0][0] == "idle":
        shares.took({"idle": 1})
        run += 1
    assert run <= 2


def test_a_batch_over_many_queues_takes_what_others_leave(url: str, open_transport: Open) -> None:
    transport = open_transport(url)
    transport.send(messages(*map(str, range(50)), queue="full"))
    consumer = consumer_of(transport, "empty", "full", "void", "nothing")
    assert len(consumer.fetch(40, 0.0).deliveries) == 40


def test_mysql_without_returning(mariadb: str, open_transport: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The statements for MySQL 8, which has no RETURNING, on MariaDB."""
    transport = open_transport(mariadb)
    strategy = transport.strategy
    assert isinstance(strategy, MySQL)
    assert strategy.mariadb
    strategy.mariadb = False
    consumer = consumer_of(transport)
    transport.send(messages(*map(str, range(6))))
    a, b, c, *_ = held = collect(consumer, 6)
    assert not consumer.settle([Settlement(a.receipt)])
    transport.database.run(
        lambda x: strategy.do(x, "UPDATE {messages} SET owner = -1 WHERE payload = :p", p=b"1"), "testing"
    )
    lost = consumer.settle([Settlement(d.receipt) for d in (b, c)])
    assert [entry.receipt for entry in lost] == [b.receipt]
    consumer.close()
    again = collect(consumer_of(transport), 3)
    assert [d.payload for d in again] == [d.payload for d in held[3:]]


def test_a_table_of_a_stranger_is_refused(url: str, open_transport: Open) -> None:
    transport = open_transport(url)
    name = transport.strategy.tables.messages.name
    transport.database.run(lambda c: c.exec_driver_sql(f"DROP TABLE {name}"), "testing")
    transport.database.run(lambda c: c.exec_driver_sql(f"CREATE TABLE {name} (something INT)"), "testing")
    with pytest.raises(SchemaMismatch, match="table_prefix"):
        transport.send(messages("x"))
