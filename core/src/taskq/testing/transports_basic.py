"""What every transport must do, part 1: opening, declaring, sending, fetching."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest

from taskq.errors import NotSupported, PayloadTooLarge, QueueMissing, TransportClosed, TransportError
from taskq.message import Outbound, QueueSpec, Subscription
from taskq.spi import (
    Capabilities,
    Fencing,
    HandBack,
    LeaseScope,
    Ordering,
    Support,
    SupportsFuse,
)
from taskq.testing.transport_rig import TransportRig
from taskq.testing.transports_base import ABILITIES, TransportBase, wider


class BasicTests(TransportBase):
    """Opening, declaring, sending and fetching."""

    # ------------------------------------------------------------------------------------- the author's fixture

    @pytest.mark.parametrize("run", [1, 2])
    def test_url_is_a_broker_of_its_own(self, rig: TransportRig, run: int) -> None:
        """Check that the ``url`` fixture gives an empty broker, or database, or prefix, to each test.

        Both runs find the queue empty and leave a message in it.
        """
        consumer = rig.consumer("kit-left-behind")
        rig.nothing(consumer, why="the url fixture gave a broker that another test has used")
        rig.send("left behind", queue="kit-left-behind")
        rig.collect(consumer, 1)

    # ------------------------------------------------------------------------------------------ spec and opening

    def test_spec_is_of_this_scheme(self, rig: TransportRig) -> None:
        """Check that the spec lists the scheme, and that ``capabilities(options)`` answers without a server."""
        assert self.scheme in rig.spec.schemes
        assert isinstance(rig.spec.capabilities(rig.options()), Capabilities)

    def test_capabilities_are_never_wider_than_the_spec_says(self, rig: TransportRig) -> None:
        """Check that ``spec.capabilities(options)`` is the widest set: what the open transport promises is in it."""
        found = wider(rig.caps, rig.spec.capabilities(rig.options()))
        assert not found, f"wider after open than declared: {'; '.join(found)}"

    def test_capabilities_fit_together(self, rig: TransportRig) -> None:
        """Check each capability against the others and against the methods that the transport has."""
        caps = rig.caps
        faults = []
        for name, ability in ABILITIES:
            if getattr(caps, name) and not isinstance(rig.main, ability):
                faults.append(f"{name} is declared, but the transport has not the methods of {ability.__name__}")
        if caps.fused_stores and not isinstance(rig.main.consumer(), SupportsFuse):
            faults.append("fused_stores is declared, but consumers have no fuse()")
        if (caps.priority is Support.NO) != (caps.priority_levels == 1):
            faults.append(f"priority is {caps.priority.value} with {caps.priority_levels} levels")
        if not 1 <= caps.priority_levels <= 10:
            faults.append(f"{caps.priority_levels} priority levels: there are 1 to 10")
        if caps.priority_strict and caps.priority is Support.NO:
            faults.append("priority is strict, and not supported")
        if caps.max_delay_s is not None and caps.delay is Support.NO:
            faults.append("max_delay_s without delay")
        if caps.release_delay and caps.hand_back is HandBack.NO:
            faults.append("release_delay, but nothing can be released")
        if caps.lease_scope is LeaseScope.NONE and caps.fencing is Fencing.EXACT:
            faults.append("exact fencing of a lease that does not exist")
        if not caps.lease_min_s <= caps.lease_default_s:
            faults.append("the default lease is below the shortest one")
        if min(caps.max_send_batch, caps.max_fetch_batch, caps.max_settle_batch) < 1:
            faults.append("a batch limit below 1")
        assert not faults, "; ".join(faults)

    def test_opening_and_closing_twice_does_no_harm(self, rig: TransportRig) -> None:
        """Check that a second ``open`` or ``close`` returns and does nothing, for transports and consumers."""
        transport = rig.open()
        transport.open()
        rig.send("x", transport=transport)
        consumer = rig.consumer(transport=transport)
        consumer.close()
        consumer.close()
        transport.close(timeout=2.0)
        transport.close(timeout=2.0)

    def test_use_after_close_is_refused(self, rig: TransportRig) -> None:
        """Check that a closed transport and a closed consumer raise TransportClosed, or at least a TransportError."""
        transport = rig.open()
        consumer = rig.consumer(transport=transport)
        consumer.close()
        with pytest.raises(TransportClosed):
            consumer.fetch(1, 0.0)
        transport.close(timeout=2.0)
        with pytest.raises(TransportClosed):
            transport.send([rig.outbound("x")])

    def test_closing_a_transport_that_was_never_opened(self, rig: TransportRig) -> None:
        """Check that ``close`` before ``open`` is allowed: it is what cleaning up after a failed start does."""
        rig.new().close(timeout=1.0)

    def test_messages_outlive_the_connection(self, rig: TransportRig) -> None:
        """Check that closing the transport that sent a message does not take the message along."""
        sender = rig.open()
        rig.send("kept", transport=sender)
        sender.close(timeout=2.0)
        (delivery,) = rig.collect(rig.consumer(), 1)
        assert delivery.payload == b"kept"

    # -------------------------------------------------------------------------------------------------- declare

    def test_declare_makes_queues_and_repeats(self, rig: TransportRig) -> None:
        """Check that ``declare`` answers for each queue and may be called again by every worker that starts."""
        names = [rig.queue, f"{rig.queue}.dead"]
        for _ in range(2):
            facts = rig.main.declare([QueueSpec(name=n) for n in names])
            assert set(facts) == set(names)
        rig.send("x")
        rig.collect(rig.consumer(), 1)

    def test_declare_verify_says_what_is_missing(self, rig: TransportRig) -> None:
        """Check that ``mode="verify"`` raises QueueMissing naming the queue, and makes nothing."""
        rig.main.declare([QueueSpec(name=rig.queue)])
        rig.main.declare([QueueSpec(name=rig.queue)], mode="verify")
        for _ in range(2):
            with pytest.raises(QueueMissing, match=f"{rig.queue}-not-there"):
                rig.main.declare([QueueSpec(name=f"{rig.queue}-not-there")], mode="verify")

    def test_declare_none_does_nothing(self, rig: TransportRig) -> None:
        """Check that ``mode="none"`` asks nothing of the server, not even whether the queue exists."""
        rig.main.declare([QueueSpec(name=f"{rig.queue}-not-there")], mode="none")

    def test_declare_refuses_an_option_that_it_does_not_know(self, rig: TransportRig) -> None:
        """Check that an unknown queue option raises NotSupported: nothing is accepted and ignored."""
        with pytest.raises(NotSupported, match="kit_no_such_option"):
            rig.main.declare([QueueSpec(name=rig.queue, options={"kit_no_such_option": 1})])

    def test_declare_refuses_ordered_queues_that_it_cannot_keep(self, rig: TransportRig) -> None:
        """Check that ``ordered=True`` either gives a queue whose ordering is GROUP, or raises NotSupported."""
        try:
            facts = rig.main.declare([QueueSpec(name=rig.queue, ordered=True)])
        except NotSupported:
            assert rig.caps.ordering is not Ordering.GROUP, "ordering GROUP is declared, an ordered queue is refused"
            return
        assert (facts[rig.queue].capabilities or rig.caps).ordering is Ordering.GROUP

    def test_a_queue_that_nobody_declared(self, rig: TransportRig) -> None:
        """Check that sending to an unknown queue makes it, or is refused; it must not vanish."""
        consumer = rig.consumer()
        try:
            failures = rig.main.send([rig.outbound("x")])
        except QueueMissing:
            return
        assert not failures or not failures[0].maybe_sent
        if not failures:
            rig.collect(consumer, 1)

    # --------------------------------------------------------------------------------------------- send and fetch

    def test_roundtrip(self, rig: TransportRig) -> None:
        """Check that a delivery is what was sent: payload, queue, a first delivery, a hashable receipt."""
        rig.send(b"payload")
        consumer = rig.consumer()
        (delivery,) = rig.collect(consumer, 1)
        assert delivery.payload == b"payload"
        assert isinstance(delivery.payload, bytes), "runtimes hash and slice payloads: give bytes"
        assert delivery.queue == rig.queue
        rig.counts(delivery, 1)
        hash(delivery.receipt)
        rig.ack(consumer, [delivery])
        rig.nothing(consumer)

    @pytest.mark.parametrize(
        "payload",
        [b"", bytes(range(256)), "čeština \U0001f680".encode(), b"\x00" * 100, b"\r\n'\";\\%s{} \n", b"x" * 300_000],
        ids=["empty", "all-bytes", "utf-8", "zeros", "specials", "300-kB"],
    )
    def test_payloads_arrive_unchanged(self, rig: TransportRig, payload: bytes) -> None:
        """Check that payloads are opaque bytes: no text encoding, no terminator, no quoting, no line ends."""
        limit = rig.caps.max_payload_bytes
        payload = payload if limit is None else payload[:limit]
        rig.send(payload)
        consumer = rig.consumer()
        (delivery,) = rig.collect(consumer, 1)
        assert delivery.payload == payload
        rig.ack(consumer, [delivery])

    def test_the_largest_payload_and_one_byte_more(self, rig: TransportRig) -> None:
        """Check that ``max_payload_bytes`` is exact: that size passes, one more is refused and never delivered."""
        limit = rig.caps.max_payload_bytes
        rig.need(limit is not None and limit <= 1 << 27, "payload limit (up to 128 MiB)")
        assert limit is not None
        try:
            failures = rig.main.send([rig.outbound(b"x" * (limit + 1))])
        except PayloadTooLarge:
            pass
        else:
            assert [f.retryable or f.maybe_sent for f in failures] == [False], "too large is final, and certain"
        rig.send(b"y" * limit)
        (delivery,) = rig.collect(rig.consumer(), 1)
        assert delivery.payload == b"y" * limit

    def test_acknowledged_is_gone(self, rig: TransportRig) -> None:
        """Check that an acknowledged message never comes back, also not to others, also not after closing."""
        consumer = rig.consumer()
        rig.send("a", "b")
        rig.ack(consumer, rig.collect(consumer, 2))
        rig.nothing(consumer)
        consumer.close()
        rig.empty()

    def test_delivered_is_not_acknowledged(self, rig: TransportRig) -> None:
        """Check that fetching does not end a message: only a settlement does (no early acknowledgement)."""
        rig.need(rig.caps.hand_back is not HandBack.NO, "hand-back")
        consumer = rig.consumer()
        rig.send("a")
        rig.collect(consumer, 1)
        consumer.close()
        (delivery,) = rig.collect(rig.consumer(), 1)
        assert delivery.payload == b"a"

    def test_held_is_delivered_to_nobody_else(self, rig: TransportRig) -> None:
        """Check that a message in flight is hidden from other consumers, and from its own."""
        first, second = rig.consumer(), rig.consumer(transport=rig.open())
        rig.send("a")
        found, _ = rig.gather(first, 1)
        if not found:  # pushed to the other one, which is fair
            first, second = second, first
            found = rig.collect(first, 1)
        rig.nothing(second, why="another consumer holds it")
        rig.nothing(first, why="this consumer holds it")
        rig.ack(first, found)

    def test_every_message_of_any_batch_arrives_once(self, rig: TransportRig) -> None:
        """Check that ``send``, ``fetch`` and ``settle`` split what is beyond their batch limits, and lose nothing."""
        caps = rig.caps
        limit = max(caps.max_send_batch, caps.max_fetch_batch, caps.max_settle_batch)
        n = min(limit * 2 + 1, 2_500)
        rig.send(*(f"{i}" for i in range(n)))
        consumer = rig.consumer()
        deliveries = rig.collect(consumer, n, seconds=self.patience_s * 4, limit=n)
        assert sorted(int(d.payload) for d in deliveries) == list(range(n))
        assert len({d.receipt for d in deliveries}) == n, "two deliveries have one receipt"
        rig.ack(consumer, deliveries)
        consumer.close()
        rig.empty()

    def test_nothing_is_lost_among_many(self, rig: TransportRig) -> None:
        """Check that single sends arrive, each exactly once; a loss of one in a hundred shows here."""
        for i in range(300):
            rig.send(f"{i}")
        consumer = rig.consumer()
        deliveries = rig.collect(consumer, 300)
        assert sorted(int(d.payload) for d in deliveries) == list(range(300))
        rig.nothing(consumer, why="it was delivered before")
        rig.ack(consumer, deliveries)
        rig.nothing(consumer, why="it was acknowledged")

    def test_empty_batches_are_fine(self, rig: TransportRig) -> None:
        """Check that an empty ``send``, ``settle``, ``extend`` and ``declare`` do nothing."""
        consumer = rig.consumer()
        assert not rig.main.send([])
        assert not rig.main.declare([])
        assert not consumer.settle([])
        assert not consumer.extend([])
        assert not consumer.flush(1.0)

    def test_fetch_brings_no_more_than_the_limit(self, rig: TransportRig) -> None:
        """Check that ``fetch(limit, …)`` never returns more than ``limit``, and that the rest follows."""
        rig.send(*"abcdefg")
        consumer = rig.consumer()
        seen: list[bytes] = []
        deadline = time.monotonic() + self.patience_s
        while len(seen) < 7 and time.monotonic() < deadline:
            fetched = consumer.fetch(3, 0.2)
            assert len(fetched.deliveries) <= 3
            seen += [d.payload for d in fetched.deliveries]
        assert sorted(seen) == [b"%c" % c for c in b"abcdefg"]

    def test_fetch_brings_many_at_once(self, rig: TransportRig) -> None:
        """Check that fetch is a batch: a backlog must not come one message a call, each a round trip."""
        n = min(20, rig.caps.max_fetch_batch)
        rig.send(*(f"{i}" for i in range(n)))
        consumer = rig.consumer()
        calls = 0
        got = 0
        deadline = time.monotonic() + self.patience_s
        while got < n and time.monotonic() < deadline:
            got += len(consumer.fetch(n, 0.2).deliveries)
            calls += 1
        assert got == n
        assert calls <= max(3, n // 2), f"{n} waiting messages took {calls} calls of fetch"

    def test_fetch_waits(self, rig: TransportRig) -> None:
        """Check that ``fetch`` on an empty queue waits as told (a busy loop otherwise) and returns nothing."""
        consumer = rig.consumer()
        consumer.fetch(1, 0.0)  # the first one may connect
        started = time.monotonic()
        fetched = consumer.fetch(10, 0.4)
        waited = time.monotonic() - started
        assert not fetched.deliveries
        assert waited >= 0.35, f"fetch(wait=0.4) came back after {waited:.2f} s with nothing"

    def test_fetch_without_wait_returns_at_once(self, rig: TransportRig) -> None:
        """Check that ``wait=0`` does not wait: the worker polls so between batches."""
        consumer = rig.consumer()
        consumer.fetch(1, 0.0)
        took = []
        for _ in range(5):
            started = time.monotonic()
            assert not consumer.fetch(10, 0.0).deliveries
            took.append(time.monotonic() - started)
        assert min(took) < 0.25, f"fetches with wait=0 took {[f'{t:.2f}' for t in took]} s"
        assert sum(took) < self.patience_s, "five fetches with wait=0 took seconds"

    def test_fetch_before_any_subscription(self, rig: TransportRig) -> None:
        """Check that a consumer without queues (all are paused) waits and brings nothing."""
        consumer = rig.main.consumer()
        consumer.credit(10, 1 << 20)
        consumer.subscribe([])
        rig.send("x")
        assert not consumer.fetch(1, 0.1).deliveries

    def test_queue_names_are_exact(self, rig: TransportRig) -> None:
        """Check that names differ by case and by every character that the kernel uses in them (``.``, ``-``, ``_``)."""
        names = [rig.queue, rig.queue.upper(), f"{rig.queue}.dead", f"{rig.queue}.p9", f"{rig.queue}_p9", "q" * 60]
        for name in names:
            rig.send(name, queue=name)
        for name in names:
            consumer = rig.consumer(name)
            (delivery,) = rig.collect(consumer, 1)
            assert (delivery.payload.decode(), delivery.queue) == (name, name)
            rig.nothing(consumer, 0.02)
            rig.ack(consumer, [delivery])
            consumer.close()

    def test_one_batch_to_several_queues(self, rig: TransportRig) -> None:
        """Check that a batch may mix queues, and that a consumer of several says where each message came from."""
        names = [f"{rig.queue}-{i}" for i in range(3)]
        assert not rig.main.send([rig.outbound(f"{i}", queue=names[i % 3]) for i in range(9)])
        deliveries = rig.collect(rig.consumer(*names), 9)
        assert {d.payload: d.queue for d in deliveries} == {b"%d" % i: names[i % 3] for i in range(9)}

    def test_send_may_go_on_while_messages_are_held(self, rig: TransportRig) -> None:
        """Check that what was sent after a fetch comes with the next one."""
        consumer = rig.consumer()
        rig.send("a")
        first = rig.collect(consumer, 1)
        rig.send("b")
        second = rig.collect(consumer, 1)
        assert [d.payload for d in first + second] == [b"a", b"b"]
        rig.ack(consumer, first + second)

    # ----------------------------------------------------------------------------------------------- subscribing

    def test_subscribe_replaces_the_queues(self, rig: TransportRig) -> None:
        """Check that a second ``subscribe`` ends the first, and leaves what is held alone."""
        other = f"{rig.queue}-other"
        rig.send("mine")
        consumer = rig.consumer()
        held = rig.collect(consumer, 1)
        consumer.subscribe([Subscription(other)])
        rig.send("unwanted")
        rig.send("wanted", queue=other)
        (delivery,) = rig.collect(consumer, 1)
        assert delivery.payload == b"wanted"
        rig.nothing(consumer, why="its queue is not subscribed any more")
        rig.ack(consumer, [*held, delivery])

    def test_strict_order_empties_the_first_queue_first(self, rig: TransportRig) -> None:
        """Check that ``order="strict"`` looks at a later queue only when the earlier ones are empty."""
        self._fill(rig, "a", "b", n=10)
        consumer = rig.consumer(f"{rig.queue}-b", f"{rig.queue}-a", order="strict", credit=1)
        order = self._one_by_one(rig, consumer, 20)
        assert order == ["b"] * 10 + ["a"] * 10

    def test_fair_order_passes_no_queue_over(self, rig: TransportRig) -> None:
        """Check that ``order="fair"`` serves a small queue while a large one has a backlog."""
        self._fill(rig, "a", n=40)
        self._fill(rig, "b", n=5)
        consumer = rig.consumer(f"{rig.queue}-a", f"{rig.queue}-b", order="fair", credit=1)
        order = self._one_by_one(rig, consumer, 30)
        assert order.count("b") == 5, f"30 messages in, the small queue had {order.count('b')} of 5 served"

    def test_weighted_order_serves_by_weight(self, rig: TransportRig) -> None:
        """Check that ``order="weighted"`` favours the heavier queue and still serves the lighter one."""
        self._fill(rig, "a", "b", n=60)
        queues = [Subscription(f"{rig.queue}-a", 1), Subscription(f"{rig.queue}-b", 4)]
        consumer = rig.consumer(*queues, order="weighted", credit=1)
        order = self._one_by_one(rig, consumer, 60)
        a, b = order.count("a"), order.count("b")
        assert 3 <= a < b, f"queues of weights 1 and 4 were served {a} and {b} times"

    def _fill(self, rig: TransportRig, *names: str, n: int) -> None:
        for name in names:
            rig.send(*[name] * n, queue=f"{rig.queue}-{name}")

    def _one_by_one(self, rig: TransportRig, consumer: Any, n: int) -> list[str]:
        order: list[str] = []
        for _ in range(n):
            deliveries: Sequence[Any] = rig.collect(consumer, 1)
            order += [d.payload.decode() for d in deliveries]
            rig.ack(consumer, deliveries)
        return order

    def test_errors_are_typed(self, rig: TransportRig) -> None:
        """Check that a wrong call raises a TransportError that says what to do, not a client library's exception."""
        transport = rig.open()
        transport.close(timeout=2.0)
        with pytest.raises(TransportError) as caught:
            transport.declare([QueueSpec(name=rig.queue)])
        assert len(str(caught.value)) > 15, "say what was tried, what was found and what to do"

    def test_bad_messages_of_a_batch_fail_alone(self, rig: TransportRig) -> None:
        """Check that a message that cannot be sent is listed by its index, or the batch refused as a whole."""
        rig.need(rig.caps.max_payload_bytes is not None and rig.caps.max_payload_bytes <= 1 << 24, "payload limit")
        limit = rig.caps.max_payload_bytes or 0
        batch: list[Outbound] = [rig.outbound("a"), rig.outbound(b"x" * (limit + 1)), rig.outbound("b")]
        consumer = rig.consumer()
        try:
            failures = rig.main.send(batch)
        except PayloadTooLarge:
            rig.nothing(consumer, why="send raised, so nothing was sent")
            return
        assert [f.index for f in failures] == [1]
        assert {d.payload for d in rig.collect(consumer, 2)} == {b"a", b"b"}
