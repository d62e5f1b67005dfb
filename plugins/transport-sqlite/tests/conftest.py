"""Brokers on files, and what tests do with them again and again."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from taskq.message import Delivery, Outbound
from taskq.spi import Subscription, TransportConfig, parse_urls
from taskq_transport_sqlite.consumer import SqliteConsumer
from taskq_transport_sqlite.options import SqliteOptions
from taskq_transport_sqlite.transport import SqliteTransport


@pytest.fixture
def file() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:  # tmp_path may be too long for a socket
        yield f"{folder}/queue.db"


@pytest.fixture
def connect(file: str) -> Iterator[Callable[..., SqliteTransport]]:
    """Open transports on the file; they are closed at the end."""
    opened = []

    def connect(*, lease_s: float = 5.0, path: str = file, **options: Any) -> SqliteTransport:
        options = {"synchronous": "NORMAL", **options}
        config = TransportConfig(
            urls=parse_urls(f"sqlite:///{path}"), options=SqliteOptions(**options), lease_s=lease_s
        )
        transport = SqliteTransport(config)
        transport.open()
        opened.append(transport)
        return transport

    yield connect
    for transport in opened:
        transport.close()


@pytest.fixture
def transport(connect: Callable[..., SqliteTransport]) -> SqliteTransport:
    return connect()


def out(payload: str, queue: str = "q", **fields: Any) -> Outbound:
    return Outbound(f"id-{payload}", queue, payload.encode(), **fields)


def consume(transport: SqliteTransport, *queues: str, order: Any = "fair") -> SqliteConsumer:
    consumer = transport.consumer()
    consumer.subscribe([Subscription(queue) for queue in queues or ("q",)], order=order)
    return consumer


def take(consumer: SqliteConsumer, n: int, *, seconds: float = 10.0) -> list[Delivery]:
    """Fetch until there are ``n`` deliveries."""
    taken: list[Delivery] = []
    deadline = time.monotonic() + seconds
    while len(taken) < n:
        left = deadline - time.monotonic()
        assert left > 0, f"got {len(taken)} of {n} deliveries in {seconds:g} s"
        taken += consumer.fetch(n - len(taken), min(left, 1.0)).deliveries
    return taken


def texts(deliveries: Any) -> list[str]:
    return [d.payload.decode() for d in deliveries]
