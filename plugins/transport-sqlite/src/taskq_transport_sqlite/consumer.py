"""A consumer of the SQLite transport: what it holds under its lease, and the one-step commit with the SQLite store."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from taskq.errors import TransportClosed
from taskq.message import Delivery, Fetched, Lost, Record, Settlement
from taskq_lib_sqlite import (
    Database,
    Kind,
    Nudge,
    SqliteResults,
    Trouble,
    as_bytes,
    push_records,
    put_records,
    transport_errors,
    wait_readable,
)
from taskq_transport_sqlite import tables
from taskq_transport_sqlite.settling import Held, Mismatch, SqliteCommitter, settle
from taskq_transport_sqlite.shares import Shares

if TYPE_CHECKING:
    from taskq.spi import Commit, Committer, Receipt, ResultStore, SubscribeOrder, Subscription
    from taskq_transport_sqlite.transport import SqliteTransport

log = logging.getLogger("taskq.sqlite")

_FETCH_AT_ONCE = 1000
_UNLIMITED = 1 << 62
_NOTHING = Fetched()
_LOOK_AFTER_S = 1.0  # seconds between two looks for dead consumers while idle

_CLAIM = (
    "SELECT r.seq, ifnull(r.deliveries, 0) + 1, m.payload, m.grp, r.rank FROM taskq_ready r LEFT "
    "JOIN taskq_message m ON m.seq = r.seq "
    "WHERE r.queue = ? ORDER BY r.rank, r.seq LIMIT ?"
)
_HOLD = (
    "INSERT INTO taskq_held (consumer, seq, queue, rank, deliveries) "
    "SELECT ?, seq, queue, rank, deliveries + 1 FROM taskq_ready WHERE queue = ? AND (rank, seq) <= (?, ?)"
)
_UNREADY = "DELETE FROM taskq_ready WHERE queue = ? AND (rank, seq) <= (?, ?)"
# The queues that have something ready: one look at the index per queue, however long the queues are.
_WAITING = """
WITH RECURSIVE waiting (queue) AS (
    SELECT min(queue) FROM taskq_ready
    UNION ALL SELECT (SELECT min(queue) FROM taskq_ready WHERE queue > waiting.queue) FROM waiting WHERE queue IS NOT
    NULL
) SELECT queue FROM waiting WHERE queue IS NOT NULL
"""


class SqliteConsumer:
    """Holds messages under one lease, which ``extend`` keeps.

    A receipt is a number that this object gives out once: a message that it released and fetched again has another one.
    Together with the consumer's number in the row, which is never given twice, that fences exactly.
    """

    def __init__(self, transport: SqliteTransport, database: Database) -> None:
        self.transport = transport
        self._database = database
        self._pid = os.getpid()
        self._closed = False
        self._nudge = Nudge()
        self._bell = database.bells.hang("c") if transport.options.wake_up == "bell" else None
        self._ears = [self._nudge.reader] + ([self._bell.socket] if self._bell else [])
        self._subscriptions: Sequence[Subscription] = ()
        self._order: SubscribeOrder = "fair"
        self._names: dict[int, str] = {}
        self._shares = Shares((), "fair")
        self._work = ""
        self._credit = self._max_bytes = _UNLIMITED
        self._held: dict[int, Held] = {}
        self._held_bytes = 0
        self._bytes_lock = threading.Lock()
        self._receipts = count(1)
        self._losses: deque[Lost] = deque()
        self._hot = True
        self._unsynced = False
        self._woken = False
        self._starved = False
        self._on_board = False
        self._new = False
        self._next_due: float | None = None
        self._busy_since: float | None = None
        self._looked_after = time.monotonic()
        self.number = 0
        self._slot: int | None = None
        self._file_id = ""
        with transport.moving as connection:
            self._register(connection)
        self._entered()

    def _register(self, connection: sqlite3.Connection) -> None:
        """Enter this consumer under a new number, and its subscriptions, into whatever file is there now.

        It counts when the transaction is committed and ``_entered`` was called; until then the next one does it again.
        """
        self._file_id = ""
        self._resolve(connection)
        until, until_wall = self.transport.leases.end(self.transport.lease_s)
        taken = {row[0] for row in connection.execute("SELECT slot FROM taskq_consumer")}
        self._slot = next(slot for slot in count() if slot not in taken) if self._bell else None
        number = connection.execute(
            "INSERT INTO taskq_consumer (boot, until, until_wall, bell, slot, queues, process) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                self.transport.leases.boot,
                until,
                until_wall,
                self._bell.address if self._bell else None,
                self._slot,
                ",".join(map(str, self._names)),
                str(self._pid),
            ),
        ).lastrowid
        self.number = number or 0
        self._new = True

    def _entered(self) -> None:
        """Take note, after the commit, that a registration made in the transaction is there, and tell the others."""
        if self._new:
            self._new = False
            self._file_id = self._database.file_id
            self.transport.ringer.announce()

    # ----------------------------------------------------------------------------------------------------- intake

    @transport_errors
    def subscribe(self, queues: Sequence[Subscription], *, order: SubscribeOrder = "fair") -> None:
        self.check()
        with self.transport.moving as connection:
            # First by itself: a number that is known here must not be undone with what comes after.
            for subscription in queues:
                tables.find_queue(connection, subscription.queue)
        self._subscriptions, self._order = tuple(queues), order
        with self.transport.moving as connection:
            if self._registered(connection):
                self._resolve(connection)
                connection.execute(
                    "UPDATE taskq_consumer SET queues = ? WHERE number = ?",
                    (",".join(map(str, self._names)), self.number),
                )
        self._entered()
        self.transport.ringer.announce()

    def _resolve(self, connection: sqlite3.Connection) -> None:
        """Learn the numbers of the queues to fetch from."""
        subscriptions = {tables.find_queue(connection, s.queue): s for s in self._subscriptions}
        self._names = {number: s.queue for number, s in subscriptions.items()}
        self._shares = Shares([(number, s.weight) for number, s in subscriptions.items()], self._order)
        listed = ", ".join(map(str, subscriptions))
        self._work = (
            f"SELECT EXISTS (SELECT 1 FROM taskq_ready WHERE queue IN ({listed})), "  # noqa: S608  numbers
            "(SELECT min(due) FROM taskq_delayed)"
        )
        self._hot = True

    def _registered(self, connection: sqlite3.Connection) -> bool:
        """Make sure, inside a transaction, that this consumer is entered; False where it was not, and has lost all."""
        if self._file_id == self._database.file_id:
            statement = "SELECT 1 FROM taskq_consumer WHERE number = ?"
            if connection.execute(statement, (self.number,)).fetchone() is not None:
                return True
        # Somebody took this consumer for dead, or put another file in place of ours.
        held = list(self._held)
        self._losses.extend(Lost(receipt, "the lease ended and the message was given back") for receipt in held)
        self._forget(held)
        if held:
            log.warning("the lease on %d messages of %s ended: not renewed in time", len(held), self._database.path)
        self._register(connection)
        return False

    @transport_errors
    def credit(self, n: int, max_bytes: int) -> None:
        self.check()
        self._credit = n
        self._max_bytes = max_bytes
        self._nudge.ring()

    @transport_errors
    def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
        self.check()
        end = time.monotonic() + wait
        waiting = False
        while True:
            room = min(limit, self._credit - len(self._held), _FETCH_AT_ONCE)
            if room > 0 and self._held and self._held_bytes >= self._max_bytes:
                room = 0
            self._starved = room <= 0
            if waiting and (room > 0 or self._on_board):
                # On the board before the look: a message that comes after it rings, one that came before is seen.
                self._set_waiting(room > 0)
            if room > 0 and self._names and (self._hot or self._work_waits()):
                deliveries = self._try_claim(room)
                if deliveries:
                    return Fetched(deliveries, self._take_losses())
                self._hot = False
            left = end - time.monotonic()
            if self._woken or self._losses or left <= 0:
                self._woken = self._starved = False
                return Fetched((), self._take_losses()) if self._losses else _NOTHING
            if waiting:
                self._sleep(left)
            waiting = True

    def _work_waits(self) -> bool:
        """Look, without a transaction, whether a claim would bring something; note when something will be due."""
        ready, due = self._database.read(self._work)[0]
        self._next_due = due
        return bool(ready) or (due is not None and due <= self.transport.clock.now())

    def _sleep(self, left: float) -> None:
        pause = min(left, self.transport.options.poll_interval)
        if self._next_due is not None:
            pause = min(pause, max(0.0, self._next_due - self.transport.clock.now()))
        wait_readable(self._ears, pause)
        self._nudge.drain()
        if self._bell is not None and self._bell.drain():
            self._hot = True
        now = time.monotonic()
        if now - self._looked_after >= min(_LOOK_AFTER_S, self.transport.lease_s / 4):
            self._looked_after = now
            self._database.check_file()
            try:
                self.transport.look_after(self.transport.claiming)
            except Trouble as trouble:
                if trouble.kind is not Kind.BUSY:
                    raise
            if self._bell is not None and not self._bell.in_place():
                self._rehang()

    def _try_claim(self, room: int) -> list[Delivery]:
        """Claim, unless somebody else writes for long just now: a fetch must come back in time."""
        try:
            deliveries = self._claim(room)
        except Trouble as trouble:
            now = time.monotonic()
            if trouble.kind is not Kind.BUSY or now - (self._busy_since or now) > self.transport.options.busy_timeout:
                raise
            self._busy_since = self._busy_since or now
            return []
        self._busy_since = None
        return deliveries

    def _claim(self, room: int) -> list[Delivery]:
        transport = self.transport
        promoted: Mapping[int, int] = {}
        with transport.claiming as connection:
            self._registered(connection)
            now = transport.clock.now()
            due = connection.execute("SELECT min(due) FROM taskq_delayed").fetchone()[0]
            if due is not None and due <= now:
                promoted = tables.promote(connection, now)
            self._next_due = due
            free = self._max_bytes - self._held_bytes
            one = not self._held  # however large
            claimed: list[tuple[Delivery, Held]] = []

            def claim(queue: int, limit: int) -> list[tuple[Delivery, Held]]:
                nonlocal free, one
                name = self._names[queue]
                taken = []
                row = None
                cursor = connection.execute(_CLAIM, (queue, limit))
                for seq, deliveries, payload, group, rank in cursor:
                    if payload.__class__ is not bytes:
                        payload = self._mend(payload, seq, name)
                    size = len(payload)
                    free -= size
                    if free < 0 and not one:
                        free = -1
                        break
                    one = False
                    row = rank, seq
                    taken.append((Delivery(payload, 0, name, deliveries, group), Held(seq, queue, size, group)))
                cursor.close()
                if row is not None:
                    connection.execute(_HOLD, (self.number, queue, *row))
                    connection.execute(_UNREADY, (queue, *row))
                return taken

            numbers = self._shares.numbers
            if len(numbers) == 1:
                claimed = claim(numbers[0], room)
            else:
                waiting = {row[0] for row in connection.execute(_WAITING).fetchall()}.intersection(numbers)
                if waiting:
                    claimed = self._shares.take(room, waiting, claim)
        self._entered()
        if promoted:
            transport.ringer.ring({q: n for q, n in promoted.items() if q not in self._names})
        if not claimed:
            return []
        deliveries = []
        size = 0
        held = self._held
        for delivery, entry in claimed:
            delivery.receipt = receipt = next(self._receipts)
            held[receipt] = entry
            size += entry.size
            deliveries.append(delivery)
        with self._bytes_lock:
            self._held_bytes += size
        self._hot = True
        if self._on_board:
            self._set_waiting(False)
        if len(claimed) >= room:
            self._pass_on()
        return deliveries

    def _mend(self, payload: Any, seq: int, name: str) -> bytes:
        """Make a payload of what stands in a damaged row; the kernel will find it undecodable and dead-letter it."""
        log.error(
            "message %d of queue %s in %s has no readable payload (a value of type %s); it is delivered as it is",
            seq, name, self._database.path, type(payload).__name__,
        )  # fmt: skip
        return as_bytes(payload)

    def _pass_on(self) -> None:
        """Where this consumer has all it may take and there is more, wake another one."""
        if self.transport.ringer.anyone(self._names):
            waiting = {row[0] for row in self._database.read(_WAITING)}
            self.transport.ringer.ring(dict.fromkeys(waiting.intersection(self._names), 1))

    def _set_waiting(self, waiting: bool) -> None:
        if self._bell is not None:
            self._database.bells.set_waiting(self._slot, waiting)
            self._on_board = waiting

    def _rehang(self) -> None:
        """Make a new bell in place of one that somebody removed."""
        old = self._bell
        self._bell = self._database.bells.hang("c")
        self._ears = [self._nudge.reader] + ([self._bell.socket] if self._bell else [])
        with self.transport.moving as connection:
            if self._registered(connection):
                connection.execute(
                    "UPDATE taskq_consumer SET bell = ? WHERE number = ?",
                    (self._bell.address if self._bell else None, self.number),
                )
        self._entered()
        if old is not None:
            self._database.bells.take_down(old)
        self.transport.ringer.announce()

    # --------------------------------------------------------------------------------------------------- settling

    @transport_errors
    def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
        self.check()
        if not settlements:
            return self._take_losses()
        return self.end(settlements)

    def end(self, settlements: Sequence[Settlement], commits: Sequence[Commit] = ()) -> list[Lost]:
        """Settle, with what belongs to each settlement, in one transaction.

        It does not wait for the disk: a power loss may undo the last ones whole, acknowledgement, record and follow-ups
        together, so that the message is there again and its task runs again. ``flush`` does wait.
        """
        transport = self.transport
        self._unsynced = True
        one_by_one = False
        while True:
            records: list[Record] = []
            now = transport.clock.now()
            try:
                with transport.moving as connection:
                    if self._file_id != self._database.file_id:
                        self._registered(connection)  # nothing of the old file may be settled in the new one
                    done = settle(connection, self.number, self._held, settlements, now, one_by_one=one_by_one)
                    if commits:
                        gone = {loss.receipt for loss in done.lost}
                        kept = [c for c in commits if c.settlement.receipt not in gone] if gone else commits
                        if records := [c.record for c in kept if c.record is not None]:
                            put_records(connection, records, now)
                        if follow_ups := [o for c in kept for o in c.follow_ups]:
                            for queue, n in transport.insert(connection, follow_ups).items():
                                done.ready[queue] = done.ready.get(queue, 0) + n
                break
            except Mismatch:
                one_by_one = True
        self._entered()
        self._forget([s.receipt for s in settlements])
        if done.ready:
            transport.ringer.ring(done.ready)
        if records:
            push_records(self._database.bells, records)
        if self._starved:
            self._nudge.ring()
        return done.lost + self._take_losses() if self._losses else done.lost

    def _forget(self, receipts: Sequence[Any]) -> None:
        size = 0
        pop = self._held.pop
        for receipt in receipts:
            entry = pop(receipt, None)
            if entry is not None:
                size += entry.size
        with self._bytes_lock:
            self._held_bytes -= size

    def _take_losses(self) -> list[Lost]:
        losses: list[Lost] = []
        while self._losses:
            losses.append(self._losses.popleft())
        return losses

    @transport_errors
    def flush(self, timeout: float) -> Sequence[Lost]:
        self.check()
        if self._unsynced:
            self._unsynced = False
            with self.transport.committing as connection:  # waits for the disk, and so for all that came before
                connection.execute("UPDATE taskq_consumer SET until = until WHERE number = ?", (self.number,))
        return self._take_losses()

    @transport_errors
    def extend(self, receipts: Sequence[Receipt] | None = None) -> Sequence[Lost]:
        self.check()
        until, until_wall = self.transport.leases.end(self.transport.lease_s)
        with self.transport.moving as connection:
            if self._registered(connection):
                connection.execute(
                    "UPDATE taskq_consumer SET until = ?, until_wall = ? WHERE number = ?",
                    (until, until_wall, self.number),
                )
        self._entered()
        return self._take_losses()

    def fuse(self, store: ResultStore) -> Committer | None:
        if isinstance(store, SqliteResults) and store.results_database is self._database:
            return SqliteCommitter(self, store)
        return None

    # --------------------------------------------------------------------------------------------------- anywhere

    def wake(self) -> None:
        self._woken = True
        self._nudge.ring()

    def close(self) -> None:
        if self._closed or self._pid != os.getpid():
            return
        self._closed = True
        try:
            with self.transport.moving as connection:
                mine = self._file_id == self._database.file_id
                counts = tables.give_back(connection, self.number, counted=False) if mine else {}
            self._set_waiting(False)
            self.transport.ringer.announce()
            # What this consumer was rung for, and has not looked at, is for the others as well.
            waiting = {row[0] for row in self._database.read(_WAITING)}
            self.transport.ringer.ring({**dict.fromkeys(waiting.intersection(self._names), 1), **counts})
        except Trouble as trouble:
            log.warning("closing a consumer of %s: %s; its lease gives back what it held", self._database.path, trouble)
        finally:
            self._held.clear()
            if self._bell is not None:
                self._database.bells.take_down(self._bell)
            self._nudge.close()
            self.transport.forget(self)

    def check(self) -> None:
        """Refuse to work where closed, or inherited from a parent process. Raises: TransportClosed."""
        if self._closed:
            raise TransportClosed(
                f"this consumer of {self._database.path} is closed; make a new one with Transport.consumer()"
            )
        if self._pid != os.getpid():
            raise TransportClosed(
                f"this consumer of {self._database.path} belongs to process {self._pid}; make a new one in process "
                f"{os.getpid()} with Transport.consumer()"
            )
