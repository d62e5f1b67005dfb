"""What a transport with leases must do, and how waiting, waking and threads must work together."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from taskq.message import RELEASE, Delivery, Fetched, Settlement
from taskq.spi import Consumer, Fencing, LeaseScope, SupportsMaintenance
from taskq.testing.base import within
from taskq.testing.transport_rig import TransportRig
from taskq.testing.transports_base import TransportBase


class LeaseTests(TransportBase):
    """Leases that end, leases that are kept, and fencing."""

    def _need_lease(self, rig: TransportRig) -> None:
        # A connection's lease ends with the connection only; the tests that kill a process look at that.
        rig.need(rig.caps.lease_scope in (LeaseScope.MESSAGE, LeaseScope.CONSUMER), "lease that must be extended")

    def _abandoned(self, rig: TransportRig, *payloads: str) -> tuple[Consumer, list[Delivery], Consumer]:
        """Return a consumer that holds messages and is not going to extend its lease, and another consumer."""
        holder = rig.consumer(transport=rig.open(lease_s=rig.lease_s))
        rig.send(*payloads)
        held = rig.collect(holder, len(payloads))
        return holder, held, rig.consumer(transport=rig.open())

    def _wait_for_return(self, rig: TransportRig, other: Consumer, n: int) -> list[Delivery]:
        return rig.collect(other, n, seconds=rig.lease_s + self.slack_s)

    def test_an_abandoned_message_comes_back(self, rig: TransportRig) -> None:
        """Check that unacknowledged work of a consumer that stopped extending is redelivered within the lease.

        Its ``deliveries`` are raised; it is not redelivered before the lease ends.
        """
        self._need_lease(rig)
        started = time.monotonic()
        _, _, other = self._abandoned(rig, "a", "b")
        back = self._wait_for_return(rig, other, 2)
        assert time.monotonic() - started >= rig.lease_s * 0.8, "redelivered before the lease ended"
        assert {d.payload for d in back} == {b"a", b"b"}
        for delivery in back:
            rig.counts(delivery, 2)
        rig.ack(other, back)
        rig.nothing(other)

    def test_settling_after_the_lease_is_refused(self, rig: TransportRig) -> None:
        """Check that who lost a lease cannot settle any more: neither end nor release the new holder's message."""
        self._need_lease(rig)
        rig.need(rig.caps.fencing is Fencing.EXACT, "exact fencing")
        holder, (a, b), other = self._abandoned(rig, "a", "b")
        back = self._wait_for_return(rig, other, 2)
        lost = rig.settle(holder, [Settlement(a.receipt), Settlement(b.receipt, RELEASE)])
        for delivery in (a, b):
            assert rig.is_lost(holder, delivery.receipt, lost), "a settlement that came too late was not reported"
        third = rig.consumer(transport=rig.open())
        rig.nothing(third, why="a late release of the old holder touched the new holder's message")
        rig.ack(other, back)

    def test_a_lost_lease_is_reported(self, rig: TransportRig) -> None:
        """Check that ``fetch`` or ``extend`` tells who lost a lease, so that unstarted copies are dropped; once."""
        self._need_lease(rig)
        rig.need(rig.caps.fencing is not Fencing.NONE, "fencing")
        holder, (a,), other = self._abandoned(rig, "a")
        self._wait_for_return(rig, other, 1)
        reported = 0
        deadline = time.monotonic() + self.patience_s / 2
        while time.monotonic() < deadline and reported == 0:
            lost = [*holder.extend([a.receipt]), *holder.fetch(1, 0.05).lost]
            reported += sum(entry.receipt == a.receipt for entry in lost)
        assert reported == 1, f"the loss was reported {reported} times"
        assert not any(entry.receipt == a.receipt for entry in holder.fetch(1, 0.05).lost), "reported again"

    def test_extending_keeps_the_lease(self, rig: TransportRig) -> None:
        """Check that a lease extended every third of its time does not end, while nobody else calls anything."""
        self._need_lease(rig)
        holder, held, other = self._abandoned(rig, "a", "b")
        receipts = None if rig.caps.lease_scope is LeaseScope.CONSUMER else [d.receipt for d in held]
        extended = time.monotonic()
        deadline = extended + rig.lease_s * 2.2
        while time.monotonic() < deadline:
            asked = time.monotonic()
            lost = holder.extend(receipts)
            found, _ = rig.gather(other, 1, seconds=rig.lease_s / 3)
            if (lost or found) and time.monotonic() - extended > rig.lease_s * 0.9:
                pytest.skip("this machine is too busy: it did not extend the lease in time")
            assert not found, "it was redelivered although its lease was extended in time"
            assert not lost, f"extend reported a loss of what was extended in time: {lost}"
            extended = asked
        rig.ack(holder, held)
        rig.nothing(other)

    def test_a_returned_message_can_be_lost_again(self, rig: TransportRig) -> None:
        """Check that the second delivery has a lease like the first, and that counts go on rising."""
        self._need_lease(rig)
        _, _, other = self._abandoned(rig, "a")
        short = rig.consumer(transport=rig.open(lease_s=rig.lease_s))
        other.close()
        rig.counts(self._wait_for_return(rig, short, 1)[0], 2)
        last = rig.consumer(transport=rig.open())
        rig.counts(self._wait_for_return(rig, last, 1)[0], 3)

    def test_settled_messages_do_not_come_back_with_the_lease(self, rig: TransportRig) -> None:
        """Check that the end of a consumer's lease returns only what it had not settled."""
        self._need_lease(rig)
        holder, (a, b, c), other = self._abandoned(rig, "a", "b", "c")
        rig.ack(holder, [a, c])
        back = self._wait_for_return(rig, other, 1)
        assert [d.payload for d in back] == [b.payload]
        rig.nothing(other, why="it was acknowledged in time")

    def test_maintenance_is_safe_at_any_time(self, rig: TransportRig) -> None:
        """Check that ``maintain`` by several transports at once takes nothing from a living consumer."""
        rig.need(isinstance(rig.main, SupportsMaintenance), "maintenance")
        rig.send(*"abc")
        consumer = rig.consumer()
        held = rig.collect(consumer, 3)
        transports = [rig.open(), rig.open()]

        def work(transport: object) -> Callable[[], None]:
            def run() -> None:
                for _ in range(5):
                    assert isinstance(transport, SupportsMaintenance)
                    assert transport.maintain(0.05) > 0, "maintain returns the seconds until it is due again"

            return run

        threads = [threading.Thread(target=work(t)) for t in transports]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(self.patience_s * 2)
            assert not thread.is_alive(), "maintain did not return"
        rig.ack(consumer, held)
        consumer.close()
        rig.empty()


class ThreadTests(TransportBase):
    """Waiting, waking, and calls from several threads at once."""

    def _waiting_fetch(self, rig: TransportRig, of: Consumer | None = None) -> tuple[Consumer, Callable[[], Fetched]]:
        """Return a consumer whose fetch waits on another thread, and a function that returns what it brought."""
        wait = self.patience_s * 2
        consumer = of or rig.consumer()
        consumer.fetch(1, 0.0)
        box: list[Fetched] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                box.append(consumer.fetch(10, wait))
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, name="kit: a waiting fetch", daemon=True)
        thread.start()
        time.sleep(0.1)

        def result() -> Fetched:
            thread.join(self.patience_s)
            if thread.is_alive():
                pytest.fail(f"fetch(wait={wait:g}) still waits {self.patience_s:g} s after what should have ended it")
            if errors:
                raise errors[0]
            return box[0]

        return consumer, result

    def test_a_message_ends_the_wait(self, rig: TransportRig) -> None:
        """Check that a waiting fetch returns soon after a message was sent on another connection."""
        sender = rig.open()
        _, result = self._waiting_fetch(rig)
        rig.send("a", transport=sender)
        assert [d.payload for d in result().deliveries] == [b"a"]

    def test_wake_ends_the_wait(self, rig: TransportRig) -> None:
        """Check that ``wake`` from another thread makes the running fetch return soon, with what it has."""
        consumer, result = self._waiting_fetch(rig)
        consumer.wake()
        assert not result().deliveries

    def test_wake_before_fetch_is_not_lost(self, rig: TransportRig) -> None:
        """Check that ``wake`` is sticky: without a running fetch it ends the next one."""
        consumer = rig.consumer()
        consumer.fetch(1, 0.0)
        consumer.wake()
        within(self.patience_s, "fetch after wake", lambda: consumer.fetch(1, self.patience_s * 2))

    def test_wake_ends_one_wait(self, rig: TransportRig) -> None:
        """Check that fetch waits again after it was woken: one wake must not make a busy loop."""
        consumer = rig.consumer()
        consumer.fetch(1, 0.0)
        for _ in range(3):
            consumer.wake()
        waited = []
        for _ in range(4):
            started = time.monotonic()
            consumer.fetch(1, 0.2)
            waited.append(time.monotonic() - started)
        assert max(waited) >= 0.15, f"after a wake fetch(wait=0.2) took {[f'{w:.3f}' for w in waited]} s"

    def test_wake_from_a_signal_handler(self, rig: TransportRig) -> None:
        """Check that ``wake`` takes no lock that the interrupted thread may hold: it is called by signal handlers."""
        if threading.current_thread() is not threading.main_thread():
            pytest.skip("signal handlers run on the main thread, and this test does not")
        consumer = rig.consumer()
        consumer.fetch(1, 0.0)
        before = signal.signal(signal.SIGUSR1, lambda *_: consumer.wake())
        timer = threading.Timer(0.15, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        try:
            started = time.monotonic()
            consumer.fetch(1, self.patience_s * 2)
            assert time.monotonic() - started < self.patience_s, "a wake from a signal handler was not heard"
        finally:
            timer.join()
            signal.signal(signal.SIGUSR1, before)

    def test_many_wakes_from_many_threads(self, rig: TransportRig) -> None:
        """Check that ``wake`` never raises or blocks, however often, also after ``close``."""
        consumer = rig.consumer()

        def wakes() -> None:
            for _ in range(200):
                consumer.wake()

        threads = [threading.Thread(target=wakes) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            consumer.fetch(1, 0.01)
        for thread in threads:
            thread.join(self.patience_s)
            assert not thread.is_alive(), "wake blocked"
        consumer.close()
        consumer.wake()

    def test_settle_does_not_wait_for_a_fetch(self, rig: TransportRig) -> None:
        """Check that no lock is held over a blocking fetch: settlements and extensions pass it."""
        rig.send("a")
        consumer = rig.consumer()
        held = rig.collect(consumer, 1)
        _, result = self._waiting_fetch(rig, consumer)

        def others() -> None:
            consumer.extend(None if rig.caps.lease_scope is LeaseScope.CONSUMER else [held[0].receipt])
            rig.ack(consumer, held)

        within(self.patience_s, "settling beside a waiting fetch", others)
        consumer.wake()
        result()
        consumer.close()
        rig.empty()

    def test_sending_does_not_wait_for_a_fetch(self, rig: TransportRig) -> None:
        """Check that ``send`` on the same transport passes a blocking fetch, and that the fetch gets the message."""
        _, result = self._waiting_fetch(rig)
        within(self.patience_s, "sending beside a waiting fetch", lambda: rig.send("a"))
        assert [d.payload for d in result().deliveries] == [b"a"]

    def test_credit_given_back_ends_the_wait(self, rig: TransportRig) -> None:
        """Check that a fetch that waits for credit goes on when another thread settles."""
        rig.send("a", "b")
        consumer = rig.consumer(credit=1)
        held = rig.collect(consumer, 1)
        _, result = self._waiting_fetch(rig, consumer)
        within(self.patience_s, "settling beside a starved fetch", lambda: rig.ack(consumer, held))
        assert len(result().deliveries) == 1

    def test_many_threads_send(self, rig: TransportRig) -> None:
        """Check that ``send`` may be called by any number of threads at once."""
        errors: list[BaseException] = []

        def work(name: int) -> None:
            try:
                for i in range(25):
                    rig.send(f"{name}-{i}")
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(self.patience_s * 4)
            assert not thread.is_alive(), "a send hangs"
        assert not errors, f"send failed on a thread: {errors[0]!r}"
        payloads = [d.payload for d in rig.collect(rig.consumer(), 100)]
        assert len(set(payloads)) == 100

    def test_fetch_and_settle_at_once(self, rig: TransportRig) -> None:
        """Check that fetching on one thread and settling on another, while a third sends, loses and doubles nothing."""
        n = 400
        fetched: list[Delivery] = []
        failures: list[BaseException] = []
        todo = threading.Semaphore(0)
        consumer = rig.consumer(credit=50)
        deadline = time.monotonic() + self.patience_s * 4

        def settle() -> None:
            try:
                for i in range(n):
                    if not todo.acquire(timeout=max(0.1, deadline - time.monotonic())):
                        return
                    lost = consumer.settle([Settlement(fetched[i].receipt)])
                    assert not lost, f"a receipt was lost without reason: {lost}"
            except BaseException as error:
                failures.append(error)

        def send() -> None:
            try:
                for i in range(0, n, 8):
                    rig.send(*(f"{j}" for j in range(i, i + 8)))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=settle), threading.Thread(target=send)]
        for thread in threads:
            thread.start()
        while len(fetched) < n and time.monotonic() < deadline and not failures:
            for delivery in consumer.fetch(20, 0.1).deliveries:
                fetched.append(delivery)
                todo.release()
        for thread in threads:
            thread.join(self.patience_s * 2)
        assert not failures, f"{failures[0]!r}"
        assert not consumer.flush(self.patience_s)
        assert sorted(int(d.payload) for d in fetched) == list(range(n))
        consumer.close()
        rig.empty()
