"""What goes to the server together: a wait and its claim, the parts of a large commit; and what breaks on the way."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from taskq.errors import ConnectionLost
from taskq.message import Commit, Record, Settlement
from taskq.testing import TcpProxy
from taskq_lib_redis.connection import RedisLink
from taskq_transport_redis import settling
from tests.support.redis_transport import opened
from tests.support.steps import PATIENCE, ack, collect, consumer_of, messages, nothing, payloads, persistently


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many commands each write to a server held, of the thread that asks for the fixture."""
    counts: list[int] = []
    send, me = RedisLink._send, threading.get_ident()

    def counted(link: RedisLink, packed: bytes, n: int) -> None:
        if threading.get_ident() == me:
            counts.append(n)
        send(link, packed, n)

    monkeypatch.setattr(RedisLink, "_send", counted)
    return counts


def soon(call: Callable[[], Any]) -> threading.Timer:
    timer = threading.Timer(0.1, call)
    timer.start()
    return timer


def test_a_message_that_comes_while_one_waits_costs_two_writes(redis_url: str, writes: list[int]) -> None:
    """One with the wait and the claim, one to settle; nothing looks whether there is more before waiting again."""
    with opened(redis_url, poll_interval=PATIENCE) as transport:
        consumer = consumer_of(transport)
        transport.send(messages("first"))
        ack(consumer, collect(consumer, 1))  # the server knows the scripts
        assert not consumer.fetch(10, 0.0).deliveries
        for name in ("a", "b", "c"):
            writes.clear()
            timer = soon(lambda name=name: transport.send(messages(name)))  # type: ignore[misc]
            deliveries = consumer.fetch(10, PATIENCE).deliveries
            timer.join()
            ack(consumer, deliveries)
            assert payloads(deliveries) == [name]
            assert writes == [2, 1]


def test_what_came_between_two_waits_has_rung(redis_url: str) -> None:
    with opened(redis_url, poll_interval=PATIENCE) as transport:
        consumer = consumer_of(transport)
        for n in range(5):
            assert not consumer.fetch(10, 0.01).deliveries
            transport.send(messages(f"{n}"))
            began = time.monotonic()
            deliveries = consumer.fetch(10, PATIENCE).deliveries
            assert payloads(deliveries) == [f"{n}"]
            assert time.monotonic() - began < PATIENCE / 2, "it was found by looking again"
            ack(consumer, deliveries)


def test_a_message_too_large_while_others_are_held_comes_once_they_are_settled(redis_url: str) -> None:
    """The claim that was sent with the wait knows only what was held when it was sent."""
    with opened(redis_url, poll_interval=PATIENCE) as transport:
        consumer = consumer_of(transport)
        consumer.credit(10, 100)
        transport.send(messages("small"))
        held = collect(consumer, 1)
        assert not consumer.fetch(10, 0.01).deliveries
        timers = [soon(lambda: ack(consumer, held)), threading.Timer(0.4, lambda: transport.send(messages("x" * 1000)))]
        timers[1].start()
        began = time.monotonic()
        (large,) = consumer.fetch(10, PATIENCE).deliveries
        assert time.monotonic() - began < PATIENCE / 2
        assert len(large.payload) == 1000
        for timer in timers:
            timer.join()


def test_a_script_that_is_forgotten_during_a_wait_is_loaded_again(redis_url: str) -> None:
    with opened(redis_url, poll_interval=PATIENCE) as transport, redis.Redis.from_url(redis_url) as client:
        consumer = consumer_of(transport)
        assert not consumer.fetch(10, 0.0).deliveries

        def flush_and_send() -> None:
            client.script_flush()
            transport.send(messages("a"))

        timer = soon(flush_and_send)
        began = time.monotonic()
        assert payloads(consumer.fetch(10, PATIENCE).deliveries) == ["a"]
        assert time.monotonic() - began < PATIENCE / 2
        timer.join()


def test_a_wait_whose_connection_breaks_loses_nothing(redis_url: str) -> None:
    """Whether or not the claim that went with it is carried out."""
    with opened(redis_url) as direct:
        host, _, port = redis_url.removeprefix("redis://").partition("/")[0].partition(":")
        database = redis_url.rpartition("/")[2]
        with (
            TcpProxy(host, int(port)) as proxy,
            opened(f"redis://127.0.0.1:{proxy.port}/{database}", timeout=1.0, connect_timeout=1.0) as transport,
        ):
            consumer = consumer_of(transport)
            assert not consumer.fetch(10, 0.0).deliveries

            def swallow_and_send() -> None:
                proxy.swallow("down")  # the claim is carried out, its answer does not come
                direct.send(messages("a"))
                time.sleep(0.2)
                proxy.cut()
                proxy.heal()

            timer = soon(swallow_and_send)
            with pytest.raises(ConnectionLost):
                nothing(consumer, 10.0)
            timer.join()
            (delivery,) = persistently(lambda: collect(consumer, 1))
            assert (delivery.payload, delivery.deliveries) == (b"a", 1)
            ack(consumer, [delivery])
            assert not consumer.fetch(1, 0.0).deliveries


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(settling, "_COMMIT_CHUNK", 10)
    return 4


def commits_of(deliveries: list[Any]) -> list[Commit]:
    return [Commit(Settlement(d.receipt), Record(d.payload.decode(), "SUCCESS", b"r")) for d in deliveries]


def kept(redis_url: str) -> set[str]:
    with redis.Redis.from_url(redis_url) as client:
        return {key.decode().removeprefix("taskq:r:") for key in client.scan_iter("taskq:r:*")}


def test_the_parts_of_a_commit_are_all_under_way_before_an_answer_is_read(
    redis_url: str, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(redis_url) as transport:
        transport.send(messages(*(f"{n}" for n in range(10 * parts))))
        consumer = consumer_of(transport)
        deliveries = collect(consumer, 10 * parts)
        steps: list[str] = []
        send, receive = RedisLink.send, RedisLink.receive
        monkeypatch.setattr(RedisLink, "send", lambda link, *a: (steps.append("send"), send(link, *a))[1])
        monkeypatch.setattr(RedisLink, "receive", lambda link: (steps.append("receive"), receive(link))[1])
        assert not consumer.commit(commits_of(deliveries))
        assert steps == ["send"] * parts + ["receive"] * parts
        assert kept(redis_url) == {f"{n}" for n in range(10 * parts)}
        assert not transport.stats(["q"])


@pytest.mark.parametrize("at", ["send", "receive"])
def test_a_commit_that_breaks_half_way_is_repeated(
    redis_url: str, parts: int, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(redis_url) as transport:
        transport.send(messages(*(f"{n}" for n in range(10 * parts))))
        consumer = consumer_of(transport)
        deliveries = collect(consumer, 10 * parts)
        original = getattr(RedisLink, at)
        left = [2]

        def breaking(link: RedisLink, *args: Any) -> Any:
            left[0] -= 1
            if left[0] == -1 and at == "send":
                link.socket.shutdown(socket.SHUT_RDWR)
            elif left[0] == -1:
                link.close()
            return original(link, *args)

        monkeypatch.setattr(RedisLink, at, breaking)
        with pytest.raises(ConnectionLost):
            consumer.commit(commits_of(deliveries))
        monkeypatch.setattr(RedisLink, at, original)
        again = consumer.commit(commits_of(deliveries))
        assert {loss.receipt for loss in again} <= {d.receipt for d in deliveries}  # what had gone through
        assert kept(redis_url) == {f"{n}" for n in range(10 * parts)}
        assert not transport.stats(["q"])
        assert not consumer.fetch(1, 0.0).deliveries


def test_an_interrupted_call_leaves_no_answer_for_the_next(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between a question and its answer."""
    with opened(redis_url) as transport:
        transport.send(messages("a"))
        receive = RedisLink.receive

        def interrupted(link: RedisLink) -> Any:
            monkeypatch.setattr(RedisLink, "receive", receive)
            raise KeyboardInterrupt

        monkeypatch.setattr(RedisLink, "receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            transport.stats(["q"])
        assert transport.purge(["q"]) == {"q": 1}
