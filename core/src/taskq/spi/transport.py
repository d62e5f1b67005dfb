"""The transport interface: how messages travel. Synchronous, blocking, batch-first.

Threads, for every implementation: ``Consumer.fetch``, ``subscribe`` and ``credit`` are called by the intake thread;
``settle``, ``flush`` and ``extend`` by one other thread at a time, while a fetch may be blocking; ``Transport.send``
and the abilities by any thread; ``wake`` anywhere, a signal handler included. A client whose connection belongs to
one thread keeps an I/O thread of its own. No lock may be held over a blocking fetch. Nothing opened survives a fork:
the kernel opens a new transport in the child, and an implementation must not touch inherited connections (not even to
close them).

Every call to a server has a timeout. Errors are ``taskq.errors`` types; ``retryable`` tells the kernel what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from taskq.message import (
    Commit,
    Delivery,
    Fetched,
    Lost,
    Outbound,
    Peeked,
    QueueFacts,
    QueueSpec,
    QueueStats,
    Receipt,
    SendFailure,
    Settlement,
    Subscription,
)
from taskq.spi.capabilities import Capabilities
from taskq.spi.store import ResultStore

DeclareMode = Literal["create", "verify", "none"]
SubscribeOrder = Literal["strict", "weighted", "fair"]


class Consumer(Protocol):
    """Takes messages from subscribed queues and holds each under a lease until it is settled."""

    def subscribe(self, queues: Sequence[Subscription], *, order: SubscribeOrder = "fair") -> None:
        """Replace the set of queues to fetch from, at any time; messages already held stay held.

        ``strict``: an earlier queue is emptied before a later one is looked at; ``weighted``: in proportion to the
        weights; ``fair``: no queue with waiting messages is passed over for ever.

        Blocking: at most one round trip per queue. Threads: intake. Idempotence: yes. Order: before the first fetch.
        Errors: QueueMissing, TransportError.
        """
        ...

    def credit(self, n: int, max_bytes: int) -> None:
        """Limit what is held unsettled, the consumer's own read-ahead included, to ``n`` messages and ``max_bytes``.

        A single message larger than ``max_bytes`` is still delivered when nothing else is held. Lowering the limit
        takes nothing back. A transport that only fetches on demand checks it in ``fetch``.

        Blocking: no. Threads: intake. Idempotence: yes. Order: at any time. Errors: TransportError.
        """
        ...

    def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
        """Return up to ``limit`` deliveries as soon as there is one, or none after ``wait`` seconds or a ``wake``.

        ``wait`` 0 returns at once. ``ahead`` is how many more may be requested from the server already for the next
        call; they count as held; ignoring it is allowed. Losses found since the last call are reported once.

        Blocking: up to ``wait`` plus one round trip. Threads: intake. Idempotence: no. Order: within the declared
        ordering. Errors: TransportError; after a retryable one the next call reconnects.
        """
        ...

    def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
        """End deliveries, each on its own, in any order: acknowledge them, or release them to their queues.

        A receipt settled twice, or no longer held, is reported as lost (once) and has no effect on the message. Returns
        the losses known so far; a transport that learns later reports them with ``flush`` or ``fetch``. An uncounted
        release does not raise ``deliveries``, and hands back near the queue's head, in the order given.

        Blocking: one round trip, or none where pipelined. Threads: settling. Idempotence: yes. Order: free.
        Errors: TransportError: nothing is known of the batch, repeat it.
        """
        ...

    def flush(self, timeout: float) -> Sequence[Lost]:
        """Wait until the server has taken every settlement made so far; return the losses that were still unreported.

        Blocking: up to ``timeout``. Threads: settling. Idempotence: yes. Order: after the settles it covers.
        Errors: TransportError, also when the timeout passes.
        """
        ...

    def extend(self, receipts: Sequence[Receipt] | None = None) -> Sequence[Lost]:
        """Renew the lease: of these receipts where the lease scope is ``message``, else of the whole consumer (None).

        Called about every third of the lease. A no-op where the scope is ``connection`` or ``none``.

        Blocking: one round trip per batch limit. Threads: settling. Idempotence: yes. Order: free. Errors:
        TransportError.
        """
        ...

    def wake(self) -> None:
        """Make the running fetch, or else the next one, return soon (within about 50 ms), with what it has. Sticky.

        Blocking: no. Threads: any, a signal handler included. Idempotence: yes. Order: free. Errors: none.
        """
        ...

    def close(self) -> None:
        """Hand back what is unsettled, uncounted and in order, and give up the consumer's server-side state.

        Blocking: a few round trips. Threads: any, once fetch and settle have ended. Idempotence: yes. Order: last.
        Errors: none; what could not be handed back returns when its lease ends.
        """
        ...


class Transport(Protocol):
    """A connection to one broker (or a set of fail-over servers)."""

    @property
    def capabilities(self) -> Capabilities:
        """What this server can do, exact once ``open`` has returned."""
        ...

    def open(self) -> None:
        """Connect and check the server: credentials, version, schema.

        Blocking: up to the connect timeout. Threads: any. Idempotence: a second call does nothing. Order: first.
        Errors: ConnectionFailed, AuthenticationFailed, SchemaMismatch, StorageFull.
        """
        ...

    def close(self, *, timeout: float = 5.0) -> None:
        """Close connections and stop threads. Consumers are closed first, by the kernel or here.

        Blocking: up to ``timeout``. Threads: any. Idempotence: yes. Order: last. Errors: none.
        """
        ...

    def declare(self, queues: Sequence[QueueSpec], *, mode: DeclareMode = "create") -> Mapping[str, QueueFacts]:
        """Make sure that queues exist (``create``), or check that they do (``verify``), or do nothing (``none``).

        Blocking: round trips. Threads: any. Idempotence: yes. Order: before send and subscribe.
        Errors: QueueMissing (verify), NotSupported (an option that the queue cannot have), TransportError.
        """
        ...

    def send(self, batch: Sequence[Outbound]) -> Sequence[SendFailure]:
        """Hand messages to the broker; return when each is accepted at the declared durability, or is listed as failed.

        Any length: the implementation splits by its own batch limit. Messages of one queue and priority are stored in
        the order given. An unknown queue is created where the server lets clients create queues.

        Blocking: one round trip per batch limit. Threads: any. Idempotence: no; the same id may be sent again after
        ``maybe_sent`` and then may be there twice. Order: kept. Errors: TransportError: nothing of the batch was sent.
        """
        ...

    def consumer(self) -> Consumer:
        """Return a new consumer with its own lease.

        Blocking: a round trip. Threads: any. Idempotence: no. Order: after open. Errors: TransportError.
        """
        ...


class Committer(Protocol):
    """Ends deliveries with their records and follow-ups in one atomic step each."""

    def commit(self, commits: Sequence[Commit]) -> Sequence[Lost]:
        """For each: store the record, send the follow-ups, settle; all or nothing, and nothing for a lost receipt.

        Blocking: one round trip per batch limit. Threads: settling. Idempotence: yes. Order: free.
        Errors: TransportError or StoreError: nothing is known of the batch, repeat it.
        """
        ...


@runtime_checkable
class SupportsFuse(Protocol):
    """A consumer whose server can also be the result store."""

    def fuse(self, store: ResultStore) -> Committer | None:
        """Return a committer where ``store`` lives on this consumer's server and database, else None.

        The two plugins meet in their shared ``taskq-lib-…`` distribution. Blocking: no. Threads: any.
        Idempotence: yes. Order: after open of both. Errors: none.
        """
        ...


@runtime_checkable
class SupportsStats(Protocol):
    """A transport that can count."""

    def stats(self, queues: Sequence[str]) -> Mapping[str, QueueStats]:
        """Return counts per queue; a queue that does not exist is left out.

        Blocking: a round trip. Threads: any. Idempotence: yes. Order: free. Errors: TransportError.
        """
        ...


@runtime_checkable
class SupportsPurge(Protocol):
    """A transport that can empty a queue."""

    def purge(self, queues: Sequence[str]) -> Mapping[str, int]:
        """Remove what is ready or delayed (not what is in flight); return how many messages per queue.

        Blocking: round trips. Threads: any. Idempotence: yes. Order: free. Errors: TransportError.
        """
        ...


@runtime_checkable
class SupportsPeek(Protocol):
    """A transport that can look at messages without taking them."""

    def peek(self, queue: str, *, limit: int = 100, after: str | None = None) -> Sequence[Peeked]:
        """Return messages of a queue in delivery order, starting after a cursor; no count or lease changes.

        Blocking: a round trip. Threads: any. Idempotence: yes. Order: free. Errors: TransportError.
        """
        ...


@runtime_checkable
class SupportsTransactionalSend(Protocol):
    """A transport that can write a message inside the caller's own database transaction."""

    def send_in(self, connection: Any, batch: Sequence[Outbound]) -> None:
        """Write the batch through ``connection``; it is sent if and when the caller commits.

        Blocking: a round trip. Threads: the connection's. Idempotence: no. Order: kept.
        Errors: NotSupported (a connection of another kind or database), TransportError.
        """
        ...


@runtime_checkable
class SupportsMaintenance(Protocol):
    """A transport with work that some worker must do from time to time."""

    def maintain(self, budget_s: float) -> float:
        """Reap dead consumers' messages, promote delayed ones, sweep what expired; return seconds until due again.

        Safe to run in every worker at once. Blocking: about ``budget_s``. Threads: any. Idempotence: yes. Order: free.
        Errors: TransportError.
        """
        ...


@runtime_checkable
class SupportsBroadcast(Protocol):
    """A transport that can hand one message to every consumer that listens."""

    def broadcast(self, channel: str, payload: bytes) -> None:
        """Send to whoever listens now; nothing is kept for others.

        Blocking: a round trip. Threads: any. Idempotence: no. Order: kept per sender. Errors: TransportError.
        """
        ...

    def listen(self, channel: str, wait: float) -> Sequence[bytes]:
        """Return what was broadcast since the last call of this process, waiting up to ``wait`` seconds for one.

        Blocking: up to ``wait``. Threads: one. Idempotence: no. Order: kept per sender. Errors: TransportError.
        """
        ...


__all__ = [
    "Commit", "Committer", "Consumer", "DeclareMode", "Delivery", "Fetched", "Lost", "Outbound", "Peeked", "QueueFacts",
    "QueueSpec", "QueueStats", "Receipt", "SendFailure", "Settlement", "SubscribeOrder", "Subscription",
    "SupportsBroadcast", "SupportsFuse", "SupportsMaintenance", "SupportsPeek", "SupportsPurge", "SupportsStats",
    "SupportsTransactionalSend", "Transport",
]  # fmt: skip
