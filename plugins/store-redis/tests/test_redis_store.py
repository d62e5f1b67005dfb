"""What is special about results in Redis: pushes, crashes of the server, full memory, rights, foreign keys."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager
from typing import Any

import pytest
import redis

from taskq.errors import NotSupported, OutcomeUnknown, StoreError, StoreUnavailable
from taskq.message import Record
from taskq.spi import Durable, Op, OpKind, StoreConfig, parse_urls
from taskq.testing import TcpProxy
from taskq_store_redis.options import RedisStoreOptions
from taskq_store_redis.store import RedisStore
from tests.support.redis_servers import OwnServer, keys
from tests.support.steps import PATIENCE, opening, persistently


def opened(url: str, **options: Any) -> AbstractContextManager[RedisStore]:
    options = {"timeout": 3.0, "connect_timeout": 3.0, **options}
    return opening(RedisStore(StoreConfig(urls=parse_urls(url), options=RedisStoreOptions(**options))))


def record(name: str, store: RedisStore | None = None, **fields: Any) -> Record:
    return Record(name, "SUCCESS", b"result", reply=store.reply_address() if store else None, **fields)


def test_a_pushed_result_costs_the_waiting_side_no_command(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(redis_url) as store, opened(redis_url) as writer:
        waited_for = record("a", store)
        assert not store.wait(["a"], 0.02)  # its key has been asked once
        asked: list[object] = []
        monkeypatch.setattr(store, "get", lambda ids: asked.append(ids) or [])
        timer = threading.Timer(0.1, lambda: writer.put([waited_for]))
        timer.start()
        (found,) = store.wait(["a"], 0.8)
        timer.join()
        assert found.payload == b"result"
        assert not asked


def test_a_result_without_an_address_is_found_by_asking(redis_url: str) -> None:
    with opened(redis_url) as store, opened(redis_url) as writer:
        store.wait(["a"], 0.02)
        timer = threading.Timer(0.1, lambda: writer.put([record("a")]))
        timer.start()
        assert [r.id for r in store.wait(["a"], PATIENCE)] == ["a"]
        timer.join()


def test_what_others_publish_to_us_is_survived(redis_url: str) -> None:
    with opened(redis_url) as store, opened(redis_url) as writer, redis.Redis.from_url(redis_url) as client:
        address = store.reply_address()
        assert address
        client.publish(address, b"\xc1 nonsense")
        client.publish(address, b"\x91\xa3abc")
        store.wait(["a"], 0.05)
        writer.put([record("a", store)])
        assert [r.id for r in persistently(lambda: store.wait(["a"], 5.0))] == ["a"]


def test_a_foreign_value_is_said_to_be_one(redis_url: str) -> None:
    with opened(redis_url) as store, redis.Redis.from_url(redis_url) as client:
        client.set("taskq:r:a", b"not a record")
        with pytest.raises(StoreError, match="another program") as caught:
            store.get(["a"])
        assert not caught.value.retryable
        client.lpush("taskq:r:b", "x")
        assert store.get(["b"]) == [None]
        assert not store.put([record("b")])  # a result is stored whatever was there
        assert store.get(["b"]) != [None]


def test_results_end_with_their_time_to_live(redis_url: str) -> None:
    with opened(redis_url) as store, redis.Redis.from_url(redis_url) as client:
        store.put([record("a", ttl=100.0), record("b", ttl=0.05)])
        assert 90_000 < client.pttl("taskq:r:a") <= 100_000
        deadline = time.monotonic() + PATIENCE
        while store.get(["b"]) != [None]:
            assert time.monotonic() < deadline


def test_results_survive_the_servers_death(redis_program: str) -> None:
    with (
        OwnServer(redis_program, "--appendonly", "yes", "--appendfsync", "always") as server,
        opened(server.url()) as store,
    ):
        store.put([record("a", store)])
        assert store.acquire("lock", "me", ttl=60)
        server.kill()
        with pytest.raises(StoreUnavailable, match=str(server.port)):
            store.put([record("b")])
        with pytest.raises(StoreUnavailable):
            store.wait(["b"], 5.0)
        server.start()
        assert persistently(lambda: store.get(["a"])) != [None]
        assert not store.acquire("lock", "you", ttl=60)
        waiting = threading.Timer(0.2, lambda: store.put([record("b", store)]))
        waiting.start()
        assert [r.id for r in persistently(lambda: store.wait(["b"], 5.0))] == ["b"]
        waiting.join()


def test_a_server_that_evicts_results_says_so(redis_program: str) -> None:
    with OwnServer(redis_program, "--maxmemory", "100mb", "--maxmemory-policy", "volatile-lru") as server:
        with opened(server.url()) as store:
            assert store.capabilities.keeps is Durable.EVICTABLE
        with server.client() as client:
            client.config_set("maxmemory-policy", "noeviction")
        with opened(server.url()) as store:
            assert store.capabilities.keeps is Durable.DURABLE


def test_full_memory_is_an_error_to_repeat_after(redis_program: str) -> None:
    with OwnServer(redis_program) as server, opened(server.url()) as store, server.client() as client:
        client.config_set("maxmemory", "1")
        with pytest.raises(StoreUnavailable, match="memory"):
            store.put([record("a")])
        client.config_set("maxmemory", "0")
        assert not store.put([record("a")])


def test_scripts_are_loaded_again(redis_url: str) -> None:
    with opened(redis_url) as store, redis.Redis.from_url(redis_url) as client:
        for name in "abc":
            assert not store.put([record(name)])
            assert store.apply([Op(kind=OpKind.INCREMENT, key="n")])[0].applied
            client.script_flush()


def test_the_outcome_of_an_operation_may_be_unknown(redis_url: str) -> None:
    parsed = parse_urls(redis_url)[0]
    assert parsed.host
    assert parsed.port
    increment = [Op(kind=OpKind.INCREMENT, key="n")]
    with (
        TcpProxy(parsed.host, parsed.port) as proxy,
        opened(f"redis://127.0.0.1:{proxy.port}{parsed.path}", timeout=0.5, connect_timeout=0.5) as store,
    ):
        store.apply(increment)
        proxy.swallow("down")
        with pytest.raises(OutcomeUnknown):
            store.apply(increment)
        proxy.cut()
        proxy.heal()
        assert [r.current for r in store.apply(increment)] == [b"3"]
        proxy.close()
        with pytest.raises(StoreUnavailable) as caught:  # nothing was sent
            store.apply(increment)
        assert not isinstance(caught.value, OutcomeUnknown)


def test_wrong_credentials_and_missing_rights(redis_program: str) -> None:
    with (
        OwnServer(redis_program, "--requirepass", "right-secret") as server,
        server.client(password="right-secret") as client,
    ):
        with pytest.raises(StoreError) as caught, opened(server.url(":wrong-secret")):
            pass
        assert not caught.value.retryable
        assert "secret" not in str(caught.value)
        client.execute_command("ACL", "SETUSER", "poor", "on", ">pw", "~other:*", "+@all")
        with pytest.raises(StoreError, match="README") as caught, opened(server.url("poor:pw")):
            pass
        assert not caught.value.retryable
        rights = "~taskq:* &taskq:* -@all +@read +@write +@connection +@scripting +@pubsub +time"
        client.execute_command("ACL", "SETUSER", "worker", "on", ">pw", *rights.split())
        with opened(server.url("worker:pw")) as store:
            store.put([record("a", store)])
            assert [r.id for r in store.wait(["a"], 5.0)] == ["a"]
            store.delete(["a"])
            assert store.apply([Op(kind=OpKind.PUT, key="x", value=b"1", ttl=60.0)])[0].applied
            assert store.acquire("lock", "me", ttl=60)
            store.release("lock", "me")
            store.index_put("i", {"m": 1.0})
            assert store.index_due("i", 2.0, 10) == [("m", 1.0)]
            assert store.index_remove("i", ["m", "n"]) == ["m"]


def test_keys_of_coordination_are_apart(redis_url: str) -> None:
    """One name may be a value, a semaphore and an index at once, and a result; whatever the prefix."""
    for prefix in ("", "k:", "work:"):
        with opened(redis_url, key_prefix=prefix) as store:
            store.apply([Op(kind=OpKind.PUT, key="x", value=b"v")])
            assert store.acquire("x", "me", ttl=60)
            store.index_put("x", {"m": 1.0})
            store.put([record("x")])
            assert keys(redis_url) == {f"{prefix}{kind}:x" for kind in "kstr"}
        with redis.Redis.from_url(redis_url) as client:
            client.flushdb()


def test_bad_keys_and_options_are_refused(redis_url: str) -> None:
    with opened(redis_url) as store:
        for key in ("", "é", "x" * 201, "line\nbreak"):
            with pytest.raises(StoreError) as caught:
                store.apply([Op(kind=OpKind.GET, key=key)])
            assert not caught.value.retryable
    with pytest.raises(NotSupported), opened(redis_url, sentinel_service="mine"):
        pass


def test_a_second_thread_waits_its_turn(redis_url: str) -> None:
    """Two threads that wait by mistake take turns; neither breaks the other's connection."""
    with opened(redis_url) as store:
        threads = [threading.Thread(target=store.wait, args=([f"{i}"], 0.2)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        store.put([record("0", store)])
        assert [r.id for r in store.wait(["0"], 5.0)] == ["0"]
