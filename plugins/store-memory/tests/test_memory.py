"""What is special about the memory store: names, the virtual clock, forks, keys."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from taskq.errors import StoreError
from taskq.message import Record
from taskq.spi import SYSTEM_CLOCK, NoOptions, Op, OpKind, StoreConfig, parse_urls
from taskq.testing import VirtualClock
from taskq.testing.base import eventually, unique
from taskq.testing.faults import in_a_fork
from taskq_lib_memory import forget
from taskq_store_memory.store import MemoryStore

Opener = Callable[..., MemoryStore]


@pytest.fixture
def name() -> Iterator[str]:
    name = unique("memory")
    yield name
    forget(name)


@pytest.fixture
def opened() -> Opener:
    def open_one(url: str = "memory://", clock: Any = SYSTEM_CLOCK) -> MemoryStore:
        store = MemoryStore(StoreConfig(urls=parse_urls(url), options=NoOptions(), clock=clock))
        store.open()
        return store

    return open_one


def test_stores_of_one_name_share_and_others_do_not(opened: Opener, name: str) -> None:
    first = opened(f"memory://{name}")
    first.put([Record("a", "SUCCESS", b"r")])
    first.close()
    assert opened(f"memory://{name}").get(["a"]) != [None]
    assert opened().get(["a"]) == [None]


def test_everything_expires_by_the_given_clock(opened: Opener) -> None:
    clock = VirtualClock()
    store = opened(clock=clock)
    store.put([Record("a", "SUCCESS", b"r", ttl=86400.0), Record("b", "SUCCESS", b"r", ttl=2 * 86400.0)])
    store.apply([Op(kind=OpKind.PUT, key="k", value=b"v", ttl=86400.0)])
    assert store.acquire("lock", "me", ttl=86400.0)
    clock.advance(86400.0)
    assert [r is not None for r in store.get(["a", "b"])] == [False, True]
    assert store.apply([Op(kind=OpKind.GET, key="k")])[0].current is None
    assert store.acquire("lock", "you", ttl=1.0)


def test_maintenance_frees_the_memory_of_what_expired(opened: Opener) -> None:
    clock = VirtualClock()
    store = opened(clock=clock)
    store.put([Record(f"{i}", "SUCCESS", b"r", ttl=10.0 + i) for i in range(10)])
    store.apply([Op(kind=OpKind.PUT, key="k", value=b"v", ttl=1.0)])
    store.acquire("lock", "me", ttl=1.0)
    clock.advance(15.0)
    assert store.maintain(0.1) > 0
    records = store.server.records
    assert (len(records.results), len(records.values), len(records.places)) == (4, 0, 0)


def test_moving_the_clock_past_a_wait_ends_it(opened: Opener) -> None:
    clock = VirtualClock()
    store = opened(clock=clock)
    thread = threading.Thread(target=store.wait, args=(["a"], 60.0))
    thread.start()
    eventually(5.0, "somebody waits", lambda: store.server.records.waiting)
    clock.advance(61.0)
    thread.join(5.0)
    assert not thread.is_alive()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_starts_empty(opened: Opener, name: str) -> None:
    store = opened(f"memory://{name}")
    store.put([Record("a", "SUCCESS", b"r")])

    def child() -> None:
        with pytest.raises(StoreError, match="process") as caught:
            store.get(["a"])
        assert not caught.value.retryable
        assert opened(f"memory://{name}").get(["a"]) == [None]

    assert in_a_fork(10.0, child) == ""
    assert store.get(["a"]) != [None]


@pytest.mark.parametrize("key", ["", "x" * 201, "klíč", "a\nb"])
def test_keys_that_no_server_would_take_are_refused(opened: Opener, key: str) -> None:
    store = opened()
    for call in (lambda: store.apply([Op(kind=OpKind.GET, key=key)]), lambda: store.acquire(key, "me", ttl=1.0)):
        with pytest.raises(StoreError, match="200"):
            call()
