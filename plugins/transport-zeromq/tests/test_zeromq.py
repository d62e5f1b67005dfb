"""What is special about the hub: crashes with and without a journal, encryption, foreign frames, embedding."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from taskq.errors import (
    AuthenticationFailed,
    ConfigError,
    ConnectionFailed,
    ConnectionLost,
    NotSupported,
    PayloadTooLarge,
    SchemaMismatch,
    TransportError,
)
from taskq.message import RELEASE, Commit, Outbound, QueueSpec, Record, Settlement, Subscription
from taskq.spi import Durability, Ordering, TransportConfig, parse_urls
from taskq.testing.proxy import TcpProxy
from taskq_lib_zeromq import protocol
from taskq_lib_zeromq.hub import Hub, HubOptions, HubThread
from taskq_lib_zeromq.link import Link
from taskq_transport_zeromq.options import ZeroMQOptions
from taskq_transport_zeromq.transport import ZeroMQTransport
from tests.support.steps import PATIENCE, collect, consumer_of, payloads, persistently, send, send_at_last
from tests.support.zeromq_hubs import HubForge

Make = Callable[..., ZeroMQTransport]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[ZeroMQTransport] = []

    def make(url: str, *, lease_s: float = 10.0, opened: bool = True, **options: Any) -> ZeroMQTransport:
        options = {"timeout": PATIENCE, "connect_timeout": PATIENCE, "heartbeat": 1.0, **options}
        config = TransportConfig(urls=parse_urls(url), options=ZeroMQOptions(**options), lease_s=lease_s)
        transport = ZeroMQTransport(config)
        made.append(transport)
        if opened:
            transport.open()
        return transport

    yield make
    for transport in made:
        transport.close(timeout=0.5)


# ------------------------------------------------------------------------------------------------------- the journal


def test_durability_is_what_the_hub_does(zeromq_hubs: HubForge, tmp_path: Path, make: Make) -> None:
    assert make(zeromq_hubs.start().url).capabilities.durability is Durability.SERVER
    journalled = zeromq_hubs.start(journal=str(tmp_path / "journal"))
    assert make(journalled.url).capabilities.durability is Durability.DISK


def test_nothing_confirmed_is_lost_when_the_hub_is_killed_under_load(
    zeromq_hubs: HubForge, tmp_path: Path, make: Make
) -> None:
    hub = zeromq_hubs.start(journal=str(tmp_path / "journal"))
    transport = make(hub.url, timeout=5.0)
    accepted: set[str] = set()
    seen: set[str] = set()
    stop, problems = threading.Event(), []

    def sender(name: int) -> None:
        try:
            for i in range(1_000_000):
                if stop.is_set():
                    return
                batch = [Outbound(f"{name}-{i}-{j}", "q", f"{name}-{i}-{j}".encode()) for j in range(1 + i % 3)]
                try:
                    failed = {f.index for f in transport.send(batch)}
                except TransportError:
                    time.sleep(0.02)
                    continue
                accepted.update(o.id for n, o in enumerate(batch) if n not in failed)
        except BaseException as error:
            problems.append(error)

    def worker() -> None:
        try:
            mine = persistently(lambda: consumer_of(transport))
            while not stop.is_set():
                deliveries = persistently(lambda: mine.fetch(20, 0.05)).deliveries
                persistently(lambda d=deliveries: mine.settle([Settlement(x.receipt) for x in d]))
                seen.update(payloads(deliveries))
            persistently(lambda: mine.flush(PATIENCE))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=sender, args=(n,)) for n in range(2)] + [threading.Thread(target=worker)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        before = len(accepted)
        end = time.monotonic() + PATIENCE
        while len(accepted) < before + 100 and time.monotonic() < end and not problems:
            time.sleep(0.01)
        hub.kill()
        hub = hub.restart()
    time.sleep(0.2)
    stop.set()
    for thread in threads:
        thread.join(3 * PATIENCE)
        assert not thread.is_alive()
    assert not problems, problems
    rest = consumer_of(make(hub.url))
    while deliveries := rest.fetch(1000, 1.0).deliveries:
        seen.update(payloads(deliveries))
        rest.settle([Settlement(d.receipt) for d in deliveries])
    assert len(accepted) > 300
    assert not accepted - seen, f"confirmed and lost: {sorted(accepted - seen)[:5]}"


@pytest.mark.parametrize("journal", [True, False])
def test_what_a_worker_holds_survives_the_hubs_death(
    zeromq_hubs: HubForge, tmp_path: Path, make: Make, journal: bool
) -> None:
    """With a journal the hub knows it, without one the worker tells."""
    hub = zeromq_hubs.start(**({"journal": str(tmp_path / "journal")} if journal else {}))
    transport = make(hub.url)
    mine = consumer_of(transport)
    send(transport, "a", "b", "c", priority=7)
    held = collect(mine, 3)
    send(transport, "waiting")  # writes what was lazy in the journal, too
    hub.kill()
    hub = hub.restart()
    assert not persistently(mine.extend)
    other = consumer_of(make(hub.url))
    found = collect(other, 1) if journal else other.fetch(5, 0.2).deliveries
    assert payloads(found) == (["waiting"] if journal else [])
    assert not mine.settle([Settlement(held[0].receipt), Settlement(held[1].receipt, RELEASE)])
    assert not mine.flush(PATIENCE)
    (again,) = collect(other, 1)
    assert (again.payload, again.deliveries) == (b"b", 1)
    stats = make(hub.url).stats(["q"])["q"]
    assert (stats.ready, stats.in_flight) == (0, 3 if journal else 2)


def test_a_waiting_fetch_survives_a_restart(zeromq_hubs: HubForge, make: Make) -> None:
    hub = zeromq_hubs.start()
    mine = consumer_of(make(hub.url))
    mine.fetch(1, 0.0)
    hub.kill()
    hub = hub.restart()
    send(make(hub.url), "a")
    assert payloads(collect(mine, 1)) == ["a"]


def test_settlements_that_were_not_confirmed_are_told_again(zeromq_hubs: HubForge, tmp_path: Path, make: Make) -> None:
    hub = zeromq_hubs.start(journal=str(tmp_path / "journal"))
    with TcpProxy("127.0.0.1", int(hub.address.rpartition(":")[2])) as proxy:
        transport = make(f"zeromq://127.0.0.1:{proxy.port}")
        mine = consumer_of(transport)
        send(transport, *"abcdef")
        held = collect(mine, 6)
        mine.settle([Settlement(held[0].receipt)])
        mine.flush(PATIENCE)
        proxy.swallow("up")
        mine.settle([Settlement(d.receipt) for d in held[1:4]])  # goes nowhere
        hub.kill()
        hub = hub.restart()
        proxy.heal()
        proxy.cut()
        assert not persistently(lambda: mine.flush(PATIENCE))
    stats = make(hub.url).stats(["q"])["q"]
    assert (stats.ready, stats.in_flight) == (0, 2)


def test_the_journal_keeps_delays_counts_order_and_queues(zeromq_hubs: HubForge, tmp_path: Path, make: Make) -> None:
    hub = zeromq_hubs.start(journal=str(tmp_path / "journal"))
    transport = make(hub.url)
    transport.declare([QueueSpec(name="ordered", ordered=True), QueueSpec(name="plain")])
    send(transport, "later", delay=4.0)
    send(transport, "next year", delay=365 * 86400.0)
    send(transport, "low", priority=1)
    send(transport, "high", priority=9)
    send(transport, *"123", queue="ordered", group="g")
    mine = consumer_of(transport)
    high, low = collect(mine, 2)
    mine.settle([Settlement(low.receipt, RELEASE, counted=True), Settlement(high.receipt, RELEASE, 4.2)])
    mine.flush(PATIENCE)
    mine.close()
    hub.kill()
    hub = hub.restart()
    transport = make(hub.url)
    assert set(transport.stats(["q", "ordered", "plain", "no"])) == {"q", "ordered", "plain"}
    assert transport.stats(["q"])["q"].delayed == 3
    mine = consumer_of(transport)
    first, second, third = collect(mine, 3)
    assert payloads([first, second, third]) == ["low", "later", "high"]
    assert [d.deliveries for d in (first, second, third)] == [2, 1, 1]
    grouped = consumer_of(transport, "ordered")
    for expected in "123":
        (delivery,) = collect(grouped, 1)
        assert delivery.payload.decode() == expected
        assert not grouped.fetch(1, 0.05).deliveries
        grouped.settle([Settlement(delivery.receipt)])
    facts = transport.declare([QueueSpec(name="ordered", ordered=True)])["ordered"]
    assert not facts.created
    assert facts.capabilities.ordering is Ordering.GROUP


def test_the_journal_stays_in_proportion(tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old entries that matter are written again, so that what is of no use behind them can go; they survive."""
    monkeypatch.setattr("taskq_lib_zeromq.hub.journal._SEGMENT_BYTES", 20_000)
    monkeypatch.setattr("taskq_lib_zeromq.hub.journal._SMALL", 50_000)
    path = tmp_path / "journal"
    options = HubOptions(bind=("tcp://127.0.0.1:*",), journal=str(path))
    hub = HubThread(options)
    try:
        transport = make("zeromq" + hub.hub.addresses[0][3:])
        send(transport, "old", queue="old")
        send(transport, "held", queue="held", priority=3)
        keeper = consumer_of(transport, "held")
        (held,) = collect(keeper, 1)
        mine = consumer_of(transport)
        for i in range(60):
            send(transport, *(f"{i}-{j}-{'x' * 500}" for j in range(20)))
            deliveries = collect(mine, 20)
            mine.settle([Settlement(d.receipt) for d in deliveries])
        mine.flush(PATIENCE)
        send(transport, "last")
        deadline = time.monotonic() + PATIENCE
        while hub.hub._journal is not None and hub.hub._journal._bytes > 100_000 and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        # as a crash would leave it: what the hub holds in memory is gone
        hub.hub.broker.consumers.clear()
        hub.stop()
    with contextlib.closing(sqlite3.connect(path)) as database:
        (size,) = database.execute("SELECT sum(length(entries)) FROM log").fetchone()
    assert size < 150_000, f"720 kB have gone through, 600 bytes matter, {size} are left"
    hub = HubThread(HubOptions(bind=(hub.hub.addresses[0],), journal=str(path)))
    try:
        assert not persistently(keeper.extend)
        assert not keeper.settle([Settlement(held.receipt)])
        assert not persistently(lambda: keeper.flush(PATIENCE))
        assert payloads(collect(persistently(lambda: consumer_of(transport, "old")), 1)) == ["old"]
        assert payloads(collect(consumer_of(transport), 1)) == ["last"]
    finally:
        hub.stop()


def test_a_journal_that_cannot_be_written_accepts_nothing(tmp_path: Path, make: Make) -> None:
    hub = HubThread(HubOptions(bind=("tcp://127.0.0.1:*",), journal=str(tmp_path / "journal")))
    try:
        transport = make("zeromq" + hub.hub.addresses[0][3:], timeout=1.0)
        send(transport, "before")
        journal: Any = hub.hub._journal
        (pages,) = journal._database.execute("PRAGMA page_count").fetchone()
        journal._database.execute(f"PRAGMA max_page_count = {pages + 4}")
        outcomes = [transport.send([Outbound(f"{i}", "q", b"x" * 4000)]) for i in range(6)]
        refused = [f for failures in outcomes for f in failures]
        assert refused
        assert any(f.maybe_sent for f in refused), "the one that met the full disk is in doubt"
        assert "journal" in refused[-1].reason
        assert not refused[-1].maybe_sent
        assert refused[-1].retryable
        journal._database.execute("PRAGMA max_page_count = 1000000")
        end = time.monotonic() + PATIENCE
        while (failures := transport.send([Outbound("after", "q", b"after")])) and time.monotonic() < end:
            time.sleep(0.05)
        assert not failures
    finally:
        hub.stop()


def test_a_file_that_is_no_journal_is_left_alone(zeromq_hubs: HubForge, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(other)) as database:
        database.execute("CREATE TABLE mine (x)")
    with pytest.raises(RuntimeError, match="no journal of a taskq hub"):
        zeromq_hubs.start(journal=str(other))
    text = tmp_path / "text"
    text.write_text("hello " * 1000)
    with pytest.raises(RuntimeError, match="text"):
        zeromq_hubs.start(journal=str(text))
    assert text.read_text().startswith("hello")


def test_two_hubs_cannot_share_a_journal(zeromq_hubs: HubForge, tmp_path: Path) -> None:
    journal = str(tmp_path / "journal")
    zeromq_hubs.start(journal=journal)
    with pytest.raises(RuntimeError, match="another hub uses it"):
        zeromq_hubs.start(journal=journal)


def test_a_clean_stop_keeps_everything(zeromq_hubs: HubForge, tmp_path: Path, make: Make) -> None:
    hub = zeromq_hubs.start(journal=str(tmp_path / "journal"))
    send(make(hub.url), *"abc")
    hub.kill(signal.SIGTERM)
    hub = hub.restart()
    assert payloads(collect(consumer_of(make(hub.url)), 3)) == ["a", "b", "c"]


# -------------------------------------------------------------------------------------------------------- connections


def test_a_hub_that_is_not_there(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    transport = make(f"zeromq://127.0.0.1:{port}", opened=False, connect_timeout=20.0)
    began = time.monotonic()
    with pytest.raises(ConnectionFailed, match=rf"{port}.*taskq zeromq hub"):
        transport.open()
    assert time.monotonic() - began < 10.0, "a refused connection need not be waited for"


def test_sending_while_the_hub_is_away_is_bounded_and_certain(zeromq_hubs: HubForge, make: Make) -> None:
    hub = zeromq_hubs.start()
    transport = make(hub.url)
    send(transport, "a")
    hub.kill()
    time.sleep(0.1)
    with pytest.raises(ConnectionFailed):
        transport.send([Outbound("1", "q", b"x")])
    hub.restart()
    send(transport, "b")


def test_a_frozen_hub_is_noticed(zeromq_hubs: HubForge, make: Make) -> None:
    """A fetch that waits on a hub that does not even close its connections ends after three heartbeats."""
    hub = zeromq_hubs.start()
    mine = consumer_of(make(hub.url, heartbeat=0.2))
    mine.fetch(1, 0.0)
    hub.kill(signal.SIGSTOP)
    try:
        with pytest.raises(ConnectionLost):
            mine.fetch(1, 20.0)
    finally:
        hub.kill(signal.SIGCONT)


def test_the_second_hub_is_used_when_the_first_is_dead(zeromq_hubs: HubForge, make: Make) -> None:
    first, second = zeromq_hubs.start(), zeromq_hubs.start()
    transport = make(f"{first.url};{second.url}")
    send(transport, "a")
    first.kill()
    send_at_last(transport, "b")
    assert payloads(collect(consumer_of(make(second.url)), 1)) == ["b"]


def test_a_unix_socket(zeromq_hubs: HubForge, tmp_path: Path, make: Make) -> None:
    hub = zeromq_hubs.start(bind=[f"ipc://{tmp_path}/hub"])
    transport = make(f"zeromq://{tmp_path}/hub")
    send(transport, "a")
    assert payloads(collect(consumer_of(transport), 1)) == ["a"]
    assert hub.url == f"zeromq://{tmp_path}/hub"


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("zeromq://user:secret@localhost", "curve_public_key"),
        ("zeromq://localhost/path", "Unix socket"),
    ],
)
def test_urls_that_mean_nothing_are_refused(url: str, match: str) -> None:
    with pytest.raises(NotSupported, match=match) as caught:
        ZeroMQTransport(TransportConfig(urls=parse_urls(url), options=ZeroMQOptions()))
    assert "secret@" not in str(caught.value)


def test_a_journal_without_embedding_is_refused() -> None:
    with pytest.raises(NotSupported, match="--journal"):
        ZeroMQTransport(TransportConfig(urls=parse_urls("zeromq://localhost"), options=ZeroMQOptions(journal="x")))


# --------------------------------------------------------------------------------------------------------- encryption


def pair() -> tuple[str, str]:
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def test_an_encrypted_connection(zeromq_hubs: HubForge, make: Make) -> None:
    (server, server_secret), (public, secret), (stranger, stranger_secret) = pair(), pair(), pair()
    hub = zeromq_hubs.start(curve_secret_key=server_secret, client_keys=[public])
    transport = make(hub.url, curve_server_key=server, curve_public_key=public, curve_secret_key=secret)
    send(transport, "a")
    assert payloads(collect(consumer_of(transport), 1)) == ["a"]
    for options in (
        {},
        {"curve_server_key": server},
        {"curve_server_key": server, "curve_public_key": stranger, "curve_secret_key": stranger_secret},
        {"curve_server_key": stranger, "curve_public_key": public, "curve_secret_key": secret},
    ):
        refused = make(hub.url, opened=False, **options)
        with pytest.raises(AuthenticationFailed) as caught:
            refused.open()
        assert not caught.value.retryable
        assert secret not in str(caught.value)
    send(transport, "b")


def test_any_client_with_the_hubs_key_may_connect_where_none_are_listed(zeromq_hubs: HubForge, make: Make) -> None:
    server, server_secret = pair()
    hub = zeromq_hubs.start(curve_secret_key=server_secret)
    transport = make(hub.url, curve_server_key=server)
    send(transport, "a")
    with pytest.raises(AuthenticationFailed, match="curve_server_key"):
        make(hub.url)


def test_keys_for_a_hub_without_encryption_are_refused(zeromq_hubs: HubForge, make: Make) -> None:
    hub = zeromq_hubs.start()
    with pytest.raises(AuthenticationFailed, match="curve_server_key"):
        make(hub.url, curve_server_key=pair()[0])


def test_half_a_pair_of_keys_is_refused() -> None:
    for options in ({"curve_public_key": pair()[0]}, {"curve_server_key": pair()[0], "curve_secret_key": pair()[1]}):
        with pytest.raises(NotSupported, match="curve_server_key"):
            ZeroMQTransport(TransportConfig(urls=parse_urls("zeromq://localhost"), options=ZeroMQOptions(**options)))
    with pytest.raises(NotSupported, match="40 characters"):
        ZeroMQTransport(
            TransportConfig(urls=parse_urls("zeromq://localhost"), options=ZeroMQOptions(curve_server_key="short"))
        )


# ---------------------------------------------------------------------------------------------------- strange input


def test_foreign_frames_do_not_hurt_the_hub(zeromq_hubs: HubForge, make: Make) -> None:
    hub = zeromq_hubs.start()
    transport = make(hub.url)
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        stranger = stack.enter_context(context.socket(zmq.DEALER))
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.connect(hub.address)
        hello = protocol.encode(protocol.Hello(protocol.VERSION, "stranger"))
        frames: list[Any] = [
            b"", b"\xff" * 100, b"\x00", b"hello", protocol.encode([99, 1]), protocol.encode([2, 1, "no list"]),
            protocol.encode([6, 1, 10, True]), protocol.encode([7, 1, [1, 2]]), b"\x91" * 5000,
            protocol.encode([2, 1, [{"id": "x", "queue": "q", "payload": b"", "priority": 77}]]), hello,
            protocol.encode([2, 2, [{"id": "x", "queue": "q", "payload": b"", "priority": 77}]]),
            protocol.encode([6, 3, 10, True]), protocol.encode([3, 4, "c", True, -5, "odd", [["q", 0]], -1, -1, [7]]),
            protocol.encode([6, 5, -3, True]),
        ]  # fmt: skip
        for frame in frames:
            stranger.send(frame)
        stranger.send_multipart([b"a", b"b", b"c"])
        with socket.create_connection(("127.0.0.1", int(hub.address.rpartition(":")[2]))) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
        with socket.create_connection(("127.0.0.1", int(hub.address.rpartition(":")[2]))) as raw:
            raw.sendall(os.urandom(2000))
        send(transport, "a")
        assert payloads(collect(consumer_of(transport), 1)) == ["a"]


def test_a_client_of_another_version_is_told(zeromq_hubs: HubForge, make: Make, monkeypatch: Any) -> None:
    hub = zeromq_hubs.start()
    monkeypatch.setattr(protocol, "VERSION", 2)
    with pytest.raises(SchemaMismatch, match="version 1 of the protocol, the client 2"):
        make(hub.url)


def test_something_else_at_the_address(make: Make) -> None:
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        other = stack.enter_context(context.socket(zmq.ROUTER))
        other.setsockopt(zmq.LINGER, 0)
        port = other.bind_to_random_port("tcp://127.0.0.1")

        def answer() -> None:
            if other.poll(round(PATIENCE * 1000)):
                other.send_multipart([other.recv_multipart()[0], b"what?"])

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ConnectionFailed, match="no hub of taskq"):
            make(f"zeromq://127.0.0.1:{port}")
        thread.join()


def test_a_message_too_large(zeromq_hubs: HubForge, make: Make) -> None:
    transport = make(zeromq_hubs.start(max_message_bytes=1000).url)
    with pytest.raises(PayloadTooLarge, match="1000"):
        transport.send([Outbound("1", "q", b"x" * 1001)])
    batch = [Outbound(f"{i}", "q", b"x" * size) for i, size in enumerate((10, 1001, 1000, 5000, 3))]
    assert [(f.index, f.retryable, f.maybe_sent) for f in transport.send(batch)] == [
        (1, False, False),
        (3, False, False),
    ]
    assert [len(d.payload) for d in collect(consumer_of(transport), 3)] == [10, 1000, 3]


# --------------------------------------------------------------------------------------------------------- flow


def test_nothing_is_pushed_that_was_not_asked_for(zeromq_hubs: HubForge, make: Make) -> None:
    """A worker that is busy holds no more than it fetched: others can have the rest."""
    transport = make(zeromq_hubs.start().url)
    mine = consumer_of(transport)
    assert not mine.fetch(100, 0.05).deliveries
    send(transport, "a")
    assert payloads(mine.fetch(100, PATIENCE).deliveries) == ["a"]
    send(transport, *"bcd")
    other = consumer_of(transport)
    assert payloads(collect(other, 3)) == ["b", "c", "d"]
    assert transport.stats(["q"])["q"].in_flight == 4


def test_what_is_read_ahead_goes_back_when_it_is_not_wanted(zeromq_hubs: HubForge, make: Make) -> None:
    transport = make(zeromq_hubs.start().url)
    mine = consumer_of(transport, "q", "other")
    send(transport, *(f"{i:02}" for i in range(30)))
    assert payloads(mine.fetch(5, 1.0, ahead=20).deliveries) == [f"{i:02}" for i in range(5)]
    deadline = time.monotonic() + PATIENCE
    while transport.stats(["q"])["q"].in_flight != 25 and time.monotonic() < deadline:
        time.sleep(0.01)
    mine.subscribe([Subscription("other")])
    assert not mine.fetch(5, 0.05).deliveries
    stats = transport.stats(["q"])["q"]
    assert (stats.ready, stats.in_flight) == (25, 5)
    assert payloads(collect(consumer_of(transport), 25)) == [f"{i:02}" for i in range(5, 30)]


def test_the_orders_of_several_queues(zeromq_hubs: HubForge, make: Make) -> None:
    transport = make(zeromq_hubs.start().url)

    def first_of(order: Any, weights: dict[str, int]) -> list[str]:
        mine = transport.consumer()
        mine.subscribe([Subscription(q, w) for q, w in weights.items()], order=order)
        found = [mine.fetch(1, PATIENCE).deliveries[0].queue for _ in range(40)]
        mine.close()
        return found

    for queue in "abc":
        send(transport, *(f"{queue}{i}" for i in range(50)), queue=queue)
    assert first_of("strict", {"b": 1, "a": 1, "c": 1}) == ["b"] * 40
    fair = first_of("fair", {"a": 1, "b": 1, "c": 1})
    assert {q: fair.count(q) for q in "abc"} == {"a": 14, "b": 13, "c": 13}
    weighted = first_of("weighted", {"a": 1, "b": 30})
    assert weighted.count("b") > weighted.count("a") > -1


def test_many_queues_cost_no_more_round_trips(zeromq_hubs: HubForge, make: Make, monkeypatch: Any) -> None:
    transport = make(zeromq_hubs.start().url)
    names = [f"q{i}" for i in range(1000)]
    mine = consumer_of(transport, *names)
    mine.fetch(1, 0.0)
    assert not transport.send([Outbound(f"{i}", name, b"x") for i, name in enumerate(names)])
    frames: list[bytes] = []
    original = Link.send
    monkeypatch.setattr(Link, "send", lambda self, data: (frames.append(data), original(self, data))[1])
    seen: list[str] = []
    while len(seen) < 1000:
        seen += [d.queue for d in mine.fetch(64, PATIENCE).deliveries]
    assert sorted(seen) == sorted(names)
    assert len(frames) <= 1000 / 64 + 2


# ---------------------------------------------------------------------------------------------------- results, fused


def results(url: str, **options: Any) -> Any:
    from taskq.spi import StoreConfig
    from taskq_store_zeromq.options import ZeroMQStoreOptions
    from taskq_store_zeromq.store import ZeroMQStore

    store = ZeroMQStore(StoreConfig(urls=parse_urls(url), options=ZeroMQStoreOptions(timeout=PATIENCE, **options)))
    store.open()
    return store


def test_a_commit_whose_result_has_no_room_is_an_error_and_keeps_the_message(zeromq_hubs: HubForge, make: Make) -> None:
    hub = zeromq_hubs.start(result_bytes=2000, results_full="refuse")
    transport = make(hub.url)
    with contextlib.closing(results(hub.url)) as store:
        mine = consumer_of(transport)
        committer = mine.fuse(store)
        assert committer is not None
        send(transport, "a")
        (held,) = collect(mine, 1)
        commit = Commit(Settlement(held.receipt), Record("r", "SUCCESS", b"x" * 3000))
        with pytest.raises(TransportError, match=r"room.*result"):
            committer.commit([commit])
        assert transport.stats(["q"])["q"].in_flight == 1
        commit.record = Record("r", "SUCCESS", b"x" * 100)
        assert not committer.commit([commit])
        assert not mine.flush(PATIENCE)
        assert store.get(["r"])[0].payload == b"x" * 100
        assert transport.stats(["q"])["q"].in_flight == 0


def test_commits_survive_the_death_of_a_hub_with_a_journal(zeromq_hubs: HubForge, tmp_path: Path, make: Make) -> None:
    hub = zeromq_hubs.start(journal=str(tmp_path / "journal"))
    transport = make(hub.url)
    with contextlib.closing(results(hub.url)) as store:
        mine = consumer_of(transport)
        committer = mine.fuse(store)
        assert committer is not None
        send(transport, *"ab")
        held = collect(mine, 2)
        commits = [
            Commit(
                Settlement(d.receipt), Record(f"r{d.payload.decode()}", "SUCCESS", d.payload),
                (Outbound("n", "next", d.payload),),
            )
            for d in held
        ]  # fmt: skip
        assert not committer.commit(commits[:1])
        assert not mine.flush(PATIENCE)
        hub.kill()
        hub = hub.restart()
        assert not persistently(lambda: committer.commit(commits[1:]))
        assert not persistently(lambda: mine.flush(PATIENCE))
        assert [r.payload for r in store.get(["ra", "rb"])] == [b"a", b"b"]
        assert sorted(payloads(collect(consumer_of(transport, "next"), 2))) == ["a", "b"]
        assert transport.stats(["q"])["q"].in_flight == 0


# ---------------------------------------------------------------------------------------------------------- embedded

_PEER = """
import sys, time
from taskq.message import Outbound
from taskq.spi import TransportConfig, parse_urls
from taskq_transport_zeromq.options import ZeroMQOptions
from taskq_transport_zeromq.transport import ZeroMQTransport
t = ZeroMQTransport(TransportConfig(urls=parse_urls(sys.argv[1]), options=ZeroMQOptions(hub="embed")))
t.open()
t.send([Outbound("1", "q", b"from the first")])
print("ready", flush=True)
sys.stdin.read()
"""


def test_the_first_process_runs_the_hub_and_the_next_takes_over(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"zeromq://127.0.0.1:{taken.getsockname()[1]}"
    with subprocess.Popen(
        [sys.executable, "-c", _PEER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "ready\n"
        transport = make(url, hub="embed")
        mine = consumer_of(transport)
        (held,) = collect(mine, 1)
        assert held.payload == b"from the first"
        first.kill()
        first.wait()
        send_at_last(transport, "here now")  # the hub is in this process now
        assert payloads(collect(mine, 1)) == ["here now"]
        assert not mine.settle([Settlement(held.receipt)])
        assert not mine.flush(PATIENCE)
    other = make(url)
    assert other.stats(["q"])["q"].in_flight == 1
    transport.close()
    with pytest.raises(TransportError):
        other.stats(["q"])


def test_an_embedded_hub_may_have_a_journal(tmp_path: Path, make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"zeromq://127.0.0.1:{taken.getsockname()[1]}"
    for step in range(2):
        transport = make(url, hub="embed", journal=str(tmp_path / "journal"))
        assert transport.capabilities.durability is Durability.DISK
        if step:
            assert payloads(collect(consumer_of(transport), 1)) == ["kept"]
        else:
            send(transport, "kept")
        transport.close()


# ---------------------------------------------------------------------------------------------------------- command


def test_the_command_runs_a_hub_until_it_is_told_to_stop(tmp_path: Path, make: Make) -> None:
    secret = tmp_path / "secret"
    made = subprocess.run(
        [sys.executable, "-m", "taskq", "zeromq", "keys", str(secret)], capture_output=True, text=True, check=True
    )
    public = made.stdout.strip()
    assert secret.stat().st_mode & 0o077 == 0
    again = subprocess.run(
        [sys.executable, "-m", "taskq", "zeromq", "keys", str(secret)], capture_output=True, text=True, check=False
    )
    assert again.returncode == 1
    assert "cannot be written" in again.stderr
    with subprocess.Popen(
        [sys.executable, "-m", "taskq", "zeromq", "hub", "--bind", "tcp://127.0.0.1:*", "--secret-key-file",
         str(secret), "--log-level", "WARNING"], stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        transport = make("zeromq" + address.removeprefix("tcp"), curve_server_key=public)
        send(transport, "a")
        taken = subprocess.run(
            [sys.executable, "-m", "taskq", "zeromq", "hub", "--bind", address],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert taken.returncode == 1
        assert "cannot listen" in taken.stderr
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_a_hub_refuses_keys_that_are_none() -> None:
    with pytest.raises(ConfigError, match="taskq zeromq keys"):
        Hub(HubOptions(bind=("tcp://127.0.0.1:*",), curve_secret_key="x"))
    with pytest.raises(ConfigError, match="secret key"):
        Hub(HubOptions(bind=("tcp://127.0.0.1:*",), client_keys=frozenset({"x"})))
