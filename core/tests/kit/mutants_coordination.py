"""Stores broken in coordination: keys, semaphores, time index."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from core.tests.kit.mutant import Coordinating
from taskq.spi import Op, OpKind, OpResult


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


class CutsLongValues(Coordinating):
    caught_by = ("test_put_and_get",)

    def answer(self, op: Op) -> OpResult:
        return super().answer(replace(op, value=op.value and op.value[:4096]))


class AbsentIsEmpty(Coordinating):
    caught_by = ("test_get_of_nothing", "test_keys_expire")

    def answer(self, op: Op) -> OpResult:
        result = super().answer(op)
        return OpResult(result.applied, result.current or b"")


class PutIfAbsentPuts(Coordinating):
    caught_by = ("test_put_if_absent",)

    def answer(self, op: Op) -> OpResult:
        return super().answer(replace(op, kind=OpKind.PUT) if op.kind is OpKind.PUT_IF_ABSENT else op)
