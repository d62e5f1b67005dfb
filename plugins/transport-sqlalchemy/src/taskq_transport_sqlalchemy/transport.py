"""The SQL transport."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec

from taskq.errors import NotSupported, QueueMissing, TaskQError, TransportClosed
from taskq.message import Outbound, Peeked, QueueFacts, QueueSpec, QueueStats, SendFailure
from taskq.spi import Capabilities, DeclareMode, Durability, TransportConfig, WakeUp
from taskq_lib_sqlalchemy.database import Database, commit_unknown, single_statement, transaction
from taskq_lib_sqlalchemy.errors import TRANSPORT_ERRORS
from taskq_lib_sqlalchemy.local import Neighbours, neighbours
from taskq_lib_sqlalchemy.schema import MESSAGES
from taskq_lib_sqlalchemy.strategy import Strategy, open_tables
from taskq_transport_sqlalchemy import inspection, sending
from taskq_transport_sqlalchemy.consumer import SqlConsumer
from taskq_transport_sqlalchemy.options import SqlTransportOptions, capabilities

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

_BATCH_ROWS = 1000
_BATCH_BYTES = 16_000_000
_MAINTAIN_LONGEST = 1.0


class SqlTransport:
    """Queues in the tables of one database."""

    def __init__(self, config: TransportConfig) -> None:
        self._config = config
        self.options: SqlTransportOptions = config.options
        self.database = Database(config.urls, config.options, errors=TRANSPORT_ERRORS, clock=config.clock)
        self._capabilities = self._before_open()
        self._lease_s = config.lease_s if config.lease_s is not None else self._capabilities.lease_default_s
        self._strategy: Strategy | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._known: set[str] = set()
        self._consumers: set[SqlConsumer] = set()
        self.instance = 0
        self.neighbours = Neighbours()

    def _before_open(self) -> Capabilities:
        widest = capabilities(self.options)
        dialect = self.database.dialect
        pushed = dialect == "postgresql" and self.options.listen
        return msgspec.structs.replace(
            widest, network=dialect != "sqlite", wake_up=WakeUp.PUSH if pushed else WakeUp.POLL,
            durability=Durability.DISK,
        )  # fmt: skip

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    # ------------------------------------------------------------------------------------------------ open and close

    def open(self) -> None:
        with self._lock:
            if self._strategy is not None and not self._closed:
                return
            strategy, self.instance = open_tables(self.database, MESSAGES)

            def look(connection: Connection) -> tuple[Durability, str | None, int]:
                return *strategy.durability(connection), strategy.max_payload(connection)

            durability, note, max_payload = self.database.run(look, "looking at the server")
            notes = (*self._before_open().notes, note) if note else self._before_open().notes
            self._capabilities = msgspec.structs.replace(
                self._before_open(), durability=durability, max_payload_bytes=max_payload, notes=notes
            )
            self.neighbours = neighbours(self.instance)
            self._strategy = strategy
            self._closed = False

    def close(self, *, timeout: float = 5.0) -> None:
        if self._closed or self.database.inherited:
            return
        for consumer in list(self._consumers):
            consumer.close()
        self._closed = True
        self.database.close()

    @property
    def strategy(self) -> Strategy:
        """The dialect's statements.

        Raises:
            TransportClosed: not open.
        """
        if self._strategy is None or self._closed:
            raise TransportClosed(f"the transport for {self.database.where} was used before open() or after close()")
        return self._strategy

    @property
    def pushed(self) -> bool:
        """Whether consumers are woken by notifications."""
        return self._capabilities.wake_up is WakeUp.PUSH

    def channel(self, queue: str) -> str:
        """Return the notification channel of a queue."""
        return self.strategy.channel(queue)

    # ------------------------------------------------------------------------------------------------------- queues

    def declare(self, queues: Sequence[QueueSpec], *, mode: DeclareMode = "create") -> Mapping[str, QueueFacts]:
        strategy = self.strategy
        for spec in queues:
            if spec.options:
                raise NotSupported(
                    f"queue {spec.name}: SQL queues have no options, got {', '.join(sorted(spec.options))}"
                )
            if spec.ordered:
                raise NotSupported(
                    f"queue {spec.name}: SQL queues keep no order per group; use a transport whose ordering is group"
                )
        names = [spec.name for spec in queues]
        if mode == "none" or not names:
            return {name: QueueFacts() for name in names}
        if mode == "verify":
            known = self.database.run(lambda c: strategy.known_queues(c, names), "looking for queues")
            if missing := sorted(set(names) - known):
                raise QueueMissing(
                    f"{self.database.current.text} has no queue {', '.join(missing)}; "
                    "declare with mode='create', or send a message to make it"
                )
            return {name: QueueFacts() for name in names}
        added = self.database.run(lambda c: strategy.add_queues(c, names), "declaring queues")
        self._known.update(names)
        return {name: QueueFacts(created=name in added) for name in names}

    def know(self, queues: Iterable[str]) -> None:
        """Make sure that queues are in the queues' table."""
        new = set(queues) - self._known
        if new:
            strategy = self.strategy
            self.database.run(lambda c: strategy.add_queues(c, new), "declaring queues")
            self._known |= new

    # ------------------------------------------------------------------------------------------------------ sending

    def send(self, batch: Sequence[Outbound]) -> Sequence[SendFailure]:
        strategy = self.strategy
        limit = self._capabilities.max_payload_bytes or 0
        failures = [
            SendFailure(i, f"{len(out.payload)} bytes of payload; the server takes {limit}", retryable=False)
            for i, out in enumerate(batch)
            if len(out.payload) > limit
        ]
        if failures:
            refused = {failure.index for failure in failures}
            indexes = [i for i in range(len(batch)) if i not in refused]
            batch = [batch[i] for i in indexes]
        if not batch:
            return failures
        queues = {out.queue for out in batch}
        self.know(queues)
        chunks = list(_chunks(batch))

        def work(connection: Connection) -> bool:
            if len(chunks) == 1 and (strategy.pushes or len(batch) == 1):
                with single_statement():
                    waiting = strategy.insert(connection, batch)
            else:
                with transaction(connection):
                    for chunk in chunks:
                        waiting = strategy.insert(connection, chunk)
            if waiting:
                try:
                    strategy.tell(connection, queues)
                except Exception:  # the messages are sent; who waits looks by himself now and then
                    connection.invalidate()
            return waiting

        try:
            self.database.run(work, "sending messages")
        except TaskQError as error:
            if not commit_unknown(error):
                raise
            return [
                *failures,
                *(SendFailure(indexes[i] if failures else i, str(error), maybe_sent=True) for i in range(len(batch))),
            ]
        self.neighbours.sent(queues)
        return failures

    def send_in(self, connection: Any, batch: Sequence[Outbound]) -> None:
        sending.send_in(self.strategy, self.instance, connection, batch)

    # ---------------------------------------------------------------------------------------------------- consuming

    def consumer(self) -> SqlConsumer:
        self.strategy  # noqa: B018  raises
        consumer = SqlConsumer(self, self._lease_s)
        self._consumers.add(consumer)
        return consumer

    def forget(self, consumer: SqlConsumer) -> None:
        """Drop a consumer that has been closed."""
        self._consumers.discard(consumer)
        self.neighbours.drop_consumer(consumer)

    def maintain(self, budget_s: float) -> float:
        strategy = self.strategy
        end = monotonic() + budget_s

        def work(connection: Connection) -> float:
            probe = strategy.probe(connection, 0, ())
            if probe.expiry_in is not None and probe.expiry_in <= 0:
                strategy.reap(connection)
            more = probe.due_in is not None and probe.due_in <= 0
            while more and strategy.promote(connection) and monotonic() < end:
                pass
            waits = [wait for wait in (probe.due_in, probe.expiry_in) if wait is not None]
            return max(0.01, min([*waits, _MAINTAIN_LONGEST]))

        return self.database.run(work, "keeping house")

    # ---------------------------------------------------------------------------------------------------- abilities

    def stats(self, queues: Sequence[str]) -> Mapping[str, QueueStats]:
        strategy = self.strategy
        if not queues:
            return {}
        return self.database.run(lambda c: inspection.stats(c, strategy, queues), "counting messages")

    def purge(self, queues: Sequence[str]) -> Mapping[str, int]:
        strategy = self.strategy
        counts: dict[str, int] = {}
        for queue in queues:
            counts[queue] = 0
            some = partial(strategy.purge_some, queue=queue)
            while removed := self.database.run(some, "purging a queue"):
                counts[queue] += removed
        return counts

    def peek(self, queue: str, *, limit: int = 100, after: str | None = None) -> Sequence[Peeked]:
        strategy = self.strategy
        return self.database.run(lambda c: inspection.peek(c, strategy, queue, limit, after), "peeking")


def _chunks(batch: Sequence[Outbound]) -> Iterator[Sequence[Outbound]]:
    """Split a batch so that no statement has too many rows or bytes."""
    start = size = 0
    for i, out in enumerate(batch):
        if i > start and (i - start == _BATCH_ROWS or size + len(out.payload) > _BATCH_BYTES):
            yield batch[start:i]
            start, size = i, 0
        size += len(out.payload)
    yield batch[start:]
