"""What is pushed to a consumer: how several queues share it, and what becomes of what nobody looks at."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from taskq.message import Subscription
from taskq.spi import TransportConfig, parse_urls
from taskq_transport_amqp.options import AmqpOptions
from taskq_transport_amqp.transport import AmqpTransport
from tests.support.steps import PATIENCE, ack, collect, consumer_of, opening, persistently, send

Make = Callable[..., AmqpTransport]
kinds = pytest.mark.parametrize("kind", ["quorum", "classic"])


@pytest.fixture
def make(rabbitmq_url: str) -> Iterator[Make]:
    with ExitStack() as stack:

        def one(kind: str = "quorum") -> AmqpTransport:
            options = AmqpOptions(queue_type=kind, timeout=PATIENCE)
            config = TransportConfig(urls=parse_urls(rabbitmq_url), options=options, lease_s=30.0)
            return stack.enter_context(opening(AmqpTransport(config)))

        yield one


def numbers(n: int) -> list[str]:
    return [str(i) for i in range(n)]


@kinds
def test_a_queue_that_fell_silent_keeps_no_room_from_the_others(make: Make, kind: str) -> None:
    """What one queue was allowed for and does not use goes to another, though nothing is settled meanwhile."""
    transport = make(kind)
    taker = consumer_of(transport, "a", "b", "c")
    send(transport, "a", queue="a")
    found = collect(taker, 1, limit=9)
    assert not taker.fetch(8, 0.1).deliveries  # now a may push what is left
    send(transport, *numbers(8), queue="b")
    found += collect(taker, 8)
    send(transport, "late", queue="c")
    found += collect(taker, 1)
    assert len({d.payload for d in found}) == 10
    ack(taker, found)


@kinds
def test_it_comes_to_a_fetch_that_waits_already(make: Make, kind: str) -> None:
    """The room is moved while the fetch waits: nobody has to call again, or to settle anything."""
    transport = make(kind)
    taker = consumer_of(transport, "a", "b")
    send(transport, "a", queue="a")
    found = collect(taker, 1, limit=9)
    assert not taker.fetch(8, 0.1).deliveries
    send(transport, "first", queue="b")
    found += collect(taker, 1, limit=8)
    late = threading.Timer(0.2, send, (transport, *numbers(3)), {"queue": "b"})
    late.start()
    before = time.monotonic()
    found += taker.fetch(7, PATIENCE).deliveries
    assert time.monotonic() - before < PATIENCE
    late.join()
    found += collect(taker, 5 - len(found)) if len(found) < 5 else []
    ack(taker, found)


def test_quiet_queues_take_no_slots_from_a_busy_one(make: Make) -> None:
    """As many queues as slots, and work in one of them only: it gets every slot, and is not taken ahead of them."""
    transport = make()
    taker = consumer_of(transport, *(f"q{i}" for i in range(8)))
    send(transport, *numbers(20), queue="q3")
    found = collect(taker, 8)
    found += collect(consumer_of(make(), "q3"), 12 - 1)  # one may have been pushed ahead
    assert len({d.payload for d in found}) == len(found)


def test_slots_that_do_not_divide_by_queues(make: Make) -> None:
    """Three busy queues and eight slots: all eight are used."""
    transport = make()
    for queue in "abc":
        send(transport, *numbers(10), queue=queue)
    taker = consumer_of(transport, "a", "b", "c")
    found = collect(taker, 8)
    assert {d.queue for d in found} == set("abc")
    ack(taker, found)


@pytest.mark.parametrize("credit", [40, 1000])
def test_a_queue_subscribed_later_gets_its_share(make: Make, credit: int) -> None:
    """Even where all that may be held was promised to the first one, which uses it."""
    transport = make()
    taker = consumer_of(transport, "a", credit=credit)
    send(transport, *numbers(400), queue="a")
    held = collect(taker, 40)
    taker.subscribe([Subscription("a"), Subscription("b")])
    send(transport, "late", queue="b")
    end = time.monotonic() + PATIENCE
    while b"late" not in {d.payload for d in held}:
        assert time.monotonic() < end, "the later queue was passed over"
        ack(taker, [held.pop(0)])
        held += taker.fetch(1, 0.1).deliveries
    assert b"399" not in {d.payload for d in held}, "the later queue had to wait for the end of the first"


@pytest.mark.parametrize("limit", [1, 20])
def test_weights_are_kept_while_messages_are_pushed(make: Make, limit: int) -> None:
    """Of what has arrived; a queue that the server is slow to push from is not waited for."""
    transport = make("classic")
    weights = {"a": 1, "b": 3, "c": 6}
    for queue in weights:
        send(transport, *numbers(400), queue=queue)
    taker = transport.consumer()
    taker.credit(1000, 1 << 30)
    taker.subscribe([Subscription(q, w) for q, w in weights.items()], order="weighted")
    counts: Counter[str] = Counter()
    for goal in (150, 300):  # the shares settle while the first messages are worked off
        counts.clear()
        while counts.total() < goal:
            found = collect(taker, 1, limit=limit)
            counts.update(d.queue for d in found)
            ack(taker, found)
            end = time.monotonic() + PATIENCE
            while any(source.room > 0 for source in taker._intake.sources.values()):
                assert time.monotonic() < end
                assert taker._channel is not None
                taker._channel.link.read_now()
    assert counts["a"] * 1.5 < counts["b"], counts
    assert counts["b"] * 1.2 < counts["c"], counts


def test_a_flood_does_not_hold_up_another_queue(make: Make) -> None:
    """One queue was allowed for everything before the other had anything."""
    transport = make("classic")
    send(transport, *numbers(3000), queue="flood")
    taker = consumer_of(transport, "flood", "b", credit=2000)
    for _ in range(5):
        ack(taker, collect(taker, 1, limit=100))
    send(transport, *numbers(200), queue="b")
    counts: Counter[str] = Counter()
    while counts["b"] < 200:
        found = persistently(lambda: taker.fetch(50, 1.0)).deliveries
        counts.update(d.queue for d in found)
        time.sleep(0.05)  # work; the shares are looked at that often
        ack(taker, found)
    assert counts["flood"] < 2000, counts


def test_a_consumer_never_holds_more_than_its_credit(make: Make) -> None:
    """Also while room moves from queue to queue: what the server has handed out is counted on the server."""
    transport, other = make("classic"), make("classic")
    queues = ["a", "b", "c"]
    taker = consumer_of(transport, *queues, credit=25)
    sent = 0
    done = 0
    for turn in range(12):
        send(transport, *(f"{turn}-{i}" for i in range(30)), queue=queues[turn % 3])
        sent += 30
        end = time.monotonic() + 0.3
        held = []
        while time.monotonic() < end:
            held += taker.fetch(25 - len(held), 0.05).deliveries if len(held) < 25 else []
            ready = sum(counts.ready for counts in other.stats(queues).values())
            assert sent - done - ready <= 25
        ack(taker, held)
        done += len(held)


def test_what_nobody_has_seen_counts_as_new(make: Make) -> None:
    """What was pushed ahead and given back, or was lost with its connection, does not look like what kills workers."""
    transport = make()
    send(transport, *numbers(10))
    taker = consumer_of(transport)
    first = list(taker.fetch(1, PATIENCE, ahead=9).deliveries)
    assert len(first) == 1
    end = time.monotonic() + PATIENCE
    while transport.stats(["q"])["q"].ready < 9:  # nobody fetches: they go back
        assert time.monotonic() < end
        time.sleep(0.05)
    assert taker._channel is not None
    first += taker.fetch(1, PATIENCE, ahead=8).deliveries
    while len(taker._channel.buffer) < 8:
        assert time.monotonic() < end
        assert not taker.fetch(0, 0.05, ahead=8).deliveries
    taker._channel.link.failed("the network broke")
    back, lost = [], []
    while len(back) < 10:
        assert time.monotonic() < end
        fetched = persistently(lambda: taker.fetch(10, 0.2))
        back += fetched.deliveries
        lost += fetched.lost
    assert {loss.receipt for loss in lost} == {d.receipt for d in first}
    seen = {d.payload for d in first}
    assert {d.payload for d in back if d.deliveries > 1} == seen
    ack(taker, back)
