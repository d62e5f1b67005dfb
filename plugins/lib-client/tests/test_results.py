"""Waiting for pushed results, on a server made of a dict: when it is asked, and when it is not."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence

import pytest

from taskq.errors import ResultTooLarge, StoreUnavailable
from taskq.message import Record
from taskq_lib_client import results
from taskq_lib_client.bell import Bell, ready
from taskq_lib_client.results import PushedResults, StoreClosed

PATIENCE = 20.0


class FakeChannel:
    def __init__(self) -> None:
        self.connected = True
        self.pushes: deque[Record] = deque()
        self.ear = Bell()

    def push(self, *records: Record) -> None:
        self.pushes.extend(records)
        self.ear.ring()

    def close(self) -> None:
        self.connected = False


class FakeStore(PushedResults[FakeChannel]):
    max_record_bytes = 5000
    address = "here"

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Record] = {}
        self.asked: list[list[str]] = []
        self.batches: list[int] = []
        self.connections = 0
        self.channels: list[FakeChannel] = []
        self.broken = False

    def _connect(self) -> None:
        self.connections += 1
        if self.broken:
            raise StoreUnavailable("away")

    def _disconnect(self) -> None:
        self.connections -= 1

    def _store(self, records: Sequence[Record]) -> Sequence[str]:
        self.batches.append(len(records))
        worse = [r.id for r in records if r.id in self.kept]
        self.kept.update({r.id: r for r in records})
        return worse

    def _load(self, ids: Sequence[str]) -> Sequence[Record | None]:
        self.asked.append(sorted(ids))
        return [self.kept.get(i) for i in ids]

    def _forget(self, ids: Sequence[str]) -> None:
        self.batches.append(len(ids))
        for i in ids:
            self.kept.pop(i, None)

    def _subscribe(self, channel: FakeChannel | None, bell: Bell) -> FakeChannel:
        self.channels.append(FakeChannel())
        return self.channels[-1]

    def _hear(self, channel: FakeChannel, pause: float, bell: Bell) -> Iterator[Record]:
        ready((channel.ear, bell), pause)
        channel.ear.hush()
        while channel.pushes:
            yield channel.pushes.popleft()
        if self.broken:
            raise StoreUnavailable("away")


@pytest.fixture
def store() -> Iterator[FakeStore]:
    store = FakeStore()
    store.open()
    yield store
    store.close()
    for channel in store.channels:
        channel.ear.close()
    assert store.connections == 0


def record(name: str, **fields: int) -> Record:
    return Record(name, "SUCCESS", b"result", **fields)


def test_what_is_pushed_is_not_asked_for(store: FakeStore) -> None:
    assert store.reply_address() == "here"
    store._next_look = time.monotonic() + PATIENCE
    store.channels[0].push(record("a"), record("other"))
    assert [r.id for r in store.wait(["a"], PATIENCE)] == ["a"]
    assert [r.id for r in store.wait(["other", "b"], PATIENCE)] == ["other"]  # kept until somebody wants it
    assert store.asked == []


def test_an_id_is_asked_for_once_and_again_on_a_new_channel(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "_LOOK", 10 * PATIENCE)
    assert not store.wait(["a"], 0.02)
    assert store.asked == [["a"]]
    assert not store.wait(["a"], 0.02)
    assert store.asked == [["a"]]
    assert not store.wait(["a", "b"], 0.02)
    assert store.asked == [["a"], ["b"]]
    store.channels[0].close()
    assert not store.wait(["a", "b"], 0.02)
    assert store.asked == [["a"], ["b"], ["a", "b"]]
    assert len(store.channels) == 2


def test_what_was_there_before_is_found_without_a_push(store: FakeStore) -> None:
    store.put([record("a")])
    assert [r.id for r in store.wait(["a", "b"], PATIENCE)] == ["a"]


def test_a_channel_that_breaks_is_made_again(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "_RECONNECT_PAUSE", 0.01)
    assert not store.wait(["a"], 0.02)
    store.broken = True
    store.channels[0].push(record("b"))  # still counts
    store.wait(["a"], 0.1)
    store.broken = False
    store.wait(["a"], 0.0)
    assert len(store.channels) > 1
    store.channels[-1].push(record("a"))
    assert [r.id for r in store.wait(["a"], PATIENCE)] == ["a"]
    assert [r.id for r in store.wait(["b"], PATIENCE)] == ["b"]


def test_a_wake_ends_the_wait_or_else_the_next(store: FakeStore) -> None:
    store.wake()
    began = time.monotonic()
    assert not store.wait(["a"], PATIENCE)
    timer = threading.Timer(0.1, store.wake)
    timer.start()
    assert not store.wait(["a"], PATIENCE)
    assert time.monotonic() - began < PATIENCE
    timer.join()


def test_closing_ends_the_wait_and_refuses_what_follows(store: FakeStore) -> None:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(store.wait(["a"], PATIENCE)))
    thread.start()
    deadline = time.monotonic() + PATIENCE
    while not store._turn.locked():
        assert time.monotonic() < deadline
    store.close(timeout=PATIENCE)
    thread.join(PATIENCE)
    assert found == [()]
    for call in (lambda: store.put([record("a")]), lambda: store.wait(["a"], 0.0), store.reply_address):
        with pytest.raises(StoreClosed, match="open"):
            call()
    store.open()
    store.put([record("a")])


def test_a_failed_opening_leaves_nothing_behind() -> None:
    store = FakeStore()
    store.broken = True
    with pytest.raises(StoreUnavailable):
        store.open()
    assert store.connections == 0
    with pytest.raises(StoreClosed):
        store.get(["a"])


def test_batches_are_split_by_count_and_bytes(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "_CHUNK", 3)
    names = [f"{n}" for n in range(7)]
    assert store.put([record(name) for name in names]) == []
    assert store.put([record(name) for name in names]) == names
    assert [r and r.id for r in store.get([*names, "none"])] == [*names, None]
    store.delete(names)
    assert store.batches == [3, 3, 1] * 3
    assert store.get(names) == [None] * 7
    store.batches.clear()
    monkeypatch.setattr(results, "_CHUNK_BYTES", 10)
    store.put([record(name) for name in names])  # six bytes each
    assert store.batches == [1] * 7


def test_a_record_too_large_is_refused_before_any_is_stored(store: FakeStore) -> None:
    large = Record("large", "SUCCESS", b"x" * 4000, follow_ups=b"y" * 1001)
    with pytest.raises(ResultTooLarge, match=r"large.*5001.*5000"):
        store.put([record("a"), large])
    assert not store.kept


def test_pushes_that_nobody_wants_do_not_pile_up(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "_KEPT_PUSHES", 2)
    store.reply_address()
    store.channels[0].push(*(record(f"{n}") for n in range(5)))
    store.wait(["x"], 0.02)
    assert list(store._pushed) == ["3", "4"]
