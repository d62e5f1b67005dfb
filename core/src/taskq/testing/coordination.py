"""The conformance suite for stores with the coordination ability."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from taskq.spi import Coordination, Op, OpKind, OpResult, SupportsTimeIndex
from taskq.testing.base import as_plain, eventually, unique
from taskq.testing.faults import ChildProcess
from taskq.testing.stores_basic import StoreBase, StoreRig, race

GET, PUT, DELETE = OpKind.GET, OpKind.PUT, OpKind.DELETE
PUT_IF_ABSENT, COMPARE_AND_SET, INCREMENT = OpKind.PUT_IF_ABSENT, OpKind.COMPARE_AND_SET, OpKind.INCREMENT


class CoordinationRig(StoreRig):
    """One test's stores, with one key of the test's own."""

    def __init__(self, suite: StoreBase, url: str) -> None:
        super().__init__(suite, url)
        self.key = unique("key")

    @property
    def shared(self) -> Coordination:
        assert isinstance(self.main, Coordination), "the store has not the methods of Coordination"
        return self.main

    def another(self) -> Coordination:
        store = self.open()
        assert isinstance(store, Coordination)
        return store

    def do(self, kind: OpKind, key: str | None = None, on: Coordination | None = None, **fields: Any) -> OpResult:
        """Run one operation."""
        (result,) = (on or self.shared).apply([Op(kind=kind, key=key or self.key, **fields)])
        return result

    def value(self, key: str | None = None) -> bytes | None:
        """Read a key on another connection."""
        return self.do(GET, key, on=self.another()).current


class CoordinationSuite(StoreBase):
    """Atomic keys, semaphores and the time index.

    Subclass it beside the store's suite, with the same ``scheme`` and ``url`` fixture.
    """

    @pytest.fixture
    def rig(self, url: str) -> Iterator[CoordinationRig]:
        rig = CoordinationRig(self, url)
        assert rig.caps.coordination, f"{rig.spec.name} does not declare coordination: do not run this suite on it"
        yield rig
        rig.close()

    # ----------------------------------------------------------------------------------------------- operations

    def test_get_of_nothing(self, rig: CoordinationRig) -> None:
        """Check that an unknown key reads as None."""
        assert rig.do(GET).current is None

    def test_put_and_get(self, rig: CoordinationRig) -> None:
        """Check that PUT sets any bytes, over what is there, visible to others at once."""
        for value in (b"one", b"", bytes(range(256)), b"x" * 5000):
            assert rig.do(PUT, value=value) == OpResult(True, value)
            assert rig.value() == value
            assert rig.do(GET).current == value

    def test_put_if_absent(self, rig: CoordinationRig) -> None:
        """Check that the first PUT_IF_ABSENT is applied and the second is not, and is told the value."""
        assert rig.do(PUT_IF_ABSENT, value=b"first") == OpResult(True, b"first")
        assert rig.do(PUT_IF_ABSENT, value=b"second") == OpResult(False, b"first")
        assert rig.value() == b"first"

    def test_compare_and_set(self, rig: CoordinationRig) -> None:
        """Check that COMPARE_AND_SET is applied only on the expected value; expecting None means absent."""
        assert rig.do(COMPARE_AND_SET, expected=b"x", value=b"no") == OpResult(False, None)
        assert rig.do(COMPARE_AND_SET, expected=None, value=b"1") == OpResult(True, b"1")
        assert rig.do(COMPARE_AND_SET, expected=None, value=b"no") == OpResult(False, b"1")
        assert rig.do(COMPARE_AND_SET, expected=b"0", value=b"no") == OpResult(False, b"1")
        assert rig.do(COMPARE_AND_SET, expected=b"1", value=b"2") == OpResult(True, b"2")
        assert rig.value() == b"2"

    def test_setting_the_same_value_is_applied(self, rig: CoordinationRig) -> None:
        """Check that COMPARE_AND_SET from a value to itself counts as applied: databases count changed rows only."""
        rig.do(PUT, value=b"same")
        assert rig.do(COMPARE_AND_SET, expected=b"same", value=b"same", ttl=600.0).applied
        assert rig.do(PUT, value=b"same").applied

    def test_increment(self, rig: CoordinationRig) -> None:
        """Check that INCREMENT makes, raises and lowers a decimal number, also below zero and beyond 32 bits."""
        assert rig.do(INCREMENT) == OpResult(True, b"1")
        assert rig.do(INCREMENT, amount=9) == OpResult(True, b"10")
        assert rig.do(INCREMENT, amount=-30) == OpResult(True, b"-20")
        assert rig.do(INCREMENT, amount=2**40) == OpResult(True, b"%d" % (2**40 - 20))
        rig.do(PUT, value=b"41")
        assert rig.do(INCREMENT).current == b"42"
        assert rig.value() == b"42"

    def test_increment_of_what_is_no_number(self, rig: CoordinationRig) -> None:
        """Check that INCREMENT of other bytes is not applied and leaves them, and its batch goes on."""
        rig.do(PUT, value=b"text")
        other = unique("key")
        results = rig.shared.apply([Op(kind=INCREMENT, key=rig.key), Op(kind=PUT, key=other, value=b"v")])
        assert [r.applied for r in results] == [False, True]
        assert rig.value() == b"text"

    def test_delete(self, rig: CoordinationRig) -> None:
        """Check that DELETE is applied if there was something to delete, and with ``expected`` only on that value."""
        assert not rig.do(DELETE).applied
        rig.do(PUT, value=b"v")
        assert rig.do(DELETE, expected=b"other") == OpResult(False, b"v")
        assert rig.do(DELETE, expected=b"v") == OpResult(True, None)
        rig.do(PUT, value=b"v")
        assert rig.do(DELETE) == OpResult(True, None)
        assert rig.value() is None

    def test_a_batch_is_answered_in_order(self, rig: CoordinationRig) -> None:
        """Check that operations of a batch take effect in the order given, also several on one key."""
        results = rig.shared.apply(
            [
                Op(kind=PUT, key=rig.key, value=b"1"),
                Op(kind=INCREMENT, key=rig.key),
                Op(kind=PUT_IF_ABSENT, key=rig.key, value=b"no"),
                Op(kind=GET, key=rig.key),
                Op(kind=DELETE, key=rig.key),
                Op(kind=GET, key=rig.key),
                Op(kind=COMPARE_AND_SET, key=rig.key, value=b"end"),
            ]
        )
        assert [r.current for r in results] == [b"1", b"2", b"2", b"2", None, None, b"end"]
        assert [results[i].applied for i in (0, 1, 2, 4, 6)] == [True, True, False, True, True]
        assert list(rig.shared.apply([])) == []

    def test_a_large_batch(self, rig: CoordinationRig) -> None:
        """Check that many operations are split as needed and answered one by one."""
        ops = [Op(kind=INCREMENT, key=f"{rig.key}-{i % 100}") for i in range(1_000)]
        results = rig.shared.apply(ops)
        assert [r.current for r in results] == [b"%d" % (i // 100 + 1) for i in range(1_000)]

    def test_keys_are_exact(self, rig: CoordinationRig) -> None:
        """Check that 200-byte keys, cases and ASCII punctuation are kept apart."""
        base = rig.key
        keys = [base, base.upper(), f"{base}:a/b", f"{base}:a/c", f"{base}%", f"{base}_", f"{base}*", f"{base}\\'\""]
        keys += [base.ljust(199, "x") + c for c in "yz"]
        rig.shared.apply([Op(kind=PUT, key=k, value=k.encode()) for k in keys])
        assert [r.current for r in rig.another().apply([Op(kind=GET, key=k) for k in keys])] == [
            k.encode() for k in keys
        ]

    # ------------------------------------------------------------------------------------------------------ ttl

    @pytest.mark.parametrize("kind", [PUT, PUT_IF_ABSENT, COMPARE_AND_SET, INCREMENT])
    def test_keys_expire(self, rig: CoordinationRig, kind: OpKind) -> None:
        """Check that a key set with a ttl is there until then, gone after, and can be taken anew."""
        started = time.monotonic()
        fields: dict[str, Any] = {} if kind is INCREMENT else {"value": b"1"}
        assert rig.do(kind, ttl=self.ttl_s, **fields) == OpResult(True, b"1")
        assert rig.do(GET).current == b"1"
        eventually(self.ttl_s + self.patience_s, "the key expires", lambda: rig.do(GET).current is None)
        assert time.monotonic() - started >= self.ttl_s * 0.9, "the key was gone before its ttl"
        assert rig.do(kind, **fields) == OpResult(True, b"1")

    def test_without_ttl_a_key_stays(self, rig: CoordinationRig) -> None:
        """Check that a PUT without ttl replaces a ttl by none, and that INCREMENT leaves a ttl as it was."""
        forever, counter = unique("key"), unique("key")
        rig.do(PUT, forever, value=b"1", ttl=self.ttl_s)
        rig.do(PUT, forever, value=b"2")
        rig.do(INCREMENT, counter, ttl=self.ttl_s)
        rig.do(INCREMENT, counter, ttl=600.0)
        rig.do(INCREMENT, counter)
        eventually(self.ttl_s + self.patience_s, "the counter expires", lambda: rig.do(GET, counter).current is None)
        assert rig.do(GET, forever).current == b"2"

    # ---------------------------------------------------------------------------------------------------- races

    def _race(
        self, rig: CoordinationRig, n: int, work: Callable[[Coordination, int, int], None], turns: int = 1
    ) -> None:
        race(self, [rig.another() for _ in range(n)], work, turns=turns)

    def test_increments_are_not_lost(self, rig: CoordinationRig) -> None:
        """Check that INCREMENT is atomic: reading, adding and writing back loses some under concurrency."""

        def add(store: Coordination, _: int, __: int) -> None:
            for _ in range(50):
                rig.do(INCREMENT, on=store)

        self._race(rig, 4, add)
        assert rig.value() == b"200"

    def test_one_put_if_absent_wins(self, rig: CoordinationRig) -> None:
        """Check that of several at once exactly one PUT_IF_ABSENT is applied: it is how duplicates are refused."""
        winners: list[list[bytes]] = [[] for _ in range(10)]

        def put(store: Coordination, n: int, turn: int) -> None:
            if rig.do(PUT_IF_ABSENT, f"{rig.key}-{turn}", on=store, value=b"%d" % n).applied:
                winners[turn].append(b"%d" % n)

        self._race(rig, 4, put, turns=10)
        assert winners == [[rig.do(GET, f"{rig.key}-{turn}").current] for turn in range(10)]

    def test_compare_and_set_counts(self, rig: CoordinationRig) -> None:
        """Check that COMPARE_AND_SET is atomic: a counter kept with it and retries is exact."""
        rig.do(PUT, value=b"0")

        def add(store: Coordination, _: int, __: int) -> None:
            deadline = time.monotonic() + self.patience_s * 4
            current = rig.do(GET, on=store).current or b""
            while True:
                result = rig.do(COMPARE_AND_SET, on=store, expected=current, value=b"%d" % (int(current) + 1))
                if result.applied:
                    return
                assert time.monotonic() < deadline, "COMPARE_AND_SET never succeeds"
                current = result.current or b""

        self._race(rig, 3, add, turns=15)
        assert rig.value() == b"45"

    def test_processes_count_together(self, rig: CoordinationRig) -> None:
        """Check that increments of several processes add up, and that each process sees the others' keys."""
        rig.need(rig.caps.cross_process, "cross_process")
        task = {"scheme": self.scheme, "url": rig.url, "options": as_plain(rig.options()), "key": rig.key, "n": 40}
        with ChildProcess("increment", **task) as first, ChildProcess("increment", **task) as second:
            for _ in range(40):
                rig.do(INCREMENT)
            first.said()
            second.said()
        assert rig.value() == b"120"

    def test_a_killed_owner_loses_its_place_with_the_ttl(self, rig: CoordinationRig) -> None:
        """Check that a lock of a killed process is refused to others until its ttl, and free after."""
        rig.need(rig.caps.cross_process, "cross_process")
        ttl = self.ttl_s + 1.0
        task = {"scheme": self.scheme, "url": rig.url, "options": as_plain(rig.options())}
        with ChildProcess("acquire", key=rig.key, owner="dead", ttl=ttl, **task) as child:
            assert child.said() == {"acquired": True}
            child.kill()
            assert not rig.shared.acquire(rig.key, "heir", ttl=60)
        limit = ttl + self.patience_s
        eventually(limit, "the lock is free", lambda: rig.shared.acquire(rig.key, "heir", ttl=60))

    # ----------------------------------------------------------------------------------------------- semaphores

    def test_a_semaphore_has_so_many_places(self, rig: CoordinationRig) -> None:
        """Check that ``slots`` owners get a place and no more, that asking again is fine, and release frees one."""
        store, other = rig.shared, rig.another()
        assert store.acquire(rig.key, "a", slots=2, ttl=60)
        assert other.acquire(rig.key, "b", slots=2, ttl=60)
        assert not store.acquire(rig.key, "c", slots=2, ttl=60)
        assert store.acquire(rig.key, "a", slots=2, ttl=60), "an owner that has a place was refused"
        other.release(rig.key, "c")
        assert not other.acquire(rig.key, "c", slots=2, ttl=60), "releasing what one has not freed a place"
        other.release(rig.key, "a")
        other.release(rig.key, "a")
        assert store.acquire(rig.key, "c", slots=2, ttl=60)
        assert not store.acquire(rig.key, "d", slots=2, ttl=60)

    def test_a_lock_is_a_semaphore_of_one(self, rig: CoordinationRig) -> None:
        """Check that ``slots`` is 1 unless said, and that keys do not share places."""
        assert rig.shared.acquire(rig.key, "a", ttl=60)
        assert not rig.shared.acquire(rig.key, "b", ttl=60)
        assert rig.shared.acquire(f"{rig.key}-2", "b", ttl=60)

    def test_a_place_ends_with_its_ttl(self, rig: CoordinationRig) -> None:
        """Check that a place that nobody renews is free after its ttl, and that the old owner is told by ``renew``."""
        assert rig.shared.acquire(rig.key, "a", ttl=self.ttl_s)
        assert not rig.shared.acquire(rig.key, "b", ttl=60)
        other = rig.another()
        limit = self.ttl_s + self.patience_s
        eventually(limit, "the place is free", lambda: other.acquire(rig.key, "b", ttl=60))
        assert not rig.shared.renew(rig.key, "a", ttl=60), "renew said True for a place that was lost"
        rig.shared.release(rig.key, "a")
        assert not rig.shared.acquire(rig.key, "c", ttl=60), "the old owner's release freed the new owner's place"

    def test_renewing_keeps_the_place(self, rig: CoordinationRig) -> None:
        """Check that a place renewed in time is kept, and that a place that one never had cannot be renewed."""
        assert rig.shared.acquire(rig.key, "a", ttl=self.ttl_s)
        other = rig.another()
        assert not other.renew(rig.key, "b", ttl=60)
        renewed = time.monotonic()
        deadline = renewed + self.ttl_s * 2
        while time.monotonic() < deadline:
            kept = rig.shared.renew(rig.key, "a", ttl=self.ttl_s)
            lost = other.acquire(rig.key, "b", ttl=60)
            if (lost or not kept) and time.monotonic() - renewed > self.ttl_s * 0.9:
                pytest.skip("this machine is too busy: it did not renew in time")
            assert kept, "renew refused a place that was renewed in time"
            assert not lost, "another owner got a place that was renewed in time"
            renewed = time.monotonic()
            time.sleep(self.ttl_s / 6)

    def test_places_under_contention(self, rig: CoordinationRig) -> None:
        """Check that never more than ``slots`` owners hold a place when many ask at once."""
        lock = threading.Lock()
        inside = 0
        most = 0

        def work(store: Coordination, n: int, _: int) -> None:
            nonlocal inside, most
            for _ in range(10):
                if store.acquire(rig.key, f"owner-{n}", slots=2, ttl=60):
                    with lock:
                        inside += 1
                        most = max(most, inside)
                    time.sleep(0.002)
                    with lock:
                        inside -= 1
                    store.release(rig.key, f"owner-{n}")

        self._race(rig, 4, work)
        assert 1 <= most <= 2, f"{most} owners were in a semaphore of 2 places"

    # ----------------------------------------------------------------------------------------------- time index

    def _index(self, rig: CoordinationRig) -> SupportsTimeIndex:
        rig.need(isinstance(rig.main, SupportsTimeIndex), "time index")
        assert isinstance(rig.main, SupportsTimeIndex)
        return rig.main

    def test_the_index_gives_what_is_due(self, rig: CoordinationRig) -> None:
        """Check that what is due comes earliest first, up to the limit, and is not removed by asking."""
        index, now = self._index(rig), time.time()
        index.index_put(rig.key, {"late": now + 60, "b": now - 10.25, "a": now - 20.5, "c": now})
        for _ in range(2):
            due = [(member, round(at - now, 3)) for member, at in index.index_due(rig.key, now, 10)]
            assert due == [("a", -20.5), ("b", -10.25), ("c", 0.0)]
        assert [m for m, _ in index.index_due(rig.key, now, 2)] == ["a", "b"]
        assert [m for m, _ in index.index_due(rig.key, now + 61, 10)] == ["a", "b", "c", "late"]

    def test_the_index_is_updated_and_emptied(self, rig: CoordinationRig) -> None:
        """Check that putting a member again moves it, that indexes are separate, and removing says what was there."""
        index, now = self._index(rig), time.time()
        index.index_put(rig.key, {"a": now - 1, "b": now - 2})
        index.index_put(rig.key, {"a": now - 3})
        assert [m for m, _ in index.index_due(rig.key, now, 10)] == ["a", "b"]
        assert not index.index_due(f"{rig.key}-other", now, 10)
        assert list(index.index_remove(rig.key, ["b", "unknown"])) == ["b"]
        assert list(index.index_remove(rig.key, ["b"])) == []
        assert [m for m, _ in index.index_due(rig.key, now, 10)] == ["a"]
        index.index_put(rig.key, {})
        assert list(index.index_remove(rig.key, [])) == []

    def test_one_remover_wins_each_entry(self, rig: CoordinationRig) -> None:
        """Check that of several that remove the same entries each entry goes to exactly one: so nothing fires twice."""
        index = self._index(rig)
        members = [f"m{i}" for i in range(40)]
        index.index_put(rig.key, dict.fromkeys(members, time.time()))
        won: list[str] = []

        def take(store: Coordination, _: int, __: int) -> None:
            assert isinstance(store, SupportsTimeIndex)
            for i in range(0, 40, 5):
                won.extend(store.index_remove(rig.key, members[i : i + 5]))

        self._race(rig, 4, take)
        assert sorted(won) == sorted(members)
