"""What is special about the memory transport: names, the virtual clock, forks, and its speed's shortcuts."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from taskq.errors import ConfigError, NotSupported, TransportClosed, UrlError
from taskq.message import RELEASE, Commit, Outbound, QueueSpec, Record, Settlement, Subscription
from taskq.spi import SYSTEM_CLOCK, NoOptions, Ordering, StoreConfig, TransportConfig, parse_urls
from taskq.testing import VirtualClock
from taskq.testing.base import eventually, unique
from taskq.testing.faults import in_a_fork
from taskq_lib_memory import Bell, forget
from taskq_store_memory.store import MemoryStore
from taskq_transport_memory.consumer import MemoryConsumer
from taskq_transport_memory.transport import MemoryTransport

Opener = Callable[..., MemoryTransport]


@pytest.fixture
def name() -> Iterator[str]:
    name = unique("memory")
    yield name
    forget(name)


@pytest.fixture
def opened() -> Iterator[Opener]:
    transports: list[MemoryTransport] = []

    def open_one(url: str = "memory://", clock: Any = SYSTEM_CLOCK, lease_s: float | None = None) -> MemoryTransport:
        config = TransportConfig(urls=parse_urls(url), options=NoOptions(), clock=clock, lease_s=lease_s)
        transport = MemoryTransport(config)
        transport.open()
        transports.append(transport)
        return transport

    yield open_one
    for transport in transports:
        transport.close()


def message(payload: str, queue: str = "q", **fields: Any) -> Outbound:
    return Outbound(payload, queue, payload.encode(), **fields)


def consumer_of(transport: MemoryTransport, *queues: str) -> MemoryConsumer:
    consumer = transport.consumer()
    consumer.subscribe([Subscription(q) for q in queues or ("q",)])
    return consumer


def payloads(consumer: MemoryConsumer, limit: int = 100, wait: float = 0.0) -> list[str]:
    return [d.payload.decode() for d in consumer.fetch(limit, wait).deliveries]


# ----------------------------------------------------------------------------------------------------- names


def test_without_a_name_each_transport_is_alone(opened: Opener) -> None:
    opened().send([message("a")])
    assert payloads(consumer_of(opened())) == []


def test_transports_of_one_name_share_a_broker_that_outlives_them(opened: Opener, name: str) -> None:
    first = opened(f"memory://{name}")
    first.send([message("a")])
    first.close()
    assert payloads(consumer_of(opened(f"memory://{name}"))) == ["a"]
    forget(name)
    assert payloads(consumer_of(opened(f"memory://{name}"))) == []


@pytest.mark.parametrize(
    "url", ["memory://host:80", "memory://user@name", "memory://name/path", "memory://a;memory://b"]
)
def test_urls_that_mean_nothing_here_are_refused(opened: Opener, url: str) -> None:
    with pytest.raises(UrlError, match="memory"):
        opened(url)


def test_one_name_has_one_clock(opened: Opener, name: str) -> None:
    opened(f"memory://{name}", VirtualClock())
    with pytest.raises(ConfigError, match="clock"):
        opened(f"memory://{name}")


# ----------------------------------------------------------------------------------------------- virtual clock


def test_delays_pass_when_the_clock_is_moved(opened: Opener) -> None:
    clock = VirtualClock()
    transport = opened(clock=clock)
    transport.send([message("in an hour", delay=3600.0), message("in two", delay=7200.0)])
    consumer = consumer_of(transport)
    assert payloads(consumer, wait=0.02) == []
    clock.advance(3599.0)
    assert payloads(consumer) == []
    clock.advance(1.0)
    assert payloads(consumer) == ["in an hour"]
    assert transport.stats(["q"])["q"].delayed == 1


def test_moving_the_clock_wakes_a_waiting_fetch(opened: Opener) -> None:
    clock = VirtualClock()
    transport = opened(clock=clock)
    transport.send([message("later", delay=3600.0)])
    consumer = consumer_of(transport)
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.extend(payloads(consumer, wait=7200.0)))
    thread.start()
    eventually(5.0, "the fetch waits", lambda: transport.server.queues.waiting)
    clock.advance(3600.0)
    thread.join(5.0)
    assert found == ["later"]


def test_moving_the_clock_past_a_wait_ends_it(opened: Opener) -> None:
    clock = VirtualClock()
    transport = opened(clock=clock)
    consumer = consumer_of(transport)
    thread = threading.Thread(target=consumer.fetch, args=(1, 60.0))
    thread.start()
    eventually(5.0, "the fetch waits", lambda: transport.server.queues.waiting)
    clock.advance(61.0)
    thread.join(5.0)
    assert not thread.is_alive()


def test_leases_end_when_the_clock_is_moved(opened: Opener, name: str) -> None:
    clock = VirtualClock()
    first, second = (opened(f"memory://{name}", clock, lease_s=10.0) for _ in range(2))
    first.send([message("a")])
    holder, other = consumer_of(first), consumer_of(second)
    (held,) = holder.fetch(1, 0.0).deliveries
    clock.advance(9.0)
    assert payloads(other) == []
    clock.advance(1.0)
    (again,) = other.fetch(1, 0.0).deliveries
    assert again.deliveries == 2
    assert [entry.receipt for entry in holder.settle([Settlement(held.receipt)])] == [held.receipt]


def test_who_asks_for_work_keeps_its_lease(opened: Opener) -> None:
    clock = VirtualClock()
    transport = opened(clock=clock, lease_s=10.0)
    transport.send([message("a")])
    holder = consumer_of(transport)
    (held,) = holder.fetch(1, 0.0).deliveries
    clock.advance(86400.0)  # nobody else has looked meanwhile
    assert not holder.fetch(1, 0.0).lost
    assert not holder.settle([Settlement(held.receipt)])


# ------------------------------------------------------------------------------------------------------ forks


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_starts_empty_and_says_so(opened: Opener, name: str) -> None:
    transport = opened(f"memory://{name}")
    transport.send([message("the parent's")])

    def child() -> None:
        with pytest.raises(TransportClosed, match="process"):
            transport.send([message("x")])
        said: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("taskq.memory").addHandler(handler)
        for _ in range(2):
            assert payloads(consumer_of(opened(f"memory://{name}"))) == []
        assert len(said) == 1, "the warning comes once"
        assert "starts empty" in said[0]

    assert in_a_fork(10.0, child) == ""
    assert payloads(consumer_of(transport)) == ["the parent's"]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_the_broker_is_locked(opened: Opener, name: str) -> None:
    transport = opened(f"memory://{name}")
    with transport.server.lock:
        assert in_a_fork(10.0, lambda: opened(f"memory://{name}").send([message("x")])) == ""


# ----------------------------------------------------------------------------------------------------- order


def test_a_plain_queue_keeps_its_order_and_says_so(opened: Opener) -> None:
    transport = opened()
    facts = transport.declare([QueueSpec(name="plain"), QueueSpec(name="ordered", ordered=True)])
    assert (facts["plain"].capabilities.ordering, facts["ordered"].capabilities.ordering) == (
        Ordering.QUEUE,
        Ordering.GROUP,
    )
    assert (facts["plain"].created, transport.declare([QueueSpec(name="plain")])["plain"].created) == (True, False)


def test_a_queue_with_messages_cannot_become_ordered(opened: Opener) -> None:
    transport = opened()
    transport.send([message("a", group="g")])
    with pytest.raises(NotSupported, match="holds messages"):
        transport.declare([QueueSpec(name="q", ordered=True)])


def test_a_delayed_release_holds_its_group(opened: Opener) -> None:
    clock = VirtualClock()
    transport = opened(clock=clock)
    transport.declare([QueueSpec(name="q", ordered=True)])
    transport.send([message("1", group="g"), message("2", group="g"), message("other")])
    consumer = consumer_of(transport)
    first, other = consumer.fetch(9, 0.0).deliveries
    consumer.settle([Settlement(first.receipt, RELEASE, 10.0), Settlement(other.receipt)])
    assert payloads(consumer) == []
    clock.advance(10.0)
    assert payloads(consumer) == ["1"]


def test_a_lost_lease_holds_its_group(opened: Opener, name: str) -> None:
    clock = VirtualClock()
    transport = opened(f"memory://{name}", clock, lease_s=1.0)
    transport.declare([QueueSpec(name="q", ordered=True)])
    transport.send([message("1", group="g"), message("2", group="g")])
    assert payloads(consumer_of(transport)) == ["1"]
    clock.advance(2.0)
    assert payloads(consumer_of(transport)) == ["1"]


def test_purging_an_ordered_queue_frees_its_groups(opened: Opener) -> None:
    transport = opened()
    transport.declare([QueueSpec(name="q", ordered=True)])
    transport.send([message(f"{i}", group="g") for i in range(3)])
    consumer = consumer_of(transport)
    (held,) = consumer.fetch(1, 0.0).deliveries
    assert transport.purge(["q"]) == {"q": 2}
    transport.send([message("next", group="g")])
    assert payloads(consumer) == []
    consumer.settle([Settlement(held.receipt)])
    assert payloads(consumer) == ["next"]


def test_groups_in_a_plain_queue_are_carried_and_not_held(opened: Opener) -> None:
    transport = opened()
    transport.send([message("1", group="g"), message("2", group="g")])
    deliveries = consumer_of(transport).fetch(9, 0.0).deliveries
    assert [(d.payload, d.group) for d in deliveries] == [(b"1", "g"), (b"2", "g")]


def test_shares_of_a_batch_follow_the_weights(opened: Opener) -> None:
    transport = opened()
    transport.send([message("x", q) for q in "abc" for _ in range(100)])
    consumer = transport.consumer()
    consumer.subscribe([Subscription("a", 1), Subscription("b", 2), Subscription("c", 7)], order="weighted")
    assert Counter(d.queue for d in consumer.fetch(50, 0.0).deliveries) == {"a": 5, "b": 10, "c": 35}
    one_by_one = Counter(consumer.fetch(1, 0.0).deliveries[0].queue for _ in range(50))
    assert one_by_one == {"a": 5, "b": 10, "c": 35}


def test_an_empty_queue_saves_up_no_share(opened: Opener) -> None:
    transport = opened()
    transport.send([message("x", "a") for _ in range(100)])
    consumer = consumer_of(transport, "a", "b")
    assert len(consumer.fetch(60, 0.0).deliveries) == 60
    transport.send([message("x", "b") for _ in range(100)])
    assert Counter(d.queue for d in consumer.fetch(20, 0.0).deliveries) == {"a": 10, "b": 10}


# --------------------------------------------------------------------------------------------------- the rest


def test_a_priority_out_of_range_fails_alone(opened: Opener) -> None:
    transport = opened()
    failures = transport.send([message("a"), message("b", priority=10), message("c", priority=-1)])
    assert [(f.index, f.retryable, f.maybe_sent) for f in failures] == [(1, False, False), (2, False, False)]
    assert payloads(consumer_of(transport)) == ["a"]


def test_messages_wake_as_many_consumers_as_there_are_messages(opened: Opener) -> None:
    transport = opened()
    consumers = [consumer_of(transport) for _ in range(3)]
    found: list[str] = []
    threads = [threading.Thread(target=lambda c=c: found.extend(payloads(c, 1, 10.0))) for c in consumers]
    for thread in threads:
        thread.start()
    eventually(5.0, "all wait", lambda: len(transport.server.queues.waiting) == 3)
    transport.send([message("a"), message("b"), message("c")])
    for thread in threads:
        thread.join(5.0)
    assert sorted(found) == ["a", "b", "c"]


def test_a_consumer_that_closes_passes_its_wake_up_on(opened: Opener) -> None:
    transport = opened()
    first, second = consumer_of(transport), consumer_of(transport)
    for consumer in (first, second):
        transport.server.queues.waiting[consumer] = None
    transport.send([message("a")])
    assert list(transport.server.queues.waiting) == [second], "one message wakes one consumer"
    first.close()
    assert not transport.server.queues.waiting


def test_a_page_goes_on_after_its_last_message_has_gone(opened: Opener) -> None:
    transport = opened()
    transport.send([message(f"{i}") for i in range(6)])
    page = transport.peek("q", limit=2)
    consumer = consumer_of(transport)
    consumer.settle([Settlement(d.receipt) for d in consumer.fetch(3, 0.0).deliveries])
    assert [p.id for p in transport.peek("q", after=page[-1].cursor)] == ["3", "4", "5"]


def test_fuse_needs_the_same_server(opened: Opener, name: str) -> None:
    def store(url: str) -> MemoryStore:
        store = MemoryStore(StoreConfig(urls=parse_urls(url), options=NoOptions()))
        store.open()
        return store

    consumer = consumer_of(opened(f"memory://{name}"))
    same, other = store(f"memory://{name}"), store("memory://")
    assert consumer.fuse(other) is None
    committer = consumer.fuse(same)
    assert committer is not None
    opened(f"memory://{name}").send([message("a")])
    (delivery,) = consumer.fetch(1, 0.0).deliveries
    assert not committer.commit([Commit(Settlement(delivery.receipt), Record("a", "SUCCESS", b"r"))])
    assert same.get(["a"]) != [None]


def test_listeners_keep_a_bounded_number_of_broadcasts(opened: Opener) -> None:
    transport = opened()
    transport.listen("c", 0.0)
    for i in range(10_005):
        transport.broadcast("c", b"%d" % i)
    heard = transport.listen("c", 0.0)
    assert (len(heard), heard[0]) == (10_000, b"5")


def test_a_bell_rung_often_rings_once() -> None:
    bell = Bell()
    bell.ring()
    bell.ring()
    started = time.monotonic()
    assert bell.wait(5.0)
    assert not bell.wait(0.0)
    assert not bell.wait(0.05)
    assert time.monotonic() - started < 5.0
