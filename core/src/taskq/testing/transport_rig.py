"""The test bench of the transport suite: opens transports and consumers, sends, collects, and closes what is left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from taskq.message import ACK, RELEASE, Delivery, Lost, Outbound, Settlement, Subscription
from taskq.spi import (
    Capabilities,
    Consumer,
    DeliveryCount,
    SubscribeOrder,
    SupportsMaintenance,
    Transport,
    TransportConfig,
    TransportSpec,
    Url,
    parse_urls,
)
from taskq.testing.base import unique

if TYPE_CHECKING:
    from taskq.testing.transports_base import TransportBase

_MAINTAIN_EVERY_S = 0.1
_LONG_LEASE_S = 30.0  # tests that are not about leases must not lose one on a slow machine


class TransportRig:
    """One test's transports. ``queue`` is a name of this test's own; ``lease_s`` is for the tests about leases."""

    def __init__(self, suite: TransportBase, url: str) -> None:
        self.suite = suite
        self.url = url
        self.urls = parse_urls(url)
        self.spec: TransportSpec = suite.load_spec()
        self.queue = unique()
        self.lease_s = suite.lease_s or max(1.0, self.spec.capabilities(self.options()).lease_min_s)
        self._open: list[Transport] = []
        self._main: Transport | None = None
        self._maintained = 0.0
        self._at_close: list[Callable[[], object]] = []
        self._strays: dict[int, list[Delivery]] = {}

    # ------------------------------------------------------------------------------------------------- opening

    def options(self, urls: tuple[Url, ...] | None = None, **more: Any) -> Any:
        return self.suite.options_for(self.spec, urls or self.urls, **more)

    def new(self, *, url: str | None = None, lease_s: float | None = None, **options: Any) -> Transport:
        """Return a transport that is not open."""
        urls = parse_urls(url) if url is not None else self.urls
        config = TransportConfig(
            urls=tuple(u.without_query() for u in urls),
            options=self.options(urls, **options),
            app="kit",
            lease_s=lease_s or _LONG_LEASE_S,
        )
        return self.spec.factory(config)

    def open(self, **arguments: Any) -> Transport:
        """Return one more open transport on the same broker."""
        transport = self.new(**arguments)
        self._open.append(transport)
        transport.open()
        return transport

    @property
    def main(self) -> Transport:
        """The transport that tests use unless they say otherwise."""
        if self._main is None:
            self._main = self.open()
        return self._main

    @property
    def caps(self) -> Capabilities:
        return self.main.capabilities

    def need(self, declared: object, what: str) -> None:
        """Skip the test where a capability is not declared, or the suite has no hook for it."""
        if not declared:
            pytest.skip(f"{self.spec.name}: no {what}")

    def consumer(
        self,
        *queues: str | Subscription,
        transport: Transport | None = None,
        credit: int = 10_000,
        max_bytes: int = 1 << 30,
        order: SubscribeOrder = "fair",
    ) -> Consumer:
        """Return a consumer, of the test's queue unless others are named."""
        consumer = (transport or self.main).consumer()
        consumer.credit(credit, max_bytes)
        names = queues or (self.queue,)
        consumer.subscribe([q if isinstance(q, Subscription) else Subscription(q) for q in names], order=order)
        return consumer

    def forget(self, transport: Transport) -> None:
        """Leave a transport, closed by the test, to the garbage collector."""
        if transport in self._open:
            self._open.remove(transport)

    def abandon(self) -> None:
        """Drop all transports without closing them: what a forked child does with what it inherited."""
        self._open.clear()
        self._main = None

    def on_close(self, call: Callable[[], object]) -> None:
        """Have something else closed at the end of the test."""
        self._at_close.append(call)

    def close(self) -> None:
        for call in reversed(self._at_close):
            with contextlib.suppress(Exception):
                call()
        for transport in reversed(self._open):
            # A test that failed half-way may leave one broken; its failure is what counts.
            with contextlib.suppress(Exception):
                transport.close(timeout=1.0)
        self._open.clear()

    # ------------------------------------------------------------------------------------------------- messages

    def outbound(self, payload: bytes | str, **fields: Any) -> Outbound:
        fields.setdefault("queue", self.queue)
        fields.setdefault("id", unique("m"))
        return Outbound(payload=payload.encode() if isinstance(payload, str) else payload, **fields)

    def send(self, *payloads: bytes | str, transport: Transport | None = None, **fields: Any) -> list[Outbound]:
        """Send messages in one batch; they must be accepted."""
        batch = [self.outbound(payload, **fields) for payload in payloads]
        failures = (transport or self.main).send(batch)
        assert not failures, f"send refused {len(failures)} of {len(batch)} messages: {failures[0].reason}"
        return batch

    def _maintain(self) -> None:
        """Do what some worker would do: reap, promote."""
        if time.monotonic() - self._maintained > _MAINTAIN_EVERY_S:
            for transport in self._open:
                if isinstance(transport, SupportsMaintenance):
                    with contextlib.suppress(Exception):  # closed by the test
                        transport.maintain(0.1)
            self._maintained = time.monotonic()

    def collect(self, consumer: Consumer, n: int, *, seconds: float | None = None, limit: int = 0) -> list[Delivery]:
        """Fetch until ``n`` deliveries are there; fail after ``seconds``. Losses on the way are an error."""
        deliveries, lost = self.gather(consumer, n, seconds=seconds, limit=limit)
        assert not lost, f"fetch reported receipts as lost while collecting: {lost}"
        if len(deliveries) < n:
            pytest.fail(
                f"{len(deliveries)} of {n} messages were delivered within {seconds or self.suite.patience_s:g} s: "
                f"{[d.payload[:20] for d in deliveries][:20]}"
            )
        return deliveries

    def gather(
        self, consumer: Consumer, n: int, *, seconds: float | None = None, limit: int = 0
    ) -> tuple[list[Delivery], list[Lost]]:
        """Fetch until ``n`` deliveries are there or ``seconds`` have passed."""
        deliveries = self._strays.pop(id(consumer), [])
        lost: list[Lost] = []
        deadline = time.monotonic() + (self.suite.patience_s if seconds is None else seconds)
        while len(deliveries) < n:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self._maintain()
            fetched = consumer.fetch(min(limit or n, n - len(deliveries)), min(0.1, left))
            deliveries += fetched.deliveries
            lost += fetched.lost
        return deliveries, lost

    def nothing(self, consumer: Consumer, seconds: float | None = None, *, why: str = "") -> None:
        """Watch that nothing is delivered."""
        found, _ = self.gather(consumer, 1, seconds=self.suite.quiet_s if seconds is None else seconds)
        assert not found, f"a message was delivered that should not be ({why or 'the queue is empty'}): {found[0]}"

    # ------------------------------------------------------------------------------------------------- settling

    def settle(self, consumer: Consumer, settlements: Sequence[Settlement]) -> list[Lost]:
        """Settle and wait for the server to have taken it; return what is lost."""
        lost = list(consumer.settle(settlements))
        return lost + list(consumer.flush(self.suite.patience_s))

    def ack(self, consumer: Consumer, deliveries: Iterable[Delivery]) -> None:
        lost = self.settle(consumer, [Settlement(d.receipt, ACK) for d in deliveries])
        assert not lost, f"acknowledging what is held reported losses: {lost}"

    def release(
        self, consumer: Consumer, deliveries: Iterable[Delivery], *, delay: float = 0.0, counted: bool = False
    ) -> None:
        lost = self.settle(consumer, [Settlement(d.receipt, RELEASE, delay, counted) for d in deliveries])
        assert not lost, f"releasing what is held reported losses: {lost}"

    def is_lost(self, consumer: Consumer, receipt: Any, lost: Sequence[Lost]) -> bool:
        """Whether a receipt is reported as lost, by the settlement or, where that is pipelined, by the next fetch."""
        if any(entry.receipt == receipt for entry in lost):
            return True
        deadline = time.monotonic() + self.suite.patience_s / 5
        while time.monotonic() < deadline:
            fetched = consumer.fetch(1, 0.05)
            self._strays.setdefault(id(consumer), []).extend(fetched.deliveries)
            if any(entry.receipt == receipt for entry in fetched.lost):
                return True
        return False

    def empty(self, queue: str | None = None) -> None:
        """Assert that a queue has neither ready nor delivered messages, seen by a consumer of its own."""
        consumer = self.consumer(queue or self.queue, transport=self.open())
        self.nothing(consumer)
        consumer.close()

    # --------------------------------------------------------------------------------------------------- counts

    def counts(self, delivery: Delivery, expected: int, *, releases: int = 0) -> None:
        """Check ``deliveries`` by what is declared; ``releases`` uncounted ones went before."""
        match self.caps.delivery_count:
            case DeliveryCount.EXACT:
                assert delivery.deliveries == expected, (
                    f"deliveries is {delivery.deliveries}, not {expected}: it counts deliveries, this one included, "
                    "less uncounted releases"
                )
            case DeliveryCount.COUNTS_RELEASES:
                assert expected <= delivery.deliveries <= expected + releases
            case DeliveryCount.NONE:
                assert delivery.deliveries == 0, "delivery_count is declared NONE: deliveries must be 0, not a guess"
