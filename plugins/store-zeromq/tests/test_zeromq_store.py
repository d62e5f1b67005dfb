"""What is special about results in a hub: the cap, pushes across restarts, keys of coordination in the journal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from taskq.errors import ResultTooLarge, StoreError, StoreUnavailable
from taskq.message import Record
from taskq.spi import Durable, Op, OpKind, StoreConfig, parse_urls
from taskq_store_zeromq.options import ZeroMQStoreOptions
from taskq_store_zeromq.store import ZeroMQStore
from tests.support.steps import PATIENCE, opening, persistently
from tests.support.zeromq_hubs import HubForge

Make = Callable[..., ZeroMQStore]


@pytest.fixture
def make() -> Iterator[Make]:
    with ExitStack() as stack:

        def make(url: str, **options: Any) -> ZeroMQStore:
            options = {"timeout": PATIENCE, "connect_timeout": PATIENCE, "heartbeat": 1.0, **options}
            store = ZeroMQStore(StoreConfig(urls=parse_urls(url), options=ZeroMQStoreOptions(**options)))
            return stack.enter_context(opening(store, timeout=0.5))

        yield make


def record(name: str, size: int = 10, **fields: Any) -> Record:
    return Record(name, "SUCCESS", b"x" * size, **fields)


def test_the_cap_evicts_the_oldest_and_says_so(zeromq_hubs: HubForge, make: Make) -> None:
    store = make(zeromq_hubs.start(result_bytes=20_000).url)
    assert store.capabilities.keeps is Durable.EVICTABLE
    for i in range(50):
        assert not store.put([record(f"r{i}", 1000)])
    kept = [r.id for r in store.get([f"r{i}" for i in range(50)]) if r is not None]
    assert kept == [f"r{i}" for i in range(50 - len(kept), 50)], "not the youngest are kept"
    assert 10 <= len(kept) <= 19
    store.put([record("r40", 1000, attempt=1)])  # the youngest again
    for i in range(50, 60):
        store.put([record(f"r{i}", 1000)])
    assert store.get(["r40"])[0] is not None


def test_the_cap_refuses_where_the_hub_is_told_to(zeromq_hubs: HubForge, make: Make) -> None:
    store = make(zeromq_hubs.start(result_bytes=5_000, results_full="refuse").url)
    assert store.capabilities.keeps is Durable.DURABLE
    for i in range(3):
        assert not store.put([record(f"r{i}", 1000)])
    with pytest.raises(StoreError, match=r"3900 of 5000 bytes.*--result-bytes") as caught:
        store.put([record("r3", 1000)])
    assert caught.value.retryable
    assert all(store.get(["r0", "r1", "r2"]))
    store.delete(["r0"])
    assert not store.put([record("r3", 1000)])


def test_expired_results_make_room(zeromq_hubs: HubForge, make: Make) -> None:
    store = make(zeromq_hubs.start(result_bytes=5_000, results_full="refuse").url)
    store.put([record(f"r{i}", 1000, ttl=0.3) for i in range(3)])
    persistently(lambda: store.put([record("r3", 1000)]))
    assert store.get(["r0", "r3"])[0] is None


def test_a_record_too_large(zeromq_hubs: HubForge, make: Make) -> None:
    store = make(zeromq_hubs.start(max_message_bytes=1000).url)
    assert store.capabilities.max_record_bytes == 1000
    with pytest.raises(ResultTooLarge, match="1000"):
        store.put([record("a", 10), record("b", 1001)])
    assert store.get(["a", "b"]) == [None, None]
    store.put([record("b", 1000)])


@pytest.mark.parametrize("journal", [True, False])
def test_a_waiting_client_survives_the_hubs_death(
    zeromq_hubs: HubForge, tmp_path: Path, make: Make, journal: bool
) -> None:
    hub = zeromq_hubs.start(**({"journal": str(tmp_path / "journal")} if journal else {}))
    store = make(hub.url)
    address = store.reply_address()
    store.wait(["later"], 0.0)
    make(hub.url).put([record("before")])
    hub.kill()
    hub = hub.restart()
    make(hub.url).put([record("later", reply=address)])
    found = persistently(lambda: store.wait(["later"], PATIENCE))
    assert [r.id for r in found] == ["later"]
    assert [r is not None for r in persistently(lambda: store.get(["before"]))] == [journal]


def test_a_journal_keeps_coordination(zeromq_hubs: HubForge, tmp_path: Path, make: Make) -> None:
    hub = zeromq_hubs.start(journal=str(tmp_path / "journal"))
    store = make(hub.url)
    store.apply([
        Op(kind=OpKind.PUT, key="kept", value=b"1"), Op(kind=OpKind.PUT, key="gone", value=b"1"),
        Op(kind=OpKind.DELETE, key="gone"), Op(kind=OpKind.INCREMENT, key="count", amount=41),
        Op(kind=OpKind.INCREMENT, key="count"), Op(kind=OpKind.PUT, key="short", value=b"1", ttl=0.3),
    ])  # fmt: skip
    assert store.acquire("lock", "me", ttl=60.0)
    assert store.acquire("given back", "me", ttl=60.0)
    store.release("given back", "me")
    store.index_put("times", {"a": 1.0, "b": 2.0, "c": 3.0})
    assert store.index_remove("times", ["b"]) == ["b"]
    hub.kill()
    hub = hub.restart()
    time.sleep(0.3)
    again = make(hub.url)
    names = ("kept", "gone", "count", "short")
    assert [r.current for r in again.apply([Op(kind=OpKind.GET, key=k) for k in names])] == [b"1", None, b"42", None]
    assert not again.acquire("lock", "you", ttl=1.0)
    assert again.renew("lock", "me", ttl=60.0)
    assert again.acquire("given back", "you", ttl=1.0)
    assert again.index_due("times", 10.0, 10) == [("a", 1.0), ("c", 3.0)]


def test_the_hub_away_is_said_and_bounded(zeromq_hubs: HubForge, make: Make) -> None:
    hub = zeromq_hubs.start()
    store = make(hub.url)
    hub.kill()
    time.sleep(0.1)
    with pytest.raises(StoreUnavailable, match="taskq zeromq hub"):
        store.put([record("a")])
    hub.restart()
    assert not persistently(lambda: store.put([record("a")]))
