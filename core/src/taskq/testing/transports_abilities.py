"""What a transport must do where it declares it: order, priority, delay, counts, broadcast, transactions, fusing."""

from __future__ import annotations

import time
from typing import Any

import pytest

from taskq.errors import NotSupported
from taskq.message import Delivery, QueueSpec
from taskq.spi import (
    Consumer,
    HandBack,
    Ordering,
    Support,
    SupportsPeek,
    SupportsPurge,
    SupportsStats,
)
from taskq.testing.transport_rig import TransportRig
from taskq.testing.transports_base import TransportBase

_DELAY_S = 0.4
_EARLY_S = 0.06
"""Clocks of server and client differ in resolution; more than this too early is wrong."""


def levels(caps: Any) -> list[int]:
    """Return priorities that are kept apart for certain."""
    if caps.priority_levels >= 10:
        return [0, 3, 4, 5, 6, 9]
    return [0, 9] if caps.priority_levels == 2 else [0, 5, 9]


class OrderTests(TransportBase):
    """Order, groups, priority, delay."""

    # ---------------------------------------------------------------------------------------------------- order

    def test_first_in_first_out(self, rig: TransportRig) -> None:
        """Check that messages of one queue and priority come in the order sent, within batches and between them."""
        rig.need(self._plain_ordering(rig) is Ordering.QUEUE, "order per queue")
        consumer = rig.consumer()
        rig.send(*(f"{i:03}" for i in range(50)))
        for i in range(50, 60):
            rig.send(f"{i:03}")
        rig.send(*(f"{i:03}" for i in range(60, 100)))
        payloads = [d.payload for d in rig.collect(consumer, 100, limit=7)]
        assert payloads == [b"%03d" % i for i in range(100)]

    def _plain_ordering(self, rig: TransportRig) -> Ordering:
        facts = rig.main.declare([QueueSpec(name=rig.queue)])[rig.queue]
        ordering: Ordering = (facts.capabilities or rig.caps).ordering
        return ordering

    def _ordered(self, rig: TransportRig) -> None:
        rig.need(rig.caps.ordering is Ordering.GROUP, "order per group")
        rig.main.declare([QueueSpec(name=rig.queue, ordered=True)])

    def test_a_group_is_one_at_a_time_and_in_order(self, rig: TransportRig) -> None:
        """Check that a group's next message waits until the one before is settled, while other groups go on."""
        self._ordered(rig)
        for i in range(3):
            rig.send(f"a{i}", group="a")
            rig.send(f"b{i}", group="b")
        consumer, other = rig.consumer(), rig.consumer(transport=rig.open())
        seen: list[bytes] = []
        for _ in range(3):
            held: list[tuple[Consumer, Delivery]] = []
            deadline = time.monotonic() + self.patience_s
            while len(held) < 2 and time.monotonic() < deadline:
                for c in (consumer, other):
                    held += [(c, d) for d in c.fetch(10, 0.05).deliveries]
            assert {d.group for _, d in held} == {"a", "b"}, f"held at once: {[d.payload for _, d in held]}"
            assert len(held) == 2
            rig.nothing(consumer, 0.05, why="the group's first is not settled")
            seen += sorted(d.payload for _, d in held)
            for c, d in held:
                rig.ack(c, [d])
        assert seen == [b"a0", b"b0", b"a1", b"b1", b"a2", b"b2"]

    def test_a_released_message_keeps_its_place_in_the_group(self, rig: TransportRig) -> None:
        """Check that releasing, also by closing, does not let the group's next message overtake."""
        self._ordered(rig)
        rig.send("1", "2", group="g")
        consumer = rig.consumer()
        rig.release(consumer, rig.collect(consumer, 1))
        (again,) = rig.collect(consumer, 1)
        assert again.payload == b"1"
        consumer.close()
        consumer = rig.consumer()
        for expected in (b"1", b"2"):
            (delivery,) = rig.collect(consumer, 1)
            assert delivery.payload == expected
            rig.ack(consumer, [delivery])

    # ------------------------------------------------------------------------------------------------- priority

    def test_higher_priority_first(self, rig: TransportRig) -> None:
        """Check that a higher number is delivered before a lower one that waits in the same queue."""
        rig.need(rig.caps.priority_strict, "strict priority")
        wanted = levels(rig.caps)
        for priority in (*wanted[1::2], *wanted[::2]):
            rig.send(f"{priority}", priority=priority)
        order = [int(d.payload) for d in rig.collect(rig.consumer(credit=len(wanted)), len(wanted), limit=1)]
        assert order == sorted(wanted, reverse=True)

    def test_priority_holds_within_a_batch(self, rig: TransportRig) -> None:
        """Check that one batch of mixed priorities, fetched at once, comes sorted, each level in order of sending."""
        rig.need(rig.caps.priority_strict, "strict priority")
        low, high = levels(rig.caps)[0], levels(rig.caps)[-1]
        batch = [rig.outbound(f"{p}{i}", priority=p) for i in range(4) for p in (low, high)]
        assert not rig.main.send(batch)
        order = [d.payload for d in rig.collect(rig.consumer(), 8)]
        assert [o[:1] for o in order] == [b"%d" % high] * 4 + [b"%d" % low] * 4
        if self._plain_ordering(rig) is Ordering.QUEUE:
            assert order[:4] == sorted(order[:4])
            assert order[4:] == sorted(order[4:])

    def test_a_late_high_priority_overtakes(self, rig: TransportRig) -> None:
        """Check that priority is looked at when fetching, not only when sending."""
        rig.need(rig.caps.priority_strict, "strict priority")
        consumer = rig.consumer(credit=1)
        rig.send(*"abc", priority=levels(rig.caps)[0])
        rig.ack(consumer, rig.collect(consumer, 1))
        rig.send("urgent", priority=levels(rig.caps)[-1])
        fetched = rig.collect(consumer, 1)
        # A client that is pushed messages may hold one already, never more than its credit.
        if fetched[0].payload != b"urgent":
            rig.ack(consumer, fetched)
            fetched = rig.collect(consumer, 1)
        assert fetched[0].payload == b"urgent"

    def test_all_ten_priorities_are_taken(self, rig: TransportRig) -> None:
        """Check that 0 to 9 are accepted where there are priorities at all, whatever the number of levels."""
        rig.need(rig.caps.priority is not Support.NO, "priority")
        for priority in range(10):
            rig.send(f"{priority}", priority=priority)
        assert {int(d.payload) for d in rig.collect(rig.consumer(), 10)} == set(range(10))

    # ---------------------------------------------------------------------------------------------------- delay

    def test_delayed_messages_wait(self, rig: TransportRig) -> None:
        """Check that a delayed message is not delivered early, and is delivered when due, without being asked for."""
        rig.need(rig.caps.delay is not Support.NO, "delay")
        consumer = rig.consumer()
        consumer.fetch(1, 0.0)
        started = time.monotonic()
        rig.send("later", delay=_DELAY_S)
        rig.send("now")
        (now,) = rig.collect(consumer, 1)
        assert now.payload == b"now"
        (later,) = rig.collect(consumer, 1)
        waited = time.monotonic() - started
        assert later.payload == b"later"
        assert waited >= _DELAY_S - _EARLY_S, f"a delay of {_DELAY_S} s took {waited:.2f} s"
        rig.counts(later, 1)
        rig.ack(consumer, [now, later])
        rig.nothing(consumer)

    def test_delays_end_in_order_of_due_time(self, rig: TransportRig) -> None:
        """Check that delayed messages come when each is due, not in the order of sending."""
        rig.need(rig.caps.delay is not Support.NO, "delay")
        consumer = rig.consumer()
        rig.send("2", delay=0.5)
        rig.send("1", delay=0.2)
        assert [d.payload for d in rig.collect(consumer, 2, limit=1)] == [b"1", b"2"]

    def test_a_delayed_message_outlives_its_sender(self, rig: TransportRig) -> None:
        """Check that delayed messages live in the broker: closing the transport that sent one does not lose it."""
        rig.need(rig.caps.delay is not Support.NO, "delay")
        sender = rig.open()
        rig.send("later", transport=sender, delay=0.2)
        sender.close(timeout=2.0)
        assert rig.collect(rig.consumer(), 1)[0].payload == b"later"

    def test_a_delay_beyond_the_maximum_is_refused(self, rig: TransportRig) -> None:
        """Check that more than ``max_delay_s`` is refused for certain, not shortened."""
        limit = rig.caps.max_delay_s
        rig.need(rig.caps.delay is not Support.NO and limit is not None, "maximum delay")
        assert limit is not None
        try:
            failures = rig.main.send([rig.outbound("x", delay=limit * 2 + 1)])
        except NotSupported:
            return
        assert [(f.maybe_sent, f.retryable) for f in failures] == [(False, False)]

    def test_a_very_long_delay(self, rig: TransportRig) -> None:
        """Check that a delay of a year is kept as such: an overflow shows as a message that comes at once."""
        rig.need(rig.caps.delay is not Support.NO and rig.caps.max_delay_s is None, "unlimited delay")
        rig.send("next year", delay=365 * 86400.0)
        rig.nothing(rig.consumer(), why="it is due next year")

    def test_release_with_delay(self, rig: TransportRig) -> None:
        """Check that RELEASE with a delay hides the message that long, uncounted."""
        rig.need(rig.caps.release_delay, "release with delay")
        rig.send("a")
        consumer = rig.consumer()
        deliveries = rig.collect(consumer, 1)
        started = time.monotonic()
        rig.release(consumer, deliveries, delay=_DELAY_S)
        (again,) = rig.collect(consumer, 1)
        assert time.monotonic() - started >= _DELAY_S - _EARLY_S
        rig.counts(again, 1, releases=1)
        rig.ack(consumer, [again])
        rig.nothing(consumer)


class CountingTests(TransportBase):
    """Stats, purge, peek."""

    def _stats(self, rig: TransportRig) -> tuple[Any, Any, Any]:
        assert isinstance(rig.main, SupportsStats)
        found = rig.main.stats([rig.queue])[rig.queue]
        return found.ready, found.in_flight, found.delayed

    def test_stats_follow_a_message(self, rig: TransportRig) -> None:
        """Check that ready, in flight and delayed count what they say; None where the server cannot tell."""
        rig.need(rig.caps.stats, "stats")
        rig.main.declare([QueueSpec(name=rig.queue)])

        def expect(ready: int, in_flight: int, delayed: int) -> None:
            want = (ready, in_flight, delayed)
            deadline = time.monotonic() + self.patience_s
            while True:
                have = self._stats(rig)
                if all(h is None or h == w for h, w in zip(have, want, strict=True)):
                    break
                assert time.monotonic() < deadline, f"(ready, in flight, delayed) is {have}, not {want}"
                time.sleep(0.02)
            assert have[0] is not None, "stats is declared: ready at least must be counted"

        expect(0, 0, 0)
        rig.send(*"abcd")
        expect(4, 0, 0)
        if rig.caps.delay is not Support.NO:
            rig.send("later", delay=600)
            expect(4, 0, 1)
        later = int(rig.caps.delay is not Support.NO)
        consumer = rig.consumer(credit=2)
        held = rig.collect(consumer, 2)
        expect(2, 2, later)
        rig.ack(consumer, held[:1])
        consumer.credit(1, 1 << 30)
        expect(2, 1, later)
        if rig.caps.hand_back is not HandBack.NO:
            consumer.close()
            expect(3, 0, later)

    def test_stats_leave_out_unknown_queues(self, rig: TransportRig) -> None:
        """Check that a queue that does not exist is left out, and is not made by asking."""
        rig.need(rig.caps.stats, "stats")
        rig.send("a")
        assert isinstance(rig.main, SupportsStats)
        for _ in range(2):
            assert set(rig.main.stats([rig.queue, f"{rig.queue}-unknown"])) == {rig.queue}
        assert rig.main.stats([]) == {}

    def test_oldest_age_grows(self, rig: TransportRig) -> None:
        """Check that ``oldest_age`` is the ready time of the oldest message in seconds, where it is known."""
        rig.need(rig.caps.stats, "stats")
        assert isinstance(rig.main, SupportsStats)
        rig.send("a")
        before = rig.main.stats([rig.queue])[rig.queue].oldest_age
        if before is None:
            pytest.skip(f"{rig.spec.name} does not know ages")
        time.sleep(0.1)
        rig.send("b")
        after = rig.main.stats([rig.queue])[rig.queue].oldest_age
        assert after is not None
        assert 0.0 <= before < self.patience_s
        assert after - before >= 0.05, "the age of the oldest message did not grow with time"

    def test_purge_leaves_what_is_in_flight(self, rig: TransportRig) -> None:
        """Check that purge drops ready and delayed messages, says how many, and spares what a worker holds."""
        rig.need(rig.caps.purge, "purge")
        assert isinstance(rig.main, SupportsPurge)
        rig.send(*"abcde")
        consumer = rig.consumer(credit=2)
        held = rig.collect(consumer, 2)
        waiting = 3
        if rig.caps.delay is not Support.NO:
            rig.send("later", delay=0.2)
            waiting += 1
        assert rig.main.purge([rig.queue]) == {rig.queue: waiting}
        consumer.credit(10, 1 << 30)
        rig.nothing(consumer, 0.3, why="it was purged")
        rig.ack(consumer, held)
        rig.send("after")
        assert rig.collect(consumer, 1)[0].payload == b"after"

    def test_purging_an_unknown_queue(self, rig: TransportRig) -> None:
        """Check that purging a queue that does not exist counts nothing and raises nothing."""
        rig.need(rig.caps.purge, "purge")
        assert isinstance(rig.main, SupportsPurge)
        assert not any(rig.main.purge([f"{rig.queue}-unknown"]).values())

    def test_peek_takes_nothing(self, rig: TransportRig) -> None:
        """Check that peeking shows messages in delivery order and changes neither counts nor leases nor order."""
        rig.need(rig.caps.peek, "peek")
        assert isinstance(rig.main, SupportsPeek)
        sent = rig.send(*"abcde")
        for _ in range(3):
            peeked = rig.main.peek(rig.queue, limit=10)
            assert sorted(p.payload for p in peeked) == [b"a", b"b", b"c", b"d", b"e"]
            assert all(p.queue == rig.queue and p.deliveries == 0 and not p.in_flight for p in peeked)
            assert {p.id for p in peeked} <= {o.id for o in sent} | {""}
        deliveries = rig.collect(rig.consumer(), 5)
        for delivery in deliveries:
            rig.counts(delivery, 1)
        if rig.caps.ordering is not Ordering.NONE:
            assert [d.payload for d in deliveries] == [p.payload for p in peeked], "not in the order of delivery"

    def test_peek_pages_with_its_cursor(self, rig: TransportRig) -> None:
        """Check that ``after=cursor`` continues a listing: all messages once, and then none."""
        rig.need(rig.caps.peek, "peek")
        assert isinstance(rig.main, SupportsPeek)
        rig.send(*(f"{i:02}" for i in range(10)), priority=3)
        rig.send(*(f"{i:02}" for i in range(10, 13)), priority=7)
        seen: list[bytes] = []
        cursor: str | None = None
        for _ in range(20):
            page = rig.main.peek(rig.queue, limit=4, after=cursor)
            assert len(page) <= 4
            if not page:
                break
            seen += [p.payload for p in page]
            cursor = page[-1].cursor
        assert sorted(seen) == [b"%02d" % i for i in range(13)]

    def test_peek_tells_delayed_from_ready(self, rig: TransportRig) -> None:
        """Check that a delayed message shows its remaining delay, where peek shows delayed messages at all."""
        rig.need(rig.caps.peek and rig.caps.delay is not Support.NO, "peek and delay")
        assert isinstance(rig.main, SupportsPeek)
        rig.send("later", delay=600)
        rig.send("now")
        delays = {p.payload: p.delay for p in rig.main.peek(rig.queue)}
        assert delays[b"now"] == 0
        assert 500 < delays.get(b"later", 550) <= 600

    def test_peek_of_an_unknown_queue(self, rig: TransportRig) -> None:
        """Check that peeking into a queue that does not exist shows nothing and raises nothing."""
        rig.need(rig.caps.peek, "peek")
        assert isinstance(rig.main, SupportsPeek)
        assert not rig.main.peek(f"{rig.queue}-unknown")
