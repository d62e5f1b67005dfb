"""Memory stores, each broken in one way, and the tests of the kit that must see it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, ClassVar

from msgspec.structs import replace

from taskq.message import Record
from taskq.spi import Op, OpKind, OpResult
from taskq_store_memory.store import MemoryStore


class Store(MemoryStore):
    """A sound store, to break."""

    caught_by: ClassVar[tuple[str, ...]] = ()


# -------------------------------------------------------------------------------------------------- keeping


class LosesTheTailOfLargeBatches(Store):
    caught_by = ("test_any_number_of_records",)

    def put(self, records: Sequence[Record]) -> Any:
        return super().put(records[:1500])


class LosesFollowUps(Store):
    caught_by = ("test_roundtrip_keeps_every_field",)

    def put(self, records: Sequence[Record]) -> Any:
        return super().put([replace(r, follow_ups=None) for r in records])


class ForgetsTheEpoch(Store):
    caught_by = ("test_roundtrip_keeps_every_field", "test_which_record_replaces_which")

    def put(self, records: Sequence[Record]) -> Any:
        return super().put([replace(r, epoch=0) for r in records])


class StripsPayloads(Store):
    caught_by = ("test_payloads_are_kept_unchanged",)

    def put(self, records: Sequence[Record]) -> Any:
        return super().put([replace(r, payload=r.payload.rstrip()) for r in records])


class KeepsTerminalRecordsOnly(Store):
    caught_by = ("test_a_non_terminal_record_is_kept",)

    def put(self, records: Sequence[Record]) -> Any:
        return super().put([r for r in records if r.terminal])


class LeavesOutUnknownIds(Store):
    caught_by = ("test_get_answers_each_id_in_order",)

    def get(self, ids: Sequence[str]) -> Any:
        return [r for r in super().get(ids) if r is not None]


class AnswersEachIdOnce(Store):
    caught_by = ("test_get_answers_each_id_in_order",)

    def get(self, ids: Sequence[str]) -> Any:
        return super().get(list(dict.fromkeys(ids)))


class ComparesIdsLoosely(Store):
    caught_by = ("test_ids_are_exact",)

    def put(self, records: Sequence[Record]) -> Any:
        return super().put([replace(r, id=r.id.strip().lower()) for r in records])

    def get(self, ids: Sequence[str]) -> Any:
        return super().get([i.strip().lower() for i in ids])


class TruncatesIds(Store):
    caught_by = ("test_long_ids",)

    def put(self, records: Sequence[Record]) -> Any:
        return super().put([replace(r, id=r.id[:190]) for r in records])

    def get(self, ids: Sequence[str]) -> Any:
        return super().get([i[:190] for i in ids])


class NeverDeletes(Store):
    caught_by = ("test_deleted_is_gone_and_may_be_put_again", "test_any_number_of_records")

    def delete(self, ids: Sequence[str]) -> None:
        pass


class DeletesInItsOwnCacheOnly(Store):
    caught_by = ("test_deleted_is_gone_and_may_be_put_again",)
    deleted: set[str]

    def open(self) -> None:
        super().open()
        self.deleted = set()

    def get(self, ids: Sequence[str]) -> Any:
        return [None if i in self.deleted else r for i, r in zip(ids, super().get(ids), strict=True)]

    def delete(self, ids: Sequence[str]) -> None:
        self.deleted.update(ids)


class MayBeClosedOnce(Store):
    caught_by = ("test_opening_and_closing_twice_does_no_harm",)

    def close(self, *, timeout: float = 5.0) -> None:
        if self._closed:
            raise RuntimeError("closed")
        super().close()


class WorksAfterClose(Store):
    caught_by = ("test_use_after_close_is_refused",)

    def close(self, *, timeout: float = 5.0) -> None:
        pass


class LeaksAThread(Store):
    caught_by = ("test_closing_gives_everything_back",)

    def open(self) -> None:
        super().open()
        threading.Thread(target=time.sleep, args=(3.0,), daemon=True).start()


# ---------------------------------------------------------------------------------------------- superseding


class ReplacesTerminal(Store):
    caught_by = ("test_which_record_replaces_which", "test_repeating_a_put_is_reported_and_harmless")

    def put(self, records: Sequence[Record]) -> Any:
        self.delete([r.id for r in records])
        return super().put(records)


class NeverReplaces(Store):
    caught_by = ("test_which_record_replaces_which",)

    def put(self, records: Sequence[Record]) -> Any:
        return super().put([r for r, old in zip(records, self.get([r.id for r in records]), strict=True) if not old])


class ComparesAttemptsAsText(Store):
    caught_by = ("test_which_record_replaces_which",)

    def put(self, records: Sequence[Record]) -> Any:
        kept = []
        for record in records:
            (old,) = self.get([record.id])
            if old is None or (str(old.epoch), str(old.attempt)) <= (str(record.epoch), str(record.attempt)):
                kept.append(record)
        return super().put(kept)


class ReportsNothingSuperseded(Store):
    caught_by = ("test_which_record_replaces_which", "test_one_batch_with_an_id_twice")

    def put(self, records: Sequence[Record]) -> Any:
        super().put(records)
        return []


class RefusesTheWholeBatch(Store):
    caught_by = ("test_a_superseded_record_does_not_hurt_its_batch",)

    def put(self, records: Sequence[Record]) -> Any:
        if any(self.get([r.id for r in records])):
            return [r.id for r in records]
        return super().put(records)


class AppliesABatchBackwards(Store):
    caught_by = ("test_one_batch_with_an_id_twice",)

    def put(self, records: Sequence[Record]) -> Any:
        return super().put(records[::-1])


class LooksBeforeItWrites(Store):
    """The rule is kept, but not atomically."""

    caught_by = ("test_one_of_many_writers_wins",)

    def put(self, records: Sequence[Record]) -> Any:
        found = self.get([r.id for r in records])
        time.sleep(0.002)
        better = [r for r, old in zip(records, found, strict=True) if old is None or not old.terminal]
        self.delete([r.id for r in better])
        super().put(better)
        return [r.id for r in records if r not in better]


# -------------------------------------------------------------------------------------------------- expiring


class ForgetsTheTtl(Store):
    caught_by = ("test_records_expire", "test_an_expired_record_stands_in_nobodys_way")

    def put(self, records: Sequence[Record]) -> Any:
        return super().put([replace(r, ttl=1e6) for r in records])


class ExpiresEarly(Store):
    caught_by = ("test_records_expire",)

    def put(self, records: Sequence[Record]) -> Any:
        return super().put([replace(r, ttl=r.ttl / 3) for r in records])


class KeepsTheFirstTtl(Store):
    caught_by = ("test_a_new_record_has_its_own_ttl",)
    first: ClassVar[dict[str, float]] = {}

    def put(self, records: Sequence[Record]) -> Any:
        return super().put([replace(r, ttl=self.first.setdefault(r.id, r.ttl)) for r in records])


class SweepsEverything(Store):
    caught_by = ("test_sweeping_takes_only_what_expired",)

    def maintain(self, budget_s: float) -> float:
        self.server.records.results.clear()
        return 60.0


class ExpiredRecordsStillSupersede(Store):
    caught_by = ("test_an_expired_record_stands_in_nobodys_way",)
    best: ClassVar[dict[str, tuple[int, int]]] = {}

    def put(self, records: Sequence[Record]) -> Any:
        kept = []
        for r in records:
            if (r.epoch, r.attempt) >= self.best.get(r.id, (0, 0)):
                self.best[r.id] = (r.epoch, r.attempt)
                kept.append(r)
        super().put(kept)
        return [r.id for r in records if r not in kept]


# --------------------------------------------------------------------------------------------------- waiting


class DeafWait(Store):
    """Looks when the time is over."""

    caught_by = ("test_a_result_ends_the_wait", "test_wake_ends_the_wait", "test_a_result_from_before_counts")

    def wait(self, ids: Sequence[str], timeout: float) -> Any:
        time.sleep(min(timeout, 1.0))
        return super().wait(ids, 0.0)


class BusyWait(Store):
    caught_by = ("test_waiting_in_vain_takes_its_time",)

    def wait(self, ids: Sequence[str], timeout: float) -> Any:
        return super().wait(ids, 0.0)


class WaitForgetsThePast(Store):
    """Tells of what is stored from now on."""

    caught_by = ("test_a_result_from_before_counts",)

    def wait(self, ids: Sequence[str], timeout: float) -> Any:
        return super().wait([i for i in ids if self.get([i]) == [None]], min(timeout, 1.0))


class WaitTakesHalfResults(Store):
    caught_by = ("test_a_non_terminal_record_ends_no_wait",)

    def wait(self, ids: Sequence[str], timeout: float) -> Any:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and not self._closed:
            if found := [r for r in self.get(ids) if r is not None]:
                return found
            time.sleep(0.01)
        return []


class WaitsForTheFirstIdOnly(Store):
    caught_by = ("test_a_result_ends_the_wait",)

    def wait(self, ids: Sequence[str], timeout: float) -> Any:
        return super().wait(ids[:1], min(timeout, 1.0))


class ForgetfulWake(Store):
    caught_by = ("test_wake_before_wait_is_not_lost",)

    def wait(self, ids: Sequence[str], timeout: float) -> Any:
        self._woken = False
        return super().wait(ids, min(timeout, 1.0))


class WakesForEver(Store):
    caught_by = ("test_wake_before_wait_is_not_lost",)
    awake = False

    def wait(self, ids: Sequence[str], timeout: float) -> Any:
        return super().wait(ids, 0.0 if self.awake else timeout)

    def wake(self) -> None:
        self.awake = True
        super().wake()


class CloseLeavesTheWaitAlone(Store):
    caught_by = ("test_close_ends_the_wait",)

    def close(self, *, timeout: float = 5.0) -> None:
        pass

    def wait(self, ids: Sequence[str], timeout: float) -> Any:
        return super().wait(ids, min(timeout, 1.0))


class ChangesItsAddress(Store):
    caught_by = ("test_reply_address_is_constant",)
    n = 0

    def reply_address(self) -> str:
        self.n += 1
        return f"address-{self.n}"


class NeedsAnAddress(Store):
    caught_by = ("test_a_record_for_nobody",)

    def put(self, records: Sequence[Record]) -> Any:
        for record in records:
            if record.reply is None:
                raise ValueError("no reply address")
        return super().put(records)


# ---------------------------------------------------------------------------------------------- coordination


class Coordinating(Store):
    """Broken in what ``CoordinationSuite`` tests."""

    def answer(self, op: Op) -> OpResult:
        return super().apply([op])[0]

    def apply(self, ops: Sequence[Op]) -> Sequence[OpResult]:
        return [self.answer(op) for op in ops]


class IncrementIsNotAtomic(Coordinating):
    caught_by = ("test_increments_are_not_lost",)

    def answer(self, op: Op) -> OpResult:
        if op.kind is not OpKind.INCREMENT:
            return super().answer(op)
        current = super().answer(Op(kind=OpKind.GET, key=op.key)).current
        time.sleep(0.0005)
        return super().answer(Op(kind=OpKind.PUT, key=op.key, value=b"%d" % (int(current or 0) + op.amount)))


class PutIfAbsentIsNotAtomic(Coordinating):
    caught_by = ("test_one_put_if_absent_wins",)

    def answer(self, op: Op) -> OpResult:
        if op.kind is not OpKind.PUT_IF_ABSENT:
            return super().answer(op)
        current = super().answer(Op(kind=OpKind.GET, key=op.key)).current
        time.sleep(0.002)
        if current is not None:
            return OpResult(False, current)
        return super().answer(Op(kind=OpKind.PUT, key=op.key, value=op.value, ttl=op.ttl))


class CompareAndSetDoesNotCompare(Coordinating):
    caught_by = ("test_compare_and_set",)

    def answer(self, op: Op) -> OpResult:
        if op.kind is OpKind.COMPARE_AND_SET:
            op = Op(kind=OpKind.PUT, key=op.key, value=op.value, ttl=op.ttl)
        return super().answer(op)


class CompareAndSetIsNotAtomic(Coordinating):
    caught_by = ("test_compare_and_set_counts",)

    def answer(self, op: Op) -> OpResult:
        if op.kind is not OpKind.COMPARE_AND_SET:
            return super().answer(op)
        current = super().answer(Op(kind=OpKind.GET, key=op.key)).current
        time.sleep(0.001)
        if current != op.expected:
            return OpResult(False, current)
        return super().answer(Op(kind=OpKind.PUT, key=op.key, value=op.value, ttl=op.ttl))


class CountsChangedRowsOnly(Coordinating):
    caught_by = ("test_setting_the_same_value_is_applied",)

    def answer(self, op: Op) -> OpResult:
        if op.kind is OpKind.COMPARE_AND_SET and op.expected == op.value:
            return OpResult(False, op.value)
        return super().answer(op)


class OverflowsAt32Bits(Coordinating):
    caught_by = ("test_increment",)

    def answer(self, op: Op) -> OpResult:
        return super().answer(Op(kind=op.kind, key=op.key, value=op.value, expected=op.expected,
                                 amount=min(op.amount, 2**31 - 1), ttl=op.ttl))  # fmt: skip


class IncrementRaises(Coordinating):
    caught_by = ("test_increment_of_what_is_no_number",)

    def answer(self, op: Op) -> OpResult:
        result = super().answer(op)
        if op.kind is OpKind.INCREMENT and not result.applied:
            raise ValueError("not a number")
        return result


class IncrementRenewsTheTtl(Coordinating):
    caught_by = ("test_without_ttl_a_key_stays",)

    def answer(self, op: Op) -> OpResult:
        result = super().answer(op)
        if op.kind is OpKind.INCREMENT and op.ttl:
            super().answer(Op(kind=OpKind.PUT, key=op.key, value=result.current, ttl=op.ttl))
        return result


class KeysLiveForEver(Coordinating):
    caught_by = ("test_keys_expire",)

    def answer(self, op: Op) -> OpResult:
        return super().answer(Op(kind=op.kind, key=op.key, value=op.value, expected=op.expected, amount=op.amount))


class DeleteSaysAlwaysYes(Coordinating):
    caught_by = ("test_delete",)

    def answer(self, op: Op) -> OpResult:
        result = super().answer(op)
        return OpResult(True, None) if op.kind is OpKind.DELETE else result


class DeleteDoesNotCompare(Coordinating):
    caught_by = ("test_delete",)

    def answer(self, op: Op) -> OpResult:
        if op.kind is OpKind.DELETE:
            op = Op(kind=OpKind.DELETE, key=op.key)
        return super().answer(op)


class ReordersABatch(Coordinating):
    caught_by = ("test_a_batch_is_answered_in_order",)

    def apply(self, ops: Sequence[Op]) -> Sequence[OpResult]:
        order = sorted(range(len(ops)), key=lambda i: ops[i].kind is OpKind.GET)
        results = dict(zip(order, super().apply([ops[i] for i in order]), strict=True))
        return [results[i] for i in range(len(ops))]


class LosesTheTailOfLargeOps(Coordinating):
    caught_by = ("test_a_large_batch",)

    def apply(self, ops: Sequence[Op]) -> Sequence[OpResult]:
        return super().apply(ops[:500])


class TruncatesKeys(Coordinating):
    caught_by = ("test_keys_are_exact",)

    def answer(self, op: Op) -> OpResult:
        return super().answer(Op(kind=op.kind, key=op.key[:199], value=op.value, expected=op.expected))


class OnePlaceMore(Coordinating):
    caught_by = ("test_a_semaphore_has_so_many_places", "test_a_lock_is_a_semaphore_of_one")

    def acquire(self, key: str, owner: str, *, slots: int = 1, ttl: float) -> bool:
        return super().acquire(key, owner, slots=slots + 1, ttl=ttl)


class NotReentrant(Coordinating):
    caught_by = ("test_a_semaphore_has_so_many_places",)

    def acquire(self, key: str, owner: str, *, slots: int = 1, ttl: float) -> bool:
        if owner in self.server.records.places.get(key, {}):
            return False
        return super().acquire(key, owner, slots=slots, ttl=ttl)


class AnybodyReleases(Coordinating):
    caught_by = ("test_a_semaphore_has_so_many_places", "test_a_place_ends_with_its_ttl")

    def release(self, key: str, owner: str) -> None:
        owners = self.server.records.places.get(key, {})
        if owners:
            owners.popitem()


class PlacesLiveForEver(Coordinating):
    caught_by = ("test_a_place_ends_with_its_ttl",)

    def acquire(self, key: str, owner: str, *, slots: int = 1, ttl: float) -> bool:
        return super().acquire(key, owner, slots=slots, ttl=3600.0)


class RenewLies(Coordinating):
    caught_by = ("test_a_place_ends_with_its_ttl", "test_renewing_keeps_the_place")

    def renew(self, key: str, owner: str, *, ttl: float) -> bool:
        return super().renew(key, owner, ttl=ttl) or True


class RenewDoesNothing(Coordinating):
    caught_by = ("test_renewing_keeps_the_place",)

    def renew(self, key: str, owner: str, *, ttl: float) -> bool:
        return owner in self.server.records.places.get(key, {})


class AcquireIsNotAtomic(Coordinating):
    caught_by = ("test_places_under_contention",)

    def acquire(self, key: str, owner: str, *, slots: int = 1, ttl: float) -> bool:
        free = len(self.server.records.places.get(key, {})) < slots
        time.sleep(0.001)
        return free and super().acquire(key, owner, slots=100, ttl=ttl)


class IndexIsUnsorted(Coordinating):
    caught_by = ("test_the_index_gives_what_is_due",)

    def index_due(self, index: str, now: float, limit: int) -> Any:
        return super().index_due(index, now, limit)[::-1]


class IndexRoundsToSeconds(Coordinating):
    caught_by = ("test_the_index_gives_what_is_due",)

    def index_put(self, index: str, entries: Any) -> None:
        super().index_put(index, {member: float(int(at)) for member, at in entries.items()})


class IndexKeepsTheFirstTime(Coordinating):
    caught_by = ("test_the_index_is_updated_and_emptied",)

    def index_put(self, index: str, entries: Any) -> None:
        there = self.server.records.indexes.get(index, {})
        super().index_put(index, {member: at for member, at in entries.items() if member not in there})


class IndexRemoveSaysAlwaysYes(Coordinating):
    caught_by = ("test_the_index_is_updated_and_emptied", "test_one_remover_wins_each_entry")

    def index_remove(self, index: str, members: Sequence[str]) -> Any:
        super().index_remove(index, members)
        return list(members)


MUTANTS: list[type[Store]] = [
    found
    for found in list(globals().values())
    if isinstance(found, type) and issubclass(found, Store) and found not in (Store, Coordinating)
]
