"""Steps that the tests of all transports and stores take again and again, whatever the broker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from taskq.errors import ConnectionLost, StoreError, TransportError
from taskq.message import Delivery, Outbound, Settlement, Subscription
from taskq.spi import Consumer, SubscribeOrder, Transport

PATIENCE = 20.0
"""Seconds within which what must happen has happened, on a busy machine too."""
T = TypeVar("T")
C_co = TypeVar("C_co", bound=Consumer, covariant=True)


class _Opens(Protocol):
    def open(self) -> None: ...

    def close(self, *, timeout: float) -> None: ...


class _Consumes(Protocol[C_co]):
    def consumer(self) -> C_co: ...


P = TypeVar("P", bound=_Opens)


@contextmanager
def opening(made: P, *, timeout: float = 2.0) -> Iterator[P]:
    """Open a transport or a store, and close it in the end, whatever came of it."""
    try:
        made.open()
        yield made
    finally:
        made.close(timeout=timeout)


def persistently(call: Callable[[], T], seconds: float = PATIENCE) -> T:
    """Do as the kernel does: a retryable error is a reason to try again."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except (TransportError, StoreError) as error:
            if not error.retryable or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


# ------------------------------------------------------------------------------------------------------------- sending


def messages(*payloads: str, queue: str = "q", **fields: Any) -> list[Outbound]:
    """Make messages whose ids are their payloads."""
    return [Outbound(id=p, queue=queue, payload=p.encode(), **fields) for p in payloads]


def send(transport: Transport, *payloads: str, queue: str = "q", **fields: Any) -> None:
    """Send what must be accepted at once."""
    failures = transport.send(messages(*payloads, queue=queue, **fields))
    assert not failures, failures


def send_at_last(transport: Transport, *payloads: str, queue: str = "q") -> None:
    """Send again until all is accepted, whatever may have been sent before."""

    def once() -> None:
        if failures := transport.send(messages(*payloads, queue=queue)):
            raise ConnectionLost(failures[0].reason)

    persistently(once)


# -------------------------------------------------------------------------------------------------------------- taking


def consumer_of(transport: _Consumes[C_co], *queues: str, credit: int = 10_000, order: SubscribeOrder = "fair") -> C_co:
    """Make a consumer of queues, or of the queue ``q``."""
    consumer = transport.consumer()
    consumer.credit(credit, 1 << 30)
    consumer.subscribe([Subscription(q) for q in queues or ("q",)], order=order)
    return consumer


def collect(consumer: Consumer, n: int, *, limit: int = 0) -> list[Delivery]:
    """Fetch until so many have come; ``limit``: what each fetch asks for, which may bring more in the end."""
    found: list[Delivery] = []
    deadline = time.monotonic() + PATIENCE
    while len(found) < n:
        assert time.monotonic() < deadline, f"{len(found)} of {n} came: {payloads(found)}"
        want = limit or n - len(found)
        found += persistently(lambda want=want: consumer.fetch(want, 0.1)).deliveries  # type: ignore[misc]
    assert limit or len(found) == n, f"{len(found)} came where {n} were asked for"
    return found


def nothing(consumer: Consumer, seconds: float = 0.2) -> None:
    """See that nothing comes."""
    assert not consumer.fetch(10, seconds).deliveries


def payloads(deliveries: Sequence[Delivery]) -> list[str]:
    return [d.payload.decode() for d in deliveries]


def ack(consumer: Consumer, deliveries: Sequence[Delivery]) -> None:
    """Acknowledge what is held still, and wait until the server knows."""
    settlements = [Settlement(d.receipt) for d in deliveries]
    assert not persistently(lambda: consumer.settle(settlements))
    assert not persistently(lambda: consumer.flush(PATIENCE))
