"""Small steps with the Redis transport, single or cluster, for the tests of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from taskq.errors import TransportError
from taskq.message import ACK, Delivery, Outbound, Settlement, Subscription
from taskq.spi import TransportConfig, parse_urls
from taskq_transport_redis.options import RedisOptions
from taskq_transport_redis.plugin import taskq_transport

PATIENCE = 20.0
T = TypeVar("T")


@contextmanager
def opened(url: str, *, lease_s: float = 30.0, **options: Any) -> Iterator[Any]:
    options = {"timeout": 3.0, "connect_timeout": 3.0, **options}
    config = TransportConfig(urls=parse_urls(url), options=RedisOptions(**options), lease_s=lease_s)
    transport = taskq_transport(config.urls[0].scheme).factory(config)
    try:
        transport.open()
        yield transport
    finally:
        transport.close(timeout=2.0)


def messages(*payloads: str, queue: str = "q", **fields: Any) -> list[Outbound]:
    return [Outbound(id=p, queue=queue, payload=p.encode(), **fields) for p in payloads]


def consumer_of(transport: Any, *queues: str, credit: int = 10_000, order: Any = "fair") -> Any:
    consumer = transport.consumer()
    consumer.credit(credit, 1 << 30)
    consumer.subscribe([Subscription(q) for q in queues or ("q",)], order=order)
    return consumer


def persistently(call: Callable[[], T]) -> T:
    """Do as the kernel does: a retryable error is a reason to try again."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return call()
        except TransportError as error:
            if not error.retryable or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def collect(consumer: Any, n: int) -> list[Delivery]:
    found: list[Delivery] = []
    deadline = time.monotonic() + PATIENCE
    while len(found) < n:
        assert time.monotonic() < deadline, f"{len(found)} of {n} came"
        limit = n - len(found)
        found += persistently(lambda limit=limit: consumer.fetch(limit, 0.1)).deliveries  # type: ignore[misc]
    return found


def ack(consumer: Any, deliveries: Sequence[Delivery]) -> None:
    settlements = [Settlement(d.receipt, ACK) for d in deliveries]
    assert not persistently(lambda: consumer.settle(settlements))
