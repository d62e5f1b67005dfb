"""What is special about AMQP: queue types, routing, delays, returns, foreign messages, rights."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pika
import pytest

from taskq.errors import AuthenticationFailed, NotSupported, QueueMissing, TransportError
from taskq.message import RELEASE, Delivery, Outbound, QueueSpec, Settlement
from taskq.spi import DeliveryCount, Support, TransportConfig, Url, parse_urls
from taskq.testing import TcpProxy
from taskq_lib_amqp.servers import credentials, virtual_host
from taskq_transport_amqp import delays
from taskq_transport_amqp.options import AmqpOptions
from taskq_transport_amqp.transport import AmqpTransport
from tests.support.rabbitmq_servers import ask, names
from tests.support.steps import PATIENCE, ack, collect, consumer_of, messages, nothing, opening

Make = Callable[..., AmqpTransport]


@pytest.fixture
def make(rabbitmq_url: str) -> Iterator[Make]:
    with ExitStack() as stack:

        def one(url: str = rabbitmq_url, **options: Any) -> AmqpTransport:
            options = {"timeout": PATIENCE, **options}
            config = TransportConfig(urls=parse_urls(url), options=AmqpOptions(**options), lease_s=30.0)
            return stack.enter_context(opening(AmqpTransport(config)))

        yield one


@pytest.fixture
def raw(rabbitmq_url: str) -> Iterator[Any]:
    """Another program's channel."""
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        yield connection.channel()


# ----------------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("text", "vhost", "user"),
    [
        ("amqp://guest@localhost//", "/", ("guest", "guest")),
        ("amqp://", "/", ("guest", "guest")),
        ("amqp://localhost/", "/", ("guest", "guest")),
        ("amqp://me:secret@localhost/%2F", "/", ("me", "secret")),
        ("amqp://me:@localhost/orders", "orders", ("me", "")),
        ("amqp://me:s%40@localhost//orders", "/orders", ("me", "s@")),
    ],
)
def test_urls_are_read_as_written(text: str, vhost: str, user: tuple[str, str]) -> None:
    url = Url.parse(text)
    assert (virtual_host(url), credentials(url)) == (vhost, user)


def test_wrong_password_and_unknown_virtual_host(make: Make, rabbitmq_url: str) -> None:
    url = Url.parse(rabbitmq_url)
    with pytest.raises(AuthenticationFailed, match="check user, password") as caught:
        make(Url(url.scheme, url.username, "wrong-secret", url.host, url.port, url.path).raw())
    assert not caught.value.retryable
    assert "wrong-secret" not in str(caught.value)
    with pytest.raises(AuthenticationFailed, match=r"'nowhere'.*add_vhost"):
        make(Url(url.scheme, url.username, url.password, url.host, url.port, "/nowhere").raw())


def test_tls_options_need_amqps(make: Make) -> None:
    with pytest.raises(NotSupported, match="amqps://"):
        make(tls_ca_file="ca.pem")


# -------------------------------------------------------------------------------------------------------- queues


def test_queue_types(make: Make, rabbitmq_url: str, server_url: Callable[[str], str]) -> None:
    """The transport's type, and a queue's own; capabilities of a queue that differs are told."""
    transport = make()
    facts = transport.declare([QueueSpec(name="q"), QueueSpec(name="c", options={"type": "classic"})])
    assert facts["q"].capabilities is None
    own = facts["c"].capabilities
    assert own is not None
    assert (own.priority, own.delivery_count) == (Support.NATIVE, DeliveryCount.REDELIVERED)
    rows = ask(server_url("rabbitmq"), "GET", f"queues/{rabbitmq_url.rpartition('/')[2]}?columns=name,type,arguments")
    found = {row["name"]: row for row in rows}
    assert (found["q"]["type"], found["c"]["type"]) == ("quorum", "classic")
    assert found["q"]["arguments"]["x-dead-letter-routing-key"] == "q.dead"
    assert not transport.send([*messages("low", queue="c", priority=1), *messages("high", queue="c", priority=8)])
    assert [d.payload for d in collect(consumer_of(transport, "c"), 2, limit=1)] == [b"high", b"low"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"type": "stream"}, "'quorum' and 'classic'"),
        ({"type": "classic", "delivery_limit": 3}, "delivery_limit"),
        ({"routing_keys": ["a"]}, "option 'exchange'"),
        ({"exchange": "e", "exchange_type": "x"}, "topic, fanout"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_wrong_queue_options_are_refused(make: Make, options: dict[str, Any], text: str) -> None:
    with pytest.raises(NotSupported, match=text):
        make().declare([QueueSpec(name="q", options=options)])


def test_a_queue_of_another_kind_is_not_taken_for_ours(make: Make, raw: Any) -> None:
    raw.queue_declare("theirs", durable=True)
    transport = make()
    with pytest.raises(NotSupported, match="inequivalent arg"):
        transport.declare([QueueSpec(name="theirs")])
    transport.declare([QueueSpec(name="theirs")], mode="verify")
    assert not transport.send(messages("a", queue="theirs"))
    ack(taker := consumer_of(transport, "theirs"), collect(taker, 1))


def test_a_queue_made_by_others_is_never_made_here(make: Make, raw: Any) -> None:
    transport = make()
    transport.declare([QueueSpec(name="theirs")], mode="none")
    (failure,) = transport.send(messages("a", queue="theirs"))
    assert (failure.maybe_sent, failure.retryable) == (False, False)
    with pytest.raises(QueueMissing):
        consumer_of(transport, "theirs")


@pytest.mark.parametrize("kind", ["quorum", "classic"])
def test_a_deleted_queue_is_made_again(make: Make, raw: Any, kind: str) -> None:
    """Deleted under a consumer that waits and a sender that knows it: both go on, nothing that is accepted vanishes.

    RabbitMQ 3.10 does not tell the consumer of a quorum queue that is deleted and made again at once.
    """
    transport, sender = make(queue_type=kind), make(queue_type=kind)
    taker = consumer_of(transport)
    assert not sender.send(messages("a"))
    collect(taker, 1)
    raw.queue_delete("q")
    assert not sender.send(messages("b"))
    assert [d.payload for d in collect(taker, 1)] == [b"b"]
    assert not sender.send(messages("c"))
    assert [d.payload for d in collect(taker, 1)] == [b"c"]


def test_natively_dead_lettered_messages_are_where_the_kernels_are(make: Make) -> None:
    """Beyond its own limit the server moves a message to QUEUE.dead, and keeps it until there is such a queue."""
    transport = make(delivery_limit=2)
    taker = consumer_of(transport)
    assert not transport.send(messages("poison"))
    for _ in range(3):
        (delivery,) = collect(taker, 1)
        assert not taker.settle([Settlement(delivery.receipt, RELEASE, counted=True)])
    nothing(taker)
    assert [d.payload for d in collect(consumer_of(transport, "q.dead"), 1)] == [b"poison"]


def test_a_foreign_message_is_delivered_as_it_is(make: Make, raw: Any) -> None:
    """With headers, properties and any content: for the kernel to judge, and never in the way."""
    transport = make()
    transport.declare([QueueSpec(name="q")])
    everything = pika.BasicProperties(
        content_type="text/plain", content_encoding="x", headers={"a": 1, "b": [True, None, {"c": "d"}]},
        delivery_mode=1, priority=7, correlation_id="1", reply_to="r", expiration="60000", message_id="m", timestamp=1,
        type="t", user_id=None, app_id="app",
    )  # fmt: skip
    raw.basic_publish("", "q", b"\xff\x00foreign", everything)
    raw.basic_publish("", "q", b"", pika.BasicProperties())
    raw.basic_publish("", "q", b"y" * 400_000, everything)
    assert not transport.send(messages("ours"))
    taker = consumer_of(transport)
    found = collect(taker, 4)
    assert [len(d.payload) for d in found] == [9, 0, 400_000, 4]
    assert {d.deliveries for d in found} == {1}
    ack(taker, found)


def test_too_large_for_the_server(make: Make) -> None:
    transport = make(max_payload_bytes=1000)
    failures = transport.send([*messages("a"), Outbound("big", "q", b"x" * 1001), *messages("b")])
    assert [(f.index, f.maybe_sent, f.retryable) for f in failures] == [(1, False, False)]
    assert "1001 bytes" in failures[0].reason
    assert [d.payload for d in collect(consumer_of(transport), 2)] == [b"a", b"b"]


# ------------------------------------------------------------------------------------------------------- routing


def test_topic_and_fan_out(make: Make) -> None:
    """A routing key goes to the queue's exchange, which copies to every queue that is bound for it."""
    transport = make()
    topic = {"exchange": "events"}
    every = {"exchange": "all", "exchange_type": "fanout"}
    transport.declare([
        QueueSpec(name="eu", options={**topic, "routing_keys": ["order.eu.*"]}),
        QueueSpec(name="any", options={**topic, "routing_keys": ["order.#", "bill.#"]}),
        QueueSpec(name="f1", options=every),
        QueueSpec(name="f2", options=every),
    ])  # fmt: skip
    assert not transport.send([
        *messages("eu", queue="eu", routing_key="order.eu.new"),
        *messages("us", queue="eu", routing_key="order.us.new"),
        *messages("direct", queue="eu"),
        *messages("all", queue="f1", routing_key=""),
    ])  # fmt: skip

    def got(queue: str, n: int) -> set[bytes]:
        taker = consumer_of(transport, queue)
        found = collect(taker, n)
        nothing(taker)
        ack(taker, found)
        taker.close()
        return {d.payload for d in found}

    assert got("eu", 2) == {b"eu", b"direct"}
    assert got("any", 2) == {b"eu", b"us"}
    assert got("f1", 1) == got("f2", 1) == {b"all"}


def test_what_no_queue_is_bound_for_is_refused(make: Make) -> None:
    transport = make()
    transport.declare([QueueSpec(name="eu", options={"exchange": "events", "routing_keys": ["order.eu"]})])
    batch = messages("1", queue="eu", routing_key="nowhere") + messages("2", queue="eu", routing_key="order.eu")
    (failure,) = transport.send(batch)
    assert (failure.index, failure.maybe_sent, failure.retryable) == (0, False, False)
    for fields, text in (({"routing_key": "x", "queue": "other"}, "exchange"), ({"group": "g"}, "group")):
        (failure,) = transport.send(messages("x", **fields))
        assert text in failure.reason
    (failure,) = transport.send(messages("x", queue="eu", routing_key="order.eu", delay=1.0))
    assert "delay" in failure.reason


# -------------------------------------------------------------------------------------------------------- delays


def test_levels_add_up() -> None:
    for delay in (0.001, 0.032, 0.5, 3.3, 9.99, 10.0, 3600.0, 86400.0, 24 * 86400.0):
        total = sum(delays.UNIT_S * 2**level for level in delays.levels_of(delay))
        assert delay <= total + 1e-6
        assert total <= delay + (0.512 if delay >= 10 else delays.UNIT_S) + 1e-6
        levels = delays.levels_of(delay)
        assert list(levels) == sorted(set(levels), reverse=True)


def test_a_long_delay_does_not_hold_up_a_short_one(make: Make) -> None:
    transport = make()
    taker = consumer_of(transport)
    assert not transport.send(
        messages("hour", delay=3600.0) + messages("soon", delay=0.3) + messages("sooner", delay=0.1)
    )
    assert [d.payload for d in collect(taker, 2, limit=1)] == [b"sooner", b"soon"]
    nothing(taker)
    assert transport.purge(["q"]) == {"q": 1}


def test_queues_with_like_names_do_not_get_each_others_delayed_messages(make: Make) -> None:
    transport = make()
    wanted = ["q", "a.q", "q.a", "#", "*"]
    for name in wanted:
        assert not transport.send(messages(f"to {name}", queue=name, delay=0.1))
    for name in wanted:
        taker = consumer_of(transport, name)
        assert [d.payload.decode() for d in collect(taker, 1)] == [f"to {name}"]
        nothing(taker)


def test_a_message_delayed_for_a_deleted_queue_is_kept(make: Make, raw: Any) -> None:
    """It waits where it is until the queue is there again and somebody sends it something delayed."""
    transport = make()
    assert not transport.send(messages("first", delay=0.2))
    raw.queue_delete("q")
    time.sleep(0.5)
    later = make()
    assert not later.send(messages("second", delay=0.2))
    assert {d.payload for d in collect(consumer_of(later), 2)} == {b"first", b"second"}


# ----------------------------------------------------------------------------------------------------- consuming


def test_what_nobody_fetches_is_given_back(make: Make) -> None:
    """A worker in a long task does not keep messages from others that it has not even looked at."""
    transport = make()
    assert not transport.send(messages(*map(str, range(50))))
    busy = consumer_of(transport)
    held = busy.fetch(10, 2.0, ahead=30).deliveries
    free = consumer_of(make())
    rest = collect(free, 50 - len(held))
    assert {d.payload for d in held}.isdisjoint(d.payload for d in rest)
    ack(busy, list(held))
    ack(free, rest)


def test_many_queues_on_one_consumer(make: Make) -> None:
    transport = make(queue_type="classic")
    queues = [f"q{i}" for i in range(60)]
    taker = consumer_of(transport, *queues)
    assert not transport.send([o for q in queues for o in messages(*(f"{q}-{i}" for i in range(5)), queue=q)])
    found = []
    while len(found) < 300:
        more = collect(taker, 1, limit=64)
        ack(taker, more)
        found += more
    assert len({d.payload for d in found}) == 300
    assert all(d.payload.decode().startswith(f"{d.queue}-") for d in found)


def test_fewer_slots_than_queues(make: Make) -> None:
    """With a credit of two, five queues are all served, and the consumer never holds more than two."""
    transport = make()
    queues = [f"q{i}" for i in range(5)]
    taker = consumer_of(transport, *queues, credit=2)
    for q in queues:
        assert not transport.send(messages("1", "2", queue=q))
    seen: list[Delivery] = []
    while len(seen) < 10:
        found = collect(taker, 1, limit=10)
        assert len(found) <= 2
        seen += found
        ack(taker, found)
    assert {d.queue for d in seen[:6]} >= set(queues[:4]), "some queue was passed over"
    late = threading.Timer(0.3, lambda: transport.send(messages("late", queue="q4")))
    late.start()
    assert [d.payload for d in collect(taker, 1)] == [b"late"]
    late.join()


def test_a_half_open_connection_is_noticed(make: Make, rabbitmq_url: str) -> None:
    """Nothing comes from the server any more, and nothing says so: the heartbeat does, on both sides."""
    url = Url.parse(rabbitmq_url)
    assert url.host is not None
    assert url.port is not None
    with TcpProxy(url.host, url.port) as proxy:
        through = Url(url.scheme, url.username, url.password, "127.0.0.1", proxy.port, url.path).raw()
        transport = make(through, heartbeat=1, timeout=PATIENCE, connect_timeout=PATIENCE)
        taker = consumer_of(transport)
        assert not transport.send(messages("a"))
        held = collect(taker, 1)
        proxy.stall()
        other = consumer_of(make())
        (again,) = collect(other, 1)
        assert (again.payload, again.deliveries) == (b"a", 2)
        lost = []
        end = time.monotonic() + PATIENCE
        while not lost and time.monotonic() < end:
            try:
                lost += taker.fetch(1, 0.5).lost
            except TransportError as error:
                if not error.retryable:
                    raise
        assert [loss.receipt for loss in lost] == [held[0].receipt]
        ack(other, [again])
        transport.close(timeout=1.0)


def test_nothing_is_left_on_the_server(make: Make, rabbitmq_url: str, server_url: Callable[[str], str]) -> None:
    """Consumers and clients leave the queues that were declared, and no others."""
    transport = make()
    transport.declare([QueueSpec(name="q")])
    before = names(server_url("rabbitmq"), rabbitmq_url)
    for _ in range(3):
        taker = consumer_of(transport)
        assert not transport.send(messages("a"))
        ack(taker, collect(taker, 1))
        taker.close()
    assert names(server_url("rabbitmq"), rabbitmq_url) == before == {"q"}
