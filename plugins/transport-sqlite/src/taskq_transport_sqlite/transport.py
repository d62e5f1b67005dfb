"""The SQLite transport: everything that is not a consumer's."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from taskq.errors import NotSupported, PayloadTooLarge, QueueMissing
from taskq.message import Outbound, Peeked, QueueFacts, QueueSpec, QueueStats, SendFailure
from taskq.spi import Capabilities, Ordering
from taskq_lib_sqlite import (
    Database,
    Kind,
    Transaction,
    Trouble,
    close_database,
    explain,
    file_for,
    open_database,
    transport_errors,
)
from taskq_transport_sqlite import listing, tables
from taskq_transport_sqlite.consumer import SqliteConsumer
from taskq_transport_sqlite.leases import CONSUMERS, LeaseClock, reap
from taskq_transport_sqlite.line import Line
from taskq_transport_sqlite.options import LEASE_DEFAULT_S, MAX_PAYLOAD_BYTES, SqliteOptions, capabilities
from taskq_transport_sqlite.ringing import Ringer

if TYPE_CHECKING:
    from taskq.spi import DeclareMode, TransportConfig

_SEND_AT_ONCE = 10_000  # messages per transaction: others must be able to write between two
_PURGE_AT_ONCE = 5_000
_CLAIM_PATIENCE_S = 0.1
_LAST_CHANCE_S = 0.05


class SqliteTransport:
    """Queues in one SQLite file."""

    def __init__(self, config: TransportConfig) -> None:
        self.options = config.options if isinstance(config.options, SqliteOptions) else SqliteOptions()
        self.path = file_for(config.urls, config.app)
        self.clock = config.clock
        self.leases = LeaseClock(config.clock)
        self.lease_s = config.lease_s if config.lease_s is not None else LEASE_DEFAULT_S
        self._capabilities = capabilities(self.options)
        self._plain = msgspec.structs.replace(self._capabilities, ordering=Ordering.QUEUE)
        self._database: Database | None = None
        self._line = Line()
        self._consumers: dict[SqliteConsumer, None] = {}

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def database(self) -> Database:
        """The open file. Raises: Trouble: not open."""
        if self._database is None:
            raise Trouble(Kind.CLOSED, f"the transport of {self.path} was used before open() or after close()")
        self._database.check_process()
        return self._database

    @transport_errors
    def open(self) -> None:
        if self._database is not None:
            return
        database = open_database(self.path)
        options = self.options
        patience = options.busy_timeout
        durable = options.synchronous == "FULL"
        self._sending = database.transaction(durable=durable, patience=patience, max_size=options.max_size)
        # A claim or an acknowledgement that a power loss undoes is a redelivery: not worth waiting for the disk.
        self.moving = database.transaction(durable=False, patience=patience)
        self.claiming = database.transaction(durable=False, patience=min(patience, _CLAIM_PATIENCE_S))
        self.committing = database.transaction(durable=durable, patience=patience)
        self.ringer = Ringer(database, enabled=options.wake_up == "bell")
        self._database = database

    def close(self, *, timeout: float = 5.0) -> None:
        database = self._database
        if database is None:
            return
        for consumer in list(self._consumers):
            consumer.close()
        self._database = None
        close_database(database)

    # --------------------------------------------------------------------------------------------------- queues

    @transport_errors
    def declare(self, queues: Sequence[QueueSpec], *, mode: DeclareMode = "create") -> Mapping[str, QueueFacts]:
        database = self.database
        for spec in queues:
            if spec.options:
                raise NotSupported(
                    f"queue {spec.name}: sqlite has no queue options, got {', '.join(sorted(spec.options))}"
                )
        known = {name: bool(ordered) for name, ordered in database.read("SELECT name, ordered FROM taskq_queue")}
        if mode == "verify" and (missing := [q.name for q in queues if q.name not in known]):
            raise QueueMissing(
                f"{self.path} has no queue {', '.join(missing)}; declare with mode='create', or send "
                "a message to make it"
            )
        created = set()
        if mode == "create" and any(q.name not in known or (q.ordered and not known[q.name]) for q in queues):
            with self.committing as connection:
                for spec in queues:
                    if spec.name not in known:
                        connection.execute("INSERT OR IGNORE INTO taskq_queue (name) VALUES (?)", (spec.name,))
                        created.add(spec.name)
                    if spec.ordered and not known.get(spec.name):
                        self._make_ordered(connection, spec.name)
                    known[spec.name] = spec.ordered or known.get(spec.name, False)
        elif mode != "none" and (plain := [q.name for q in queues if q.ordered and not known[q.name]]):
            raise NotSupported(f"{self.path}: queue {', '.join(plain)} is not ordered; declare it with mode='create'")
        return {
            q.name: QueueFacts(
                created=q.name in created,
                capabilities=self._capabilities if known.get(q.name, q.ordered) else self._plain,
            )
            for q in queues
        }

    def _make_ordered(self, connection: sqlite3.Connection, name: str) -> None:
        number = tables.find_queue(connection, name)
        for table in ("ready", "delayed", "held"):
            if connection.execute(f"SELECT 1 FROM taskq_{table} WHERE queue = ? LIMIT 1", (number,)).fetchone():  # noqa: S608
                raise NotSupported(
                    f"{self.path}: queue {name} holds messages and is not ordered; empty it to make it so"
                )
        connection.execute("UPDATE taskq_queue SET ordered = 1 WHERE number = ?", (number,))

    # ------------------------------------------------------------------------------------------------------ send

    @transport_errors
    def send(self, batch: Sequence[Outbound]) -> Sequence[SendFailure]:
        self.check(batch)
        if len(batch) <= _SEND_AT_ONCE:
            self._send(batch)
            return ()
        for start in range(0, len(batch), _SEND_AT_ONCE):
            try:
                self._send(batch[start : start + _SEND_AT_ONCE])
            except Trouble as trouble:
                if start == 0:
                    raise
                error = trouble.typed(store=False)
                return [SendFailure(i, str(error), retryable=error.retryable) for i in range(start, len(batch))]
        return ()

    def _send(self, batch: Sequence[Outbound]) -> None:
        """Write a batch, together with what other threads want to send at this moment: the disk is waited for once."""
        if not batch:
            return
        self.database  # noqa: B018  raises
        self._line.pass_through(batch, self._write)

    def _write(self, batch: Sequence[Outbound]) -> None:
        with self._sending as connection:
            counts = self.insert(connection, batch)
        self.ringer.ring(counts)

    def insert(self, connection: sqlite3.Connection, batch: Sequence[Outbound]) -> Mapping[int, int]:
        """Write messages inside a transaction of this process; return how many per queue number."""
        known, new = self.database.queues, self.database.new_queues

        def number_of(name: str) -> int:
            if name in known:
                return known[name]
            if name not in new:
                new[name] = tables.find_queue(connection, name)
            return new[name]

        return tables.insert(connection, batch, self.clock.now(), number_of)

    def check(self, batch: Sequence[Outbound]) -> None:
        """Refuse what cannot be sent, before anything is. Raises: NotSupported, PayloadTooLarge."""
        for o in batch:
            if len(o.payload) > MAX_PAYLOAD_BYTES:
                raise PayloadTooLarge(
                    f"message {o.id} has {len(o.payload)} bytes, sqlite takes {MAX_PAYLOAD_BYTES}; "
                    "store the data elsewhere "
                    "and send where it is"
                )
            if o.priority not in _PRIORITIES:
                raise NotSupported(f"message {o.id} has priority {o.priority!r}; priorities are 0 to 9")
            if o.routing_key is not None:
                raise NotSupported(
                    f"message {o.id} has the routing key {o.routing_key!r}; sqlite delivers by queue name only"
                )

    @transport_errors
    def send_in(self, connection: Any, batch: Sequence[Outbound]) -> None:
        database = self.database
        if not isinstance(connection, sqlite3.Connection):
            raise NotSupported(
                f"send_in needs an sqlite3.Connection to {self.path}, got {type(connection).__module__}."
                f"{type(connection).__qualname__}"
            )
        self.check(batch)
        if not batch:
            return
        schema = _schema_of(connection, database.path)
        if not connection.in_transaction and _commits_by_itself(connection):
            raise NotSupported(
                f"the connection to {self.path} commits every statement by itself: execute BEGIN first, or leave "
                "isolation_level at its default, so that the messages go with your own changes"
            )
        try:
            tables.insert(
                connection, batch, self.clock.now(), lambda name: tables.find_queue(connection, name, schema), schema
            )
        except sqlite3.Error as exc:
            raise explain(exc, database.path) from exc

    # -------------------------------------------------------------------------------------------------- consumers

    @transport_errors
    def consumer(self) -> SqliteConsumer:
        consumer = SqliteConsumer(self, self.database)
        self._consumers[consumer] = None
        return consumer

    def forget(self, consumer: SqliteConsumer) -> None:
        """Drop a closed consumer."""
        self._consumers.pop(consumer, None)

    # -------------------------------------------------------------------------------------------------- abilities

    @transport_errors
    def stats(self, queues: Sequence[str]) -> Mapping[str, QueueStats]:
        with self.database.snapshot() as read:
            return listing.stats(read, queues, self.clock.now())

    @transport_errors
    def purge(self, queues: Sequence[str]) -> Mapping[str, int]:
        database = self.database
        removed = {}
        up_to = database.read("SELECT max(seq) FROM taskq_message")[0][0] or 0
        for name in queues:
            row = database.read("SELECT number FROM taskq_queue WHERE name = ?", (name,))
            if not row:
                continue
            removed[name] = 0
            while True:
                with self.committing as connection:
                    n = tables.purge(connection, row[0][0], up_to, _PURGE_AT_ONCE)
                removed[name] += n
                if n < _PURGE_AT_ONCE:
                    break
        return removed

    @transport_errors
    def peek(self, queue: str, *, limit: int = 100, after: str | None = None) -> Sequence[Peeked]:
        with self.database.snapshot() as read:
            return listing.peek(read, queue, limit, after, self.clock.now())

    @transport_errors
    def maintain(self, budget_s: float) -> float:
        database = self.database
        end = time.monotonic() + budget_s
        database.check_file()
        self.look_after(self.moving)
        database.bells.sweep()
        while True:
            due = database.read("SELECT min(due) FROM taskq_delayed")[0][0]
            if due is None or due > self.clock.now() or time.monotonic() >= end:
                break
            with self.moving as connection:
                counts = tables.promote(connection, self.clock.now())
            self.ringer.ring(counts)
        pause = self.lease_s / 4
        if due is not None:
            pause = min(pause, due - self.clock.now())
        return min(max(pause, 0.0), 5.0)

    def look_after(self, transaction: Transaction) -> None:
        """Give back what dead consumers held, where there is one. Cheap: it only reads while all live.

        Raises:
            Trouble: the file cannot be used.
        """
        database = self.database
        left = self.leases.left
        for _, boot, until, until_wall, bell in database.read(CONSUMERS):
            if database.bells.is_dead(bell):
                break
            if left(boot, until, until_wall) <= 0:
                # A long transaction of somebody else may have kept everybody from renewing: they come first.
                time.sleep(_LAST_CHANCE_S)
                break
        else:
            orphans = "SELECT 1 FROM taskq_held WHERE consumer NOT IN (SELECT number FROM taskq_consumer) LIMIT 1"
            if not database.read(orphans):
                return
        with transaction as connection:
            counts = reap(connection, self.leases, database.bells)
        self.ringer.announce()
        self.ringer.ring(counts)


_PRIORITIES = frozenset(range(10))


def _schema_of(connection: sqlite3.Connection, path: str) -> str:
    for _, name, file in connection.execute("PRAGMA database_list").fetchall():
        try:
            if file and os.path.samefile(file, path):
                return f'"{name}".'
        except OSError:
            continue
    files = [str(row[2]) or "memory" for row in connection.execute("PRAGMA database_list").fetchall()]
    raise NotSupported(
        f"send_in needs a connection to the broker's own file {path}, this one has {', '.join(files)} "
        "open: name the same "
        "file in the broker's URL, or ATTACH it"
    )


def _commits_by_itself(connection: sqlite3.Connection) -> bool:
    if getattr(connection, "autocommit", -1) in (True, False):  # Python 3.12
        return bool(getattr(connection, "autocommit", False))
    return connection.isolation_level is None
