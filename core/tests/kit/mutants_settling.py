"""Transports broken in settling, leases, abilities, and in ways that only random sequences see."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from core.tests.kit.mutant import Consumer, Transport
from taskq.message import ACK, RELEASE, Fetched, Lost, Settlement
from taskq_transport_memory.consumer import MemoryCommitter

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


class GroupsOvertakeWhatIsReleased(Transport):
    caught_by = ("test_a_released_message_keeps_its_place_in_the_group",)

    class consumer_type(Consumer):  # noqa: N801
        def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
            back = [self.held[s.receipt] for s in settlements if s.kind == RELEASE and s.receipt in self.held]
            lost = super().settle(settlements)
            for entry in back:
                queue = self._server.queues.queue(entry.queue)
                if entry.group is not None and queue.finished(entry.group):
                    queue.levels[entry.priority].rotate(1)
            return lost


class CommitsOverABetterRecord(Transport):
    caught_by = ("test_commit_keeps_a_better_record",)

    class consumer_type(Consumer):  # noqa: N801
        def fuse(self, store: Any) -> Any:
            class Forceful(MemoryCommitter):
                def commit(self, commits: Any) -> Any:
                    self._server.records.delete([c.record.id for c in commits if c.record])
                    return super().commit(commits)

            return Forceful(self, self._server)


class CommitsAcknowledgeOnly(Transport):
    caught_by = ("test_commit_may_release_or_carry_nothing",)

    class consumer_type(Consumer):  # noqa: N801
        def fuse(self, store: Any) -> Any:
            class Acking(MemoryCommitter):
                def commit(self, commits: Any) -> Any:
                    return super().commit([replace(c, settlement=replace(c.settlement, kind=ACK)) for c in commits])

            return Acking(self, self._server)


class CommitsAHundred(Transport):
    caught_by = ("test_commit_of_many",)

    class consumer_type(Consumer):  # noqa: N801
        def fuse(self, store: Any) -> Any:
            class Small(MemoryCommitter):
                def commit(self, commits: Any) -> Any:
                    return super().commit(commits[:100])

            return Small(self, self._server)


class SettlesOnACopy(Transport):
    """Loses what another thread fetched meanwhile."""

    caught_by = ("test_fetch_and_settle_at_once",)

    class consumer_type(Consumer):  # noqa: N801
        def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
            before = dict(self.held)
            time.sleep(0.0005)
            lost = super().settle(settlements)
            self.held = {r: e for r, e in self.held.items() if r in before}
            return lost


class LeasesReturnWhatWasSettled(Transport):
    caught_by = ("test_settled_messages_do_not_come_back_with_the_lease",)

    class consumer_type(Consumer):  # noqa: N801
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.past: list[Any] = []

        def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
            self.past += [self.held[s.receipt] for s in settlements if s.receipt in self.held]
            return super().settle(settlements)

        def take_away(self) -> list[Any]:
            return super().take_away() + self.past


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
