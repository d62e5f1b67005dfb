"""Transports broken in opening, declaring, sending, fetching and waking."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, ClassVar

from msgspec.structs import replace

from core.tests.kit.mutant import Consumer, Transport
from taskq.errors import NotSupported
from taskq.message import RELEASE, Fetched, Lost, Outbound, QueueFacts, Settlement, Subscription
from taskq_transport_memory.consumer import MemoryConsumer

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


class DropsWhatIsForUndeclaredQueues(Transport):
    caught_by = ("test_a_queue_that_nobody_declared",)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.declared: set[str] = set()

    def declare(self, queues: Any, *, mode: Any = "create") -> Any:
        self.declared.update(q.name for q in queues)
        return super().declare(queues, mode=mode)

    def send(self, batch: Sequence[Outbound]) -> Any:
        return super().send([m for m in batch if m.queue in self.declared])


class ClosesOnlyWhatIsOpen(Transport):
    caught_by = ("test_closing_a_transport_that_was_never_opened",)

    def close(self, *, timeout: float = 5.0) -> None:
        if self._server is None:
            raise RuntimeError("not open")
        super().close(timeout=timeout)


class DeclaresOnce(Transport):
    caught_by = ("test_declare_makes_queues_and_repeats",)

    def declare(self, queues: Any, *, mode: Any = "create") -> Any:
        if mode == "create" and any(q.name in self.server.queues.by_name for q in queues):
            raise RuntimeError("the queue exists")
        return super().declare(queues, mode=mode)


class VerifiesWhateverIsSaid(Transport):
    caught_by = ("test_declare_none_does_nothing",)

    def declare(self, queues: Any, *, mode: Any = "create") -> Any:
        return super().declare(queues, mode="verify" if mode == "none" else mode)


class RefusesOrder(Transport):
    caught_by = ("test_declare_refuses_ordered_queues_that_it_cannot_keep",)

    def declare(self, queues: Any, *, mode: Any = "create") -> Any:
        if any(q.ordered for q in queues):
            raise NotSupported("no order")
        return super().declare(queues, mode=mode)


class NeedsSomethingToSend(Transport):
    caught_by = ("test_empty_batches_are_fine",)

    def send(self, batch: Sequence[Outbound]) -> Any:
        self.last = batch[-1]
        return super().send(batch)


class NeedsSomethingToSubscribe(Transport):
    caught_by = ("test_fetch_before_any_subscription",)

    class consumer_type(Consumer):  # noqa: N801
        def subscribe(self, queues: Sequence[Subscription], *, order: Any = "fair") -> None:
            self.first = queues[0]
            super().subscribe(queues, order=order)


class SendsFromOneThreadOnly(Transport):
    caught_by = ("test_many_threads_send",)

    def send(self, batch: Sequence[Outbound]) -> Any:
        self.buffer = batch
        time.sleep(0.001)
        return super().send(self.buffer)


class DeliversOtherTypes(Transport):
    caught_by = ("test_roundtrip",)

    def send(self, batch: Sequence[Outbound]) -> Any:
        return super().send([replace(m, payload=bytearray(m.payload)) for m in batch])


class NamesTheWrongQueue(Transport):
    caught_by = ("test_roundtrip",)

    class consumer_type(Consumer):  # noqa: N801
        def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
            fetched = super().fetch(limit, wait)
            return Fetched([replace(d, queue="default") for d in fetched.deliveries], fetched.lost)


class StopsAtTheFirstFetch(Transport):
    caught_by = ("test_send_may_go_on_while_messages_are_held",)

    class consumer_type(Consumer):  # noqa: N801
        def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
            return Fetched() if self.held else super().fetch(limit, wait)


class WakeNeedsAnOpenConsumer(Transport):
    caught_by = ("test_many_wakes_from_many_threads",)

    class consumer_type(Consumer):  # noqa: N801
        def wake(self) -> None:
            self._check()
            super().wake()


class AgesOfTheYoungest(Transport):
    caught_by = ("test_oldest_age_grows",)

    def stats(self, queues: Sequence[str]) -> Any:
        return {n: replace(s, oldest_age=0.001 if s.ready else None) for n, s in super().stats(queues).items()}


class PurgesKnownQueuesOnly(Transport):
    caught_by = ("test_purging_an_unknown_queue",)

    def purge(self, queues: Sequence[str]) -> Any:
        purged = super().purge(queues)
        return {q: purged[q] for q in queues}


class PeeksIntoKnownQueuesOnly(Transport):
    caught_by = ("test_peek_of_an_unknown_queue",)

    def peek(self, queue: str, *, limit: int = 100, after: str | None = None) -> Any:
        self.server.queues.by_name[queue]
        return super().peek(queue, limit=limit, after=after)


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
