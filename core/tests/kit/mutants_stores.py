"""Stores broken in keeping, superseding, expiring and waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, ClassVar

from msgspec.structs import replace

from core.tests.kit.mutant import Store
from taskq.message import Record

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


class ComparesAttemptsBeforeItWrites(Store):
    caught_by = ("test_the_latest_attempt_wins_under_concurrency",)

    def put(self, records: Sequence[Record]) -> Any:
        found = self.get([r.id for r in records])
        time.sleep(0.001)
        better = [r for r, old in zip(records, found, strict=True) if old is None or old.attempt < r.attempt]
        self.delete([r.id for r in better])
        return super().put(better)


class PutsFromOneThreadOnly(Store):
    caught_by = ("test_all_methods_from_many_threads",)

    def put(self, records: Sequence[Record]) -> Any:
        self.buffer = records
        time.sleep(0.001)
        return super().put(self.buffer)


class NeedsSomethingToPut(Store):
    caught_by = ("test_empty_batches_are_fine",)

    def put(self, records: Sequence[Record]) -> Any:
        self.last = records[-1]
        return super().put(records)


class TellsOfOneAndForgetsTheOthers(Store):
    caught_by = ("test_waiting_for_many",)

    def open(self) -> None:
        super().open()
        self.told: set[str] = set()

    def wait(self, ids: Sequence[str], timeout: float) -> Any:
        found = super().wait([i for i in ids if i not in self.told], min(timeout, 0.2))
        self.told.update(r.id for r in found)
        return found[:1]
