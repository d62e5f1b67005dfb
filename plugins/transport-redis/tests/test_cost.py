"""What work costs, counted in commands and bytes and not in time: many queues, a long backlog, delayed messages."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from taskq.message import Outbound, Settlement
from tests.support.redis_servers import OwnServer
from tests.support.redis_transport import opened
from tests.support.steps import ack, collect, consumer_of, messages

pytestmark = pytest.mark.parametrize("redis_program", ["valkey"], indirect=True)
SOAK = bool(os.environ.get("TASKQ_SOAK"))
PAYLOAD = b"x" * 64


@pytest.fixture
def redis_url(redis_program: str) -> Iterator[str]:
    """A server of its own: it counts what all its clients do, other tests' too."""
    with OwnServer(redis_program) as server:
        yield server.url()


@contextmanager
def commands(url: str) -> Iterator[dict[str, int]]:
    """Count the commands that the server carries out meanwhile, those of scripts included, by name."""
    with redis.Redis.from_url(url) as client:
        client.config_resetstat()
        found: dict[str, int] = {}
        yield found
        stats: dict[str, Any] = client.info("commandstats")
        found |= {name.removeprefix("cmdstat_"): facts["calls"] for name, facts in stats.items()}
        for own in ("config|resetstat", "info", "client|setinfo", "select"):
            found.pop(own, None)


def fill(transport: Any, count: int, *queues: str, delay: float = 0.0) -> None:
    names = itertools.cycle(queues or ("q",))
    for start in range(0, count, 10_000):
        size = min(10_000, count - start)
        assert not transport.send([Outbound("", next(names), PAYLOAD, delay=delay) for _ in range(size)])


def work(consumer: Any, count: int, limit: int = 500) -> None:
    """Take and acknowledge as a worker does."""
    done = 0
    while done < count:
        deliveries = consumer.fetch(min(limit, count - done), 1.0, ahead=0).deliveries
        assert deliveries
        assert not consumer.settle([Settlement(d.receipt) for d in deliveries])
        done += len(deliveries)


def test_a_thousand_queues_cost_no_more_calls_than_one(redis_url: str) -> None:
    """The same number of scripts per task, whether 5,000 messages lie in one queue or in a thousand."""
    calls = {}
    for count in (1, 1000):
        names = [f"q{i:03}" for i in range(count)]
        with opened(redis_url) as transport:
            fill(transport, 5000, *names)
            consumer = consumer_of(transport, *names)
            assert not consumer.fetch(0, 0.0).deliveries  # the server knows the queues
            with commands(redis_url) as found:
                work(consumer, 5000)
            calls[count] = found["evalsha"]
            consumer.close()
    assert calls[1] == calls[1000] == 20, "one to claim and one to settle for each batch of 500"


def test_what_a_claim_does_depends_on_the_queues_that_hold_something(redis_url: str) -> None:
    """A thousand subscribed queues of which three hold something: the empty ones are not looked at."""
    names = [f"q{i:03}" for i in range(1000)]
    with opened(redis_url) as transport:
        consumer = consumer_of(transport, *names)
        assert not consumer.fetch(1, 0.0).deliveries
        fill(transport, 3, "q001", "q500", "q999")
        with commands(redis_url) as found:
            assert len(consumer.fetch(10, 1.0).deliveries) == 3
        assert found.get("lpop", 0) <= 30
        assert sum(found.values()) < 80, found


def test_the_length_of_the_backlog_costs_nothing(redis_url: str) -> None:
    """The same commands for 1,000 messages from a queue of 2,000 and of 200,000 (a million in the soak)."""
    done = []
    long = 1_000_000 if SOAK else 200_000
    for length in (2000, long):
        with opened(redis_url) as transport:
            fill(transport, length)
            consumer = consumer_of(transport)
            assert not consumer.fetch(0, 0.0).deliveries
            with commands(redis_url) as found:
                began = time.perf_counter()
                work(consumer, 1000)
                rate = 1000 / (time.perf_counter() - began)
            done.append({name: n for name, n in found.items() if name not in ("eval", "evalsha")})
            print(f"of {length:,}: {rate:,.0f} messages/s through the transport alone")
            consumer.close()
            transport.purge(["q"])
    assert done[0] == done[1]


def test_delayed_messages_cost_the_worker_nothing(redis_url: str) -> None:
    """Those that are not due stay on the server: no byte of them comes to the consumer, and a claim looks at one."""
    count = 1_000_000 if SOAK else 100_000
    with opened(redis_url) as transport:
        fill(transport, count, delay=3600.0)
        transport.send(messages("now"))
        consumer = consumer_of(transport)
        collect(consumer, 1)
        with commands(redis_url) as found, redis.Redis.from_url(redis_url) as client:
            sent = client.info("stats")["total_net_output_bytes"]
            for _ in range(10):
                assert not consumer.fetch(100, 0.0).deliveries
            after = client.info("stats")["total_net_output_bytes"]
        assert after - sent < 20_000, "besides the answer to our own question nothing to speak of"
        assert found["zrange"] == 10
        assert "zrangebyscore" not in found
        assert not consumer._buffer
        assert transport.stats(["q"])["q"].delayed == count
        transport.purge(["q"])


@pytest.mark.parametrize("size", [1, 64])
def test_a_message_is_framed_by_two_bytes(redis_url: str, size: int) -> None:
    with opened(redis_url) as transport, redis.Redis.from_url(redis_url) as client:
        transport.send([Outbound("0123456789abcdef0123456789abcdef", "q", b"x" * size)])
        assert client.lrange("taskq:q:q:5", 0, -1) == [b"\0\5" + b"x" * size]
        consumer = consumer_of(transport)
        ack(consumer, collect(consumer, 1))
