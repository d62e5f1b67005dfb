"""Memory transports, each broken in one way, and the tests of the kit that must see it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, ClassVar

from msgspec.structs import replace

from taskq.message import ACK, RELEASE, Delivery, Fetched, Lost, Outbound, QueueFacts, Settlement
from taskq_transport_memory.consumer import MemoryCommitter, MemoryConsumer
from taskq_transport_memory.transport import MemoryTransport


class Consumer(MemoryConsumer):
    """A sound consumer, to break."""


class Transport(MemoryTransport):
    """A sound transport whose consumers are of the mutant's own type."""

    caught_by: ClassVar[tuple[str, ...]] = ()
    consumer_type: ClassVar[type[MemoryConsumer]] = Consumer

    def consumer(self) -> MemoryConsumer:
        consumer = self.consumer_type(self, self.server, self._lease_s)
        self._consumers[consumer] = None
        return consumer


# ------------------------------------------------------------------------------------------------ sending


class LosesOneInAHundred(Transport):
    caught_by = ("test_nothing_is_lost_among_many",)
    n = 0

    def send(self, batch: Sequence[Outbound]) -> Any:
        kept = []
        for message in batch:
            self.n += 1
            if self.n % 100:
                kept.append(message)
        return super().send(kept)


class LosesTheTailOfLargeBatches(Transport):
    caught_by = ("test_every_message_of_any_batch_arrives_once",)

    def send(self, batch: Sequence[Outbound]) -> Any:
        return super().send(batch[:2000])


class DeliversTwice(Transport):
    caught_by = ("test_nothing_is_lost_among_many", "test_every_message_of_any_batch_arrives_once")
    n = 0

    def send(self, batch: Sequence[Outbound]) -> Any:
        self.n += 1
        return super().send([*batch, batch[-1]] if batch and self.n % 50 == 1 else batch)


class ForgetsPriority(Transport):
    caught_by = ("test_higher_priority_first", "test_priority_holds_within_a_batch")

    def send(self, batch: Sequence[Outbound]) -> Any:
        return super().send([replace(m, priority=5) for m in batch])


class ReversesPriority(Transport):
    caught_by = ("test_higher_priority_first", "test_a_late_high_priority_overtakes")

    def send(self, batch: Sequence[Outbound]) -> Any:
        return super().send([replace(m, priority=9 - m.priority) for m in batch])


class RefusesPriorityNine(Transport):
    caught_by = ("test_all_ten_priorities_are_taken",)

    def send(self, batch: Sequence[Outbound]) -> Any:
        return super().send([replace(m, priority=10) if m.priority == 9 else m for m in batch])


class DropsDelay(Transport):
    caught_by = ("test_delayed_messages_wait", "test_delays_end_in_order_of_due_time", "test_stats_follow_a_message")

    def send(self, batch: Sequence[Outbound]) -> Any:
        return super().send([replace(m, delay=0.0) for m in batch])


class OverflowsLongDelays(Transport):
    caught_by = ("test_a_very_long_delay",)

    def send(self, batch: Sequence[Outbound]) -> Any:
        return super().send([replace(m, delay=0.0 if m.delay > 1e6 else m.delay) for m in batch])


class KeepsDelayedMessagesInTheSender(Transport):
    caught_by = ("test_a_delayed_message_outlives_its_sender",)

    def send(self, batch: Sequence[Outbound]) -> Any:
        for message in batch:
            if message.delay:
                threading.Timer(message.delay, self._later, [replace(message, delay=0.0)]).start()
        return super().send([m for m in batch if not m.delay])

    def _later(self, message: Outbound) -> None:
        if not self._closed:
            super().send([message])


class StripsPayloads(Transport):
    caught_by = ("test_payloads_arrive_unchanged",)

    def send(self, batch: Sequence[Outbound]) -> Any:
        return super().send([replace(m, payload=m.payload.rstrip()) for m in batch])


class ComparesQueuesLoosely(Transport):
    caught_by = ("test_queue_names_are_exact",)

    def send(self, batch: Sequence[Outbound]) -> Any:
        return super().send([replace(m, queue=m.queue.lower()) for m in batch])


class MixesUpQueuesOfABatch(Transport):
    caught_by = ("test_one_batch_to_several_queues",)

    def send(self, batch: Sequence[Outbound]) -> Any:
        return super().send([replace(m, queue=batch[0].queue) for m in batch])


class LastInFirstOut(Transport):
    caught_by = ("test_first_in_first_out",)

    def send(self, batch: Sequence[Outbound]) -> Any:
        return super().send(batch[::-1])


class SendsWhileFetchingOnly(Transport):
    """Holds a lock over a blocking fetch."""

    caught_by = (
        "test_settle_does_not_wait_for_a_fetch",
        "test_sending_does_not_wait_for_a_fetch",
        "test_credit_given_back_ends_the_wait",
    )

    class consumer_type(Consumer):  # noqa: N801
        def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
            with self._transport.io:  # type: ignore[attr-defined]
                return super().fetch(limit, wait, ahead=ahead)

        def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
            with self._transport.io:  # type: ignore[attr-defined]
                return super().settle(settlements)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.io = threading.Lock()

    def send(self, batch: Sequence[Outbound]) -> Any:
        with self.io:
            return super().send(batch)


# ----------------------------------------------------------------------------------------- opening, declaring


class TakesMessagesAlongWhenClosed(Transport):
    caught_by = ("test_messages_outlive_the_connection",)

    def close(self, *, timeout: float = 5.0) -> None:
        if not self._closed and self._server is not None:
            self.purge(list(self._server.queues.by_name))
        super().close(timeout=timeout)


class WorksAfterClose(Transport):
    caught_by = ("test_use_after_close_is_refused", "test_errors_are_typed")

    def close(self, *, timeout: float = 5.0) -> None:
        for consumer in list(self._consumers):
            consumer.close()


class MayBeClosedOnce(Transport):
    caught_by = ("test_opening_and_closing_twice_does_no_harm",)

    def close(self, *, timeout: float = 5.0) -> None:
        if self._closed:
            raise RuntimeError("closed")
        super().close(timeout=timeout)


class NeverMissesAQueue(Transport):
    caught_by = ("test_declare_verify_says_what_is_missing",)

    def declare(self, queues: Any, *, mode: Any = "create") -> Any:
        return super().declare(queues)


class AcceptsAnyOption(Transport):
    caught_by = ("test_declare_refuses_an_option_that_it_does_not_know",)

    def declare(self, queues: Any, *, mode: Any = "create") -> Any:
        return super().declare([replace(q, options={}) for q in queues], mode=mode)


class PretendsToKeepOrder(Transport):
    """Answers that a queue is ordered, and has made a plain one."""

    caught_by = ("test_a_group_is_one_at_a_time_and_in_order",)

    def declare(self, queues: Any, *, mode: Any = "create") -> Any:
        super().declare([replace(q, ordered=False) for q in queues], mode=mode)
        return {q.name: QueueFacts() for q in queues}


class ForgetsToCloseConsumers(Transport):
    caught_by = ("test_closing_the_transport_hands_back_too",)

    def close(self, *, timeout: float = 5.0) -> None:
        self._consumers.clear()
        super().close(timeout=timeout)


class LeaksAThread(Transport):
    caught_by = ("test_closing_gives_everything_back",)

    def open(self) -> None:
        super().open()
        threading.Thread(target=time.sleep, args=(3.0,), daemon=True).start()


class LeaksAFileForEachConsumer(Transport):
    caught_by = ("test_consumers_give_everything_back",)
    leaked: ClassVar[list[Any]] = []

    def consumer(self) -> MemoryConsumer:
        self.leaked.append(open("/dev/null", "rb"))  # noqa: SIM115  never closed: the leak
        return super().consumer()


# ------------------------------------------------------------------------------------------------ fetching


class IgnoresWait(Transport):
    caught_by = ("test_fetch_waits",)

    class consumer_type(Consumer):  # noqa: N801
        def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
            return super().fetch(limit, 0.0)


class AlwaysWaits(Transport):
    """A wait that never ends early."""

    caught_by = ("test_a_message_ends_the_wait", "test_wake_ends_the_wait", "test_wake_from_a_signal_handler")

    class consumer_type(Consumer):  # noqa: N801
        def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
            time.sleep(min(wait, 1.5))
            return super().fetch(limit, 0.0)


class WaitsAlthoughToldNotTo(Transport):
    caught_by = ("test_fetch_without_wait_returns_at_once",)

    class consumer_type(Consumer):  # noqa: N801
        def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
            return super().fetch(limit, max(wait, 0.3))


class FetchesOneByOne(Transport):
    caught_by = ("test_fetch_brings_many_at_once",)

    class consumer_type(Consumer):  # noqa: N801
        def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
            return super().fetch(1, wait)


class IgnoresTheLimit(Transport):
    caught_by = ("test_fetch_brings_no_more_than_the_limit",)

    class consumer_type(Consumer):  # noqa: N801
        def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
            return super().fetch(limit + 10, wait)


class ExceedsTheCredit(Transport):
    caught_by = (
        "test_never_more_than_the_credit",
        "test_settling_gives_credit_back",
        "test_credit_may_change_at_any_time",
    )

    class consumer_type(Consumer):  # noqa: N801
        def credit(self, n: int, max_bytes: int) -> None:
            super().credit(n + 1, max_bytes)


class ExceedsTheByteCredit(Transport):
    caught_by = ("test_credit_in_bytes",)

    class consumer_type(Consumer):  # noqa: N801
        def credit(self, n: int, max_bytes: int) -> None:
            super().credit(n, max_bytes + 1000)


class NeverDeliversWhatIsLargerThanTheByteCredit(Transport):
    caught_by = ("test_credit_in_bytes",)

    class consumer_type(Consumer):  # noqa: N801
        def _within_bytes(self, entries: list[Any]) -> bool:
            large = [e for e in entries if len(e.payload) > self._max_bytes]
            self._server.queues.give_back(large)
            entries[:] = [e for e in entries if len(e.payload) <= self._max_bytes]
            return bool(entries) and super()._within_bytes(entries)


class KeepsCreditForEver(Transport):
    """Counts what was ever delivered, not what is held."""

    caught_by = ("test_settling_gives_credit_back",)

    class consumer_type(Consumer):  # noqa: N801
        delivered = 0

        def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
            fetched = super().fetch(min(limit, max(0, self._credit - self.delivered)), min(wait, 0.1))
            self.delivered += len(fetched.deliveries)
            return fetched


class CreditForgetsWhatIsReleased(Transport):
    """Each release lets one message more be held."""

    caught_by = ("test_never_more_than_the_credit",)

    class consumer_type(Consumer):  # noqa: N801
        def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
            self._credit += sum(s.kind == RELEASE for s in settlements)
            return super().settle(settlements)


class EarlyAck(Transport):
    caught_by = ("test_delivered_is_not_acknowledged", "test_an_abandoned_message_comes_back")

    class consumer_type(Consumer):  # noqa: N801
        def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
            fetched = super().fetch(limit, wait)
            super().settle([Settlement(d.receipt) for d in fetched.deliveries])
            return fetched

        def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
            return ()


class ShowsHeldMessagesToOthers(Transport):
    caught_by = ("test_held_is_delivered_to_nobody_else",)

    class consumer_type(Consumer):  # noqa: N801
        def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
            fetched = super().fetch(limit, wait)
            with self._server.lock:
                self._server.queues.give_back([self.held[d.receipt] for d in fetched.deliveries])
            return fetched


class AddsSubscriptions(Transport):
    caught_by = ("test_subscribe_replaces_the_queues",)

    class consumer_type(Consumer):  # noqa: N801
        subscribed: tuple[Any, ...] = ()

        def subscribe(self, queues: Any, *, order: Any = "fair") -> None:
            self.subscribed = (*self.subscribed, *queues)
            super().subscribe(self.subscribed, order=order)


class StarvesQueues(Transport):
    caught_by = ("test_fair_order_passes_no_queue_over", "test_weighted_order_serves_by_weight")

    class consumer_type(Consumer):  # noqa: N801
        def subscribe(self, queues: Any, *, order: Any = "fair") -> None:
            super().subscribe(queues, order="strict")


class IgnoresStrictOrder(Transport):
    caught_by = ("test_strict_order_empties_the_first_queue_first",)

    class consumer_type(Consumer):  # noqa: N801
        def subscribe(self, queues: Any, *, order: Any = "fair") -> None:
            super().subscribe(queues, order="fair")


# ---------------------------------------------------------------------------------------------------- waking


class DeafWake(Transport):
    caught_by = ("test_wake_ends_the_wait", "test_wake_before_fetch_is_not_lost", "test_wake_from_a_signal_handler")

    class consumer_type(Consumer):  # noqa: N801
        def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
            return super().fetch(limit, min(wait, 1.5))  # so that this run ends

        def wake(self) -> None:
            pass


class ForgetfulWake(Transport):
    """Ends a running fetch only."""

    caught_by = ("test_wake_before_fetch_is_not_lost",)

    class consumer_type(Consumer):  # noqa: N801
        running = False

        def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
            self.running = True
            try:
                return super().fetch(limit, min(wait, 1.5))
            finally:
                self.running = False

        def wake(self) -> None:
            if self.running:
                super().wake()


class WakesForEver(Transport):
    caught_by = ("test_wake_ends_one_wait",)

    class consumer_type(Consumer):  # noqa: N801
        awake = False

        def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
            return super().fetch(limit, 0.0 if self.awake else wait)

        def wake(self) -> None:
            self.awake = True
            super().wake()


class WakeTakesALock(Transport):
    """A lock that the thread which the signal interrupts may hold."""

    caught_by = ("test_wake_from_a_signal_handler",)

    class consumer_type(Consumer):  # noqa: N801
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.io = threading.Lock()

        def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
            with self.io:
                return super().fetch(limit, min(wait, 1.0))

        def wake(self) -> None:
            if self.io.acquire(timeout=1.0):
                super().wake()
                self.io.release()


# ------------------------------------------------------------------------------------------------- settling


class IgnoresSettle(Transport):
    caught_by = ("test_acknowledged_is_gone", "test_flush_waits_for_what_was_settled")

    class consumer_type(Consumer):  # noqa: N801
        def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
            return ()


class AcksEverythingBefore(Transport):
    caught_by = ("test_each_is_settled_on_its_own",)

    class consumer_type(Consumer):  # noqa: N801
        def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
            last = max((s.receipt for s in settlements if s.kind == ACK), default=0)
            return super().settle([Settlement(r) for r in list(self.held) if r <= last])


class SwallowsLosses(Transport):
    caught_by = (
        "test_settling_twice_is_reported_and_harmless",
        "test_settling_after_the_lease_is_refused",
        "test_a_lost_lease_is_reported",
    )

    class consumer_type(Consumer):  # noqa: N801
        def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
            super().settle(settlements)
            return ()

        def _reported(self) -> list[Lost]:
            self._lost.clear()
            return []


class RepeatsLosses(Transport):
    caught_by = ("test_losses_are_reported_once",)

    class consumer_type(Consumer):  # noqa: N801
        def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
            lost = super().settle(settlements)
            self._lost.update((entry.receipt, None) for entry in lost)
            return lost


class RaisesOnUnknownReceipts(Transport):
    caught_by = ("test_settling_twice_is_reported_and_harmless", "test_settling_twice_in_one_batch")

    class consumer_type(Consumer):  # noqa: N801
        def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
            if lost := super().settle(settlements):
                raise KeyError(lost[0].receipt)
            return ()


class HonoursAnybodysReceipt(Transport):
    caught_by = ("test_a_receipt_of_another_consumer_is_not_honoured", "test_settling_after_the_lease_is_refused")

    class consumer_type(Consumer):  # noqa: N801
        def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
            super().settle(settlements)
            for holder in self._server.queues.holders:
                for s in settlements:
                    holder.held.pop(s.receipt, None)
            return ()


class CountsHandBacks(Transport):
    caught_by = ("test_released_comes_back_unchanged", "test_fifty_hand_backs_are_not_counted")

    class consumer_type(Consumer):  # noqa: N801
        def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
            return super().settle([replace(s, counted=True) for s in settlements])


class NeverCountsReleases(Transport):
    caught_by = ("test_a_counted_release_is_counted",)

    class consumer_type(Consumer):  # noqa: N801
        def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
            return super().settle([replace(s, counted=False) for s in settlements])


class ReusesReceipts(Transport):
    caught_by = ("test_the_old_receipt_of_a_released_message_is_dead",)

    class consumer_type(Consumer):  # noqa: N801
        def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
            fetched = super().fetch(limit, wait)
            renamed = []
            for d in fetched.deliveries:
                entry = self.held.pop(d.receipt)
                self.held[entry.id] = entry
                renamed.append(replace(d, receipt=entry.id))
            return Fetched(renamed, fetched.lost)


class HandsBackToTheTail(Transport):
    caught_by = ("test_released_messages_go_to_the_head_in_order",)

    class consumer_type(Consumer):  # noqa: N801
        def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
            back = [self.held.pop(s.receipt) for s in settlements if s.kind == RELEASE and s.receipt in self.held]
            for entry in back:
                self._server.queues.queue(entry.queue).push(entry)
            return super().settle([s for s in settlements if s.kind == ACK])


class HandsBackInReverse(Transport):
    caught_by = ("test_released_messages_go_to_the_head_in_order",)

    class consumer_type(Consumer):  # noqa: N801
        def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
            return super().settle(settlements[::-1])


class DropsReleaseDelay(Transport):
    caught_by = ("test_release_with_delay",)

    class consumer_type(Consumer):  # noqa: N801
        def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
            return super().settle([replace(s, delay=0.0) for s in settlements])


class CloseKeepsMessages(Transport):
    caught_by = ("test_close_hands_back_uncounted_and_in_order", "test_delivered_is_not_acknowledged")

    class consumer_type(Consumer):  # noqa: N801
        def close(self) -> None:
            self.held.clear()
            super().close()


class CloseCounts(Transport):
    caught_by = ("test_close_hands_back_uncounted_and_in_order",)

    class consumer_type(Consumer):  # noqa: N801
        def close(self) -> None:
            for entry in self.held.values():
                entry.ended += 1
            super().close()


# --------------------------------------------------------------------------------------------------- leases


class NeverReaps(Transport):
    caught_by = ("test_an_abandoned_message_comes_back", "test_a_returned_message_can_be_lost_again")

    class consumer_type(Consumer):  # noqa: N801
        def __init__(self, transport: Any, server: Any, lease_s: float) -> None:
            super().__init__(transport, server, 3600.0)


class ReapsEarly(Transport):
    caught_by = ("test_an_abandoned_message_comes_back",)

    class consumer_type(Consumer):  # noqa: N801
        def __init__(self, transport: Any, server: Any, lease_s: float) -> None:
            super().__init__(transport, server, lease_s / 3)


class IgnoresExtend(Transport):
    caught_by = ("test_extending_keeps_the_lease",)

    class consumer_type(Consumer):  # noqa: N801
        def extend(self, receipts: Any = None) -> Sequence[Lost]:
            return ()


class ForgetsLostDeliveries(Transport):
    """A message that killed its workers looks new each time."""

    caught_by = ("test_an_abandoned_message_comes_back", "test_a_returned_message_can_be_lost_again")

    class consumer_type(Consumer):  # noqa: N801
        def take_away(self) -> list[Any]:
            entries = super().take_away()
            for entry in entries:
                entry.ended -= 1
            return entries


class LosesTheLeasesMessages(Transport):
    caught_by = ("test_an_abandoned_message_comes_back",)

    class consumer_type(Consumer):  # noqa: N801
        def take_away(self) -> list[Any]:
            return super().take_away()[:-1]


# ------------------------------------------------------------------------------------------------ abilities


class PurgesWhatIsInFlight(Transport):
    caught_by = ("test_purge_leaves_what_is_in_flight",)

    def purge(self, queues: Sequence[str]) -> Any:
        for consumer in self._consumers:
            consumer.held.clear()
        return super().purge(queues)


class ForgetsToPurgeDelayed(Transport):
    caught_by = ("test_purge_leaves_what_is_in_flight",)

    def purge(self, queues: Sequence[str]) -> Any:
        delayed = {q.name: q.delayed[:] for q in self.server.queues.by_name.values()}
        purged = super().purge(queues)
        for name, heap in delayed.items():
            self.server.queues.queue(name).delayed[:] = heap
        return purged


class CountsInFlightAsReady(Transport):
    caught_by = ("test_stats_follow_a_message",)

    def stats(self, queues: Sequence[str]) -> Any:
        found = super().stats(queues)
        return {n: replace(s, ready=(s.ready or 0) + (s.in_flight or 0)) for n, s in found.items()}


class InventsStatsOfUnknownQueues(Transport):
    caught_by = ("test_stats_leave_out_unknown_queues",)

    def stats(self, queues: Sequence[str]) -> Any:
        for name in queues:
            self.server.queues.queue(name)
        return super().stats(queues)


class PeekTakes(Transport):
    caught_by = ("test_peek_takes_nothing",)

    def peek(self, queue: str, *, limit: int = 100, after: str | None = None) -> Any:
        found = super().peek(queue, limit=limit, after=after)
        for line in self.server.queues.queue(queue).levels.values():
            for entry in line:
                entry.ended += 1
        return found


class PeekIgnoresItsCursor(Transport):
    caught_by = ("test_peek_pages_with_its_cursor",)

    def peek(self, queue: str, *, limit: int = 100, after: str | None = None) -> Any:
        return super().peek(queue, limit=limit)


class PeekHidesDelay(Transport):
    caught_by = ("test_peek_tells_delayed_from_ready",)

    def peek(self, queue: str, *, limit: int = 100, after: str | None = None) -> Any:
        return [replace(p, delay=0.0) for p in super().peek(queue, limit=limit, after=after)]


class BroadcastsToOneOnly(Transport):
    caught_by = ("test_broadcast_reaches_all_who_listen",)

    def broadcast(self, channel: str, payload: bytes) -> None:
        for listener in list(self.server.audience):
            if getattr(listener, "_channels", {}).get(channel):
                listener.heard(channel, payload)
                return


class CommitsForLostReceipts(Transport):
    caught_by = ("test_commit_for_a_lost_receipt_does_nothing",)

    class consumer_type(Consumer):  # noqa: N801
        def fuse(self, store: Any) -> Any:
            return Careless(self, self._server)


class Careless(MemoryCommitter):
    """Stores and sends before it looks whether the receipt is held."""

    def commit(self, commits: Any) -> Any:
        with self._server.lock:
            now = self._server.clock.monotonic()
            self._server.records.put([c.record for c in commits if c.record], now)
            self._server.queues.send([o for c in commits for o in c.follow_ups], now)
            return self._consumer.settle_locked([c.settlement for c in commits], now)


class CommitsWithoutFollowUps(Transport):
    caught_by = ("test_commit_does_all_three",)

    class consumer_type(Consumer):  # noqa: N801
        def fuse(self, store: Any) -> Any:
            class Forgetful(MemoryCommitter):
                def commit(self, commits: Any) -> Any:
                    return super().commit([replace(c, follow_ups=()) for c in commits])

            return Forgetful(self, self._server)


# ------------------------------------------------------------------------- seen by random sequences alone

_RANDOM = "test_random_sequences_keep_every_promise"


class RequeuesOnASecondRelease(Transport):
    caught_by = (_RANDOM,)

    class consumer_type(Consumer):  # noqa: N801
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.past: dict[Any, Any] = {}

        def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
            for s in settlements:
                if s.receipt in self.held:
                    self.past[s.receipt] = self.held[s.receipt]
                elif s.kind == RELEASE and s.receipt in self.past:
                    self._server.queues.give_back([self.past[s.receipt]])
            return super().settle(settlements)


class LosesTheFourthOfARelease(Transport):
    caught_by = (_RANDOM,)

    class consumer_type(Consumer):  # noqa: N801
        def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
            if len(settlements) > 3 and settlements[3].kind == RELEASE:
                self.held.pop(settlements[3].receipt, None)
                settlements = [*settlements[:3], *settlements[4:]]
            return super().settle(settlements)


class ForgetsWhatIsHeldOnSubscribe(Transport):
    caught_by = (_RANDOM,)

    class consumer_type(Consumer):  # noqa: N801
        def subscribe(self, queues: Any, *, order: Any = "fair") -> None:
            super().subscribe(queues, order=order)
            self._server.queues.give_back(list(self.held.values()))
            self.held.clear()


class CountsTheSecondCloseOnly(Transport):
    caught_by = (_RANDOM,)
    closed = 0

    class consumer_type(Consumer):  # noqa: N801
        def close(self) -> None:
            if not self._closed and self.held:
                Transport.total = getattr(Transport, "total", 0) + 1  # type: ignore[attr-defined]
                if Transport.total % 3 == 0:  # type: ignore[attr-defined]
                    for entry in self.held.values():
                        entry.ended += 1
            super().close()


MUTANTS: list[type[Transport]] = [
    found
    for found in list(globals().values())
    if isinstance(found, type) and issubclass(found, Transport) and found is not Transport
]

__all__ = ["MUTANTS", "Delivery", "Transport"]
