"""A consumer of the ZeroMQ transport: one connection to take on, one to settle and to keep the lease."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from taskq.errors import TransportClosed
from taskq.message import RELEASE, Commit, Delivery, Fetched, Lost, Receipt, Settlement, Subscription
from taskq_transport_zeromq.holdings import Holdings
from taskq_transport_zeromq.intake import Intake
from taskq_transport_zeromq.membership import Membership
from taskq_transport_zeromq.settling import Settling

if TYPE_CHECKING:
    from taskq.spi import Committer, ResultStore, SubscribeOrder
    from taskq_transport_zeromq.transport import ZeroMQTransport

_MOST_AT_ONCE = 4000
_SETTLE_BYTES = 8 << 20


class ZeroMQConsumer:
    """Holds messages under one lease, which ``extend`` keeps."""

    def __init__(self, transport: ZeroMQTransport) -> None:
        self._transport = transport
        self._closed = False
        target = transport.target
        self._holdings = holdings = Holdings()
        self._member = member = Membership(holdings, transport.lease_s, transport.options.timeout)
        self._settling = Settling(target, member, holdings)
        self._intake = Intake(target, member, holdings, self._release)

    @property
    def id(self) -> str:
        """The name by which the hub knows it."""
        return self._member.id

    # --------------------------------------------------------------------------------------------------- intake

    def subscribe(self, queues: Sequence[Subscription], *, order: SubscribeOrder = "fair") -> None:
        self._check()
        self._member.queues = [(s.queue, s.weight) for s in queues]
        self._member.order = order
        self._intake.changed()

    def credit(self, n: int, max_bytes: int) -> None:
        self._check()
        self._member.credit, self._member.max_bytes = n, max_bytes
        self._intake.limit()

    def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
        self._check()
        deliveries = self._intake.fetch(limit, wait, ahead)
        return Fetched(deliveries, self._holdings.take_losses())

    def _release(self, deliveries: Sequence[Delivery]) -> None:
        self._settle([Settlement(d.receipt, RELEASE) for d in deliveries])

    def wake(self) -> None:
        self._intake.wake()

    # -------------------------------------------------------------------------------------------------- settling

    def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
        self._check()
        self._settle(settlements)
        return self._holdings.take_losses()

    def _settle(self, settlements: Sequence[Settlement]) -> None:
        with self._settling.lock:
            for start in range(0, len(settlements), _MOST_AT_ONCE):
                self._settling.submit(self._holdings.settled(settlements[start : start + _MOST_AT_ONCE]))

    def commit(self, commits: Sequence[Commit]) -> Sequence[Lost]:
        """Settle with records and follow-ups."""
        self._check()
        with self._settling.lock:
            start = size = 0
            for i, commit in enumerate(commits):
                if size > _SETTLE_BYTES or i - start >= _MOST_AT_ONCE:
                    self._settling.submit(self._holdings.committed(commits[start:i]))
                    start, size = i, 0
                if commit.record is not None:
                    size += len(commit.record.payload)
                if commit.follow_ups:
                    size += sum([len(o.payload) for o in commit.follow_ups])
            self._settling.submit(self._holdings.committed(commits[start:] if start else commits))
        return self._holdings.take_losses()

    def flush(self, timeout: float) -> Sequence[Lost]:
        self._check()
        with self._settling.lock:
            self._settling.flush(timeout)
        return self._holdings.take_losses()

    def extend(self, receipts: Sequence[Receipt] | None = None) -> Sequence[Lost]:
        self._check()
        with self._settling.lock:
            self._settling.extend()
        if self._holdings.losses:
            self._intake.nudge()
        return self._holdings.take_losses()

    def fuse(self, store: ResultStore) -> Committer | None:
        from taskq_lib_zeromq.results import HubResults

        if isinstance(store, HubResults) and store.results_place == self._transport.place:
            return ZeroMQCommitter(self, store)
        return None

    # -------------------------------------------------------------------------------------------------- anywhere

    def close(self, timeout: float | None = None) -> None:
        if self._closed:
            return
        self._closed = True
        self._transport.forget(self)
        owned = self._transport.owned
        if owned:
            with self._settling.lock:
                self._settling.leave(min(self._transport.options.timeout, 5.0 if timeout is None else timeout))
            self._settling.close()
        self._intake.close(owned=owned)
        self._holdings.clear()

    def _check(self) -> None:
        self._transport.check_process()
        if self._closed:
            raise TransportClosed("this consumer is closed; make a new one with Transport.consumer()")


class ZeroMQCommitter:
    """Stores outcomes, sends follow-ups and settles in one step of the hub."""

    def __init__(self, consumer: ZeroMQConsumer, store: Any) -> None:
        self._consumer = consumer
        self._store = store

    def commit(self, commits: Sequence[Commit]) -> Sequence[Lost]:
        records = [c.record for c in commits if c.record is not None]
        if records:
            self._store.check_records(records)
        return self._consumer.commit(commits)
