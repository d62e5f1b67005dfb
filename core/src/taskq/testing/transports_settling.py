"""What every transport must do, part 2: settling, handing back, credit."""

from __future__ import annotations

import time

import pytest

from taskq.message import ACK, RELEASE, Settlement
from taskq.spi import Fencing, HandBack, Ordering
from taskq.testing.transport_rig import TransportRig
from taskq.testing.transports_base import TransportBase


class SettlingTests(TransportBase):
    """Settlements, hand-back and credit."""

    # ------------------------------------------------------------------------------------------------- settling

    def test_each_is_settled_on_its_own(self, rig: TransportRig) -> None:
        """Check that acknowledging some receipts, in any order, does nothing to the others.

        An acknowledgement "up to here" loses the slow task in the middle when its worker dies.
        """
        rig.need(rig.caps.hand_back is not HandBack.NO, "hand-back")
        rig.send(*"abcdefgh")
        consumer = rig.consumer()
        deliveries = rig.collect(consumer, 8)
        rig.ack(consumer, reversed(deliveries[1::2]))
        consumer.close()
        other = rig.consumer()
        assert {d.payload for d in rig.collect(other, 4)} == {d.payload for d in deliveries[::2]}
        rig.nothing(other, why="it was acknowledged")

    def test_settling_twice_is_reported_and_harmless(self, rig: TransportRig) -> None:
        """Check that a receipt settled again is reported as lost, raises nothing, and touches no message."""
        rig.send("a", "b")
        consumer = rig.consumer()
        first, second = rig.collect(consumer, 2)
        rig.ack(consumer, [first])
        for kind in (ACK, RELEASE):
            lost = rig.settle(consumer, [Settlement(first.receipt, kind)])
            assert rig.is_lost(consumer, first.receipt, lost), "a receipt that was settled before was not reported"
        rig.nothing(consumer, why="it was acknowledged before it was released")
        rig.ack(consumer, [second])

    def test_settling_twice_in_one_batch(self, rig: TransportRig) -> None:
        """Check that one batch naming a receipt twice settles it once and does not hurt its neighbours."""
        rig.send("a", "b")
        consumer = rig.consumer()
        a, b = rig.collect(consumer, 2)
        lost = rig.settle(consumer, [Settlement(a.receipt), Settlement(a.receipt), Settlement(b.receipt)])
        assert not any(entry.receipt == b.receipt for entry in lost)
        assert rig.is_lost(consumer, a.receipt, lost)
        consumer.close()
        rig.empty()

    def test_losses_are_reported_once(self, rig: TransportRig) -> None:
        """Check that a loss that ``settle`` or ``flush`` returned does not come again with the next call."""
        rig.send("a")
        consumer = rig.consumer()
        (a,) = rig.collect(consumer, 1)
        rig.ack(consumer, [a])
        assert rig.is_lost(consumer, a.receipt, rig.settle(consumer, [Settlement(a.receipt)]))
        again = [*consumer.flush(1.0), *consumer.fetch(1, 0.0).lost, *consumer.settle([])]
        assert not any(entry.receipt == a.receipt for entry in again), "one loss was reported twice"

    def test_a_receipt_of_another_consumer_is_not_honoured(self, rig: TransportRig) -> None:
        """Check that a receipt counts for the consumer that got it: elsewhere it is lost, and the message is safe."""
        rig.need(rig.caps.fencing is not Fencing.NONE, "fencing")
        owner = rig.consumer()
        rig.send("a")
        (delivery,) = rig.collect(owner, 1)
        stranger = rig.consumer(f"{rig.queue}-other", transport=rig.open())
        lost = rig.settle(stranger, [Settlement(delivery.receipt)])
        assert rig.is_lost(stranger, delivery.receipt, lost)
        rig.ack(owner, [delivery])

    def test_flush_waits_for_what_was_settled(self, rig: TransportRig) -> None:
        """Check that after ``flush`` the server knows: another consumer's close and open changes nothing."""
        rig.send(*(f"{i}" for i in range(50)))
        consumer = rig.consumer()
        deliveries = rig.collect(consumer, 50)
        for delivery in deliveries:
            assert not consumer.settle([Settlement(delivery.receipt)])
        assert not consumer.flush(self.patience_s)
        consumer.close()
        rig.empty()

    # ------------------------------------------------------------------------------------------------ hand-back

    def test_released_comes_back_unchanged(self, rig: TransportRig) -> None:
        """Check that RELEASE gives the same message a new delivery, not counted, with a new receipt."""
        rig.need(rig.caps.hand_back is not HandBack.NO, "hand-back")
        rig.send(b"\x00payload")
        consumer = rig.consumer()
        first = rig.collect(consumer, 1)
        for n in range(1, 4):
            rig.release(consumer, first)
            again = rig.collect(consumer, 1)
            assert (again[0].payload, again[0].queue) == (b"\x00payload", rig.queue)
            rig.counts(again[0], 1, releases=n)
            first = again
        rig.ack(consumer, first)
        rig.nothing(consumer)

    def test_a_counted_release_is_counted(self, rig: TransportRig) -> None:
        """Check that RELEASE with ``counted=True`` raises ``deliveries`` as a lost lease would."""
        rig.need(rig.caps.hand_back is not HandBack.NO, "hand-back")
        rig.send("a")
        consumer = rig.consumer()
        rig.release(consumer, rig.collect(consumer, 1), counted=True)
        (again,) = rig.collect(consumer, 1)
        rig.counts(again, 2)

    def test_the_old_receipt_of_a_released_message_is_dead(self, rig: TransportRig) -> None:
        """Check that after a release the old receipt settles nothing, although the message is in flight again."""
        rig.need(rig.caps.hand_back is not HandBack.NO, "hand-back")
        rig.send("a")
        consumer = rig.consumer()
        (old,) = rig.collect(consumer, 1)
        rig.release(consumer, [old])
        (new,) = rig.collect(consumer, 1)
        assert new.receipt != old.receipt, "a new delivery needs a new receipt, or late settlements hit the wrong one"
        assert rig.is_lost(consumer, old.receipt, rig.settle(consumer, [Settlement(old.receipt)]))
        rig.release(consumer, [new])
        assert [d.payload for d in rig.collect(consumer, 1)] == [b"a"]

    def test_released_messages_go_to_the_head_in_order(self, rig: TransportRig) -> None:
        """Check that work handed back by one worker is next, before what was behind it, in the order given."""
        self._need_head(rig)
        rig.send(*"abcdefgh")
        consumer = rig.consumer()
        deliveries = rig.collect(consumer, 5)
        rig.release(consumer, deliveries[2:])
        payloads = [d.payload for d in rig.collect(consumer, 6, limit=6)]
        assert payloads == [b"c", b"d", b"e", b"f", b"g", b"h"]

    def test_close_hands_back_uncounted_and_in_order(self, rig: TransportRig) -> None:
        """Check that ``Consumer.close`` returns what is unsettled at once: not counted, at the head, in order."""
        rig.need(rig.caps.hand_back is not HandBack.NO, "hand-back")
        rig.send(*"abcdef")
        consumer = rig.consumer()
        held = rig.collect(consumer, 4)
        rig.ack(consumer, [held[1]])
        consumer.close()
        deliveries = rig.collect(rig.consumer(), 5)
        for delivery in deliveries:
            rig.counts(delivery, 1, releases=1)
        payloads = [d.payload for d in deliveries]
        assert sorted(payloads) == [b"a", b"c", b"d", b"e", b"f"]
        if rig.caps.hand_back is HandBack.NATIVE and rig.caps.ordering is not Ordering.NONE:
            assert payloads == sorted(payloads), "handed back in another order, or behind what was waiting"

    def test_closing_the_transport_hands_back_too(self, rig: TransportRig) -> None:
        """Check that ``Transport.close`` closes its consumers: a clean stop must not wait for leases to end."""
        rig.need(rig.caps.hand_back is not HandBack.NO, "hand-back")
        transport = rig.open()
        rig.send("a")
        rig.collect(rig.consumer(transport=transport), 1)
        transport.close(timeout=2.0)
        (delivery,) = rig.collect(rig.consumer(), 1)
        rig.counts(delivery, 1, releases=1)

    def test_fifty_hand_backs_are_not_counted(self, rig: TransportRig) -> None:
        """Check that a message handed back often is not mistaken for one that crashes its workers."""
        rig.need(rig.caps.hand_back is HandBack.NATIVE, "native hand-back")
        rig.send("a")
        consumer = rig.consumer()
        for _ in range(50):
            rig.release(consumer, rig.collect(consumer, 1))
        (delivery,) = rig.collect(consumer, 1)
        rig.counts(delivery, 1, releases=50)

    def _need_head(self, rig: TransportRig) -> None:
        rig.need(rig.caps.hand_back is HandBack.NATIVE, "native hand-back")
        rig.need(rig.caps.ordering is not Ordering.NONE, "order")

    # --------------------------------------------------------------------------------------------------- credit

    def test_never_more_than_the_credit(self, rig: TransportRig) -> None:
        """Check that what is held unsettled, the read-ahead included, never exceeds the credit.

        Others must be able to get what this consumer may not hold.
        """
        rig.send(*"abcdefghij")
        consumer = rig.consumer(credit=4)
        held = rig.collect(consumer, 4)
        assert not consumer.fetch(10, 0.1, ahead=10).deliveries, "the credit of 4 was exceeded"
        rest = rig.collect(rig.consumer(transport=rig.open()), 6)
        assert {d.payload for d in held} | {d.payload for d in rest} == {b"%c" % c for c in b"abcdefghij"}
        if rig.caps.hand_back is not HandBack.NO:
            rig.send(*"klmnop")
            rig.release(consumer, held[:3])
            again, _ = rig.gather(consumer, 9, seconds=self.quiet_s * 2)
            assert len(again) <= 3, "after a release more was held than the credit of 4 allows"

    def test_settling_gives_credit_back(self, rig: TransportRig) -> None:
        """Check that a full consumer gets as many messages as it settles, also in the middle of a waiting fetch."""
        rig.send(*"abcdefghij")
        consumer = rig.consumer(credit=3)
        seen = 0
        deadline = time.monotonic() + self.patience_s * 2
        while seen < 10:
            deliveries = consumer.fetch(10, 0.2).deliveries
            assert len(deliveries) <= 3
            seen += len(deliveries)
            rig.ack(consumer, deliveries)
            if time.monotonic() > deadline:
                pytest.fail(f"{seen} of 10 messages came through a credit of 3")

    def test_credit_may_change_at_any_time(self, rig: TransportRig) -> None:
        """Check that a raised credit brings more, and a lowered one takes nothing back but brings no more."""
        rig.send(*"abcdefghij")
        consumer = rig.consumer(credit=2)
        held = rig.collect(consumer, 2)
        consumer.credit(5, 1 << 30)
        held += rig.collect(consumer, 3)
        consumer.credit(1, 1 << 30)
        rig.ack(consumer, held[:3])
        rig.nothing(consumer, why="two are held and the credit is one")
        rig.ack(consumer, held[3:])
        rig.collect(consumer, 1)
        rig.nothing(consumer, why="one is held and the credit is one")

    def test_credit_in_bytes(self, rig: TransportRig) -> None:
        """Check that ``max_bytes`` bounds what is held, and that a message beyond it still comes when alone."""
        rig.send(*[b"x" * 1000] * 5)
        consumer = rig.consumer(max_bytes=2500)
        held = rig.collect(consumer, 2)
        rig.nothing(consumer, why="2,000 of 2,500 bytes are held and the next message has 1,000")
        rig.ack(consumer, held)
        rig.ack(consumer, rig.collect(consumer, 2))
        rig.ack(consumer, rig.collect(consumer, 1))
        rig.send(b"y" * 9000)
        (large,) = rig.collect(consumer, 1)
        rig.send(b"z")
        rig.nothing(consumer, why="a message larger than max_bytes is held")
        rig.ack(consumer, [large])
        rig.collect(consumer, 1)
