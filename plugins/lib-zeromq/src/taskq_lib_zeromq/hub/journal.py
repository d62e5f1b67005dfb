"""The journal: what a hub must not forget, appended to a SQLite file before anybody is told.

One row holds all that one turn of the hub has changed, so that a commit, with its one sync, serves everyone who asked
meanwhile. Rows are grouped in segments. A segment none of whose entries matters any more is deleted once all before it
are; where one old entry keeps much of no use behind it, what still matters is written again at the end. So the file
stays in proportion to what the hub holds, and no pause grows with it.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from taskq.errors import ConfigError
from taskq_lib_zeromq.protocol import Message

if TYPE_CHECKING:
    from taskq_lib_zeromq.hub.broker import Broker
    from taskq_lib_zeromq.hub.results import Coordinator, Entry, Kept, Results

VERSION = 1
_APPLICATION = 0x7461736B
_SEGMENT_BYTES = 4 << 20
_SMALL = 16 << 20
"""Bytes up to which no room is won back."""
_LAZY_S = 1.0
"""How long may be unwritten what only spares work after a crash, such as who holds what."""
_SENT, _DELIVERED, _ENDED, _RELEASED, _LEFT, _SETTLED, _QUEUES, _ORDERED = range(1, 9)
_KEPT, _DROPPED, _ENTRY, _ENTRY_DROPPED, _SLOTS, _MEMBER = range(9, 15)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[float, list[tuple[int, msgspec.Raw]]]).decode


class Segment(Struct):
    """Rows up to ``last``, and what of them still matters."""

    number: int
    live: dict[Any, Any]
    bytes: int = 0
    last: int = 0


class Journal:
    """Opens or makes the file.

    Raises:
        ConfigError: another hub has it, it is something else, or it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
        except sqlite3.Error as error:
            raise ConfigError(f"the journal {path} cannot be opened: {error}") from error
        try:
            self.epoch = self._prepare()
        except sqlite3.Error as error:
            self._database.close()
            hint = "another hub uses it" if "locked" in str(error) else str(error)
            raise ConfigError(f"the journal {path} cannot be used: {hint}") from error
        except BaseException:
            self._database.close()
            raise
        self._pending: list[tuple[int, Any]] = []
        self._urgent = False
        self._lazy_since = 0.0
        self._segments: deque[Segment] = deque([Segment(1, {})])
        self._by_number: dict[int, Segment] = {1: self._segments[0]}
        self._current = self._segments[0]
        self._where: dict[str, int] = {}
        """Segment of what has no field for it."""
        self._bytes = 0
        self._live_bytes = 0
        self._broker: Broker | None = None
        self.busy = False
        """Whether there is room to win back, a segment with each commit."""

    def _prepare(self) -> int:
        run = self._database.execute
        run("PRAGMA locking_mode = EXCLUSIVE")
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")
        run("BEGIN IMMEDIATE")
        version = run("PRAGMA user_version").fetchone()[0]
        application = run("PRAGMA application_id").fetchone()[0]
        tables = run("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and (application != _APPLICATION or version != VERSION):
            what = f"of version {version}" if application == _APPLICATION else "no journal of a taskq hub"
            raise ConfigError(f"{self.path} is {what}, this hub writes version {VERSION}; name another file")
        run(f"PRAGMA application_id = {_APPLICATION}")
        run(f"PRAGMA user_version = {VERSION}")
        run("CREATE TABLE IF NOT EXISTS log (n INTEGER PRIMARY KEY, entries BLOB NOT NULL)")
        run("CREATE TABLE IF NOT EXISTS epoch (n INTEGER NOT NULL)")
        row = run("SELECT n FROM epoch").fetchone()
        # starts where hubs without a journal hardly begin, and counts up
        epoch: int = (int.from_bytes(os.urandom(2), "big") << 5 if row is None else row[0]) + 1
        run("DELETE FROM epoch")
        run("INSERT INTO epoch VALUES (?)", (epoch,))
        run("COMMIT")
        return epoch

    # ------------------------------------------------------------------------------------------------- changes

    def _note(self, kind: int, what: Any, *, lazy: bool = False) -> None:
        if not lazy:
            self._urgent = True
        elif not self._pending:
            self._lazy_since = time.monotonic()
        self._pending.append((kind, what))

    def _put(self, key: str, what: Any) -> None:
        self._gone(key)
        self._where[key] = self._current.number
        self._current.live[key] = what

    def _gone(self, key: str) -> None:
        number = self._where.pop(key, None)
        if number is not None:
            del self._by_number[number].live[key]

    def sent(self, batch: Sequence[Message]) -> None:
        """Messages are in their queues."""
        current = self._current
        live, number = current.live, current.number
        size = 0
        for message in batch:
            message.segment = number
            live[message.seq] = message
            size += len(message.payload) + 100
        self._live_bytes += size
        if batch:
            self._note(_SENT, list(batch))

    def delivered(self, consumer: str, lease_s: float, first: int, taken: Sequence[Message]) -> None:
        """A consumer holds messages, by receipts from ``first``."""
        self._note(_DELIVERED, (consumer, lease_s, first, [m.seq for m in taken]), lazy=True)

    def ended(self, done: Sequence[Message]) -> None:
        """Messages are finished, or purged."""
        segments = self._by_number
        size = 0
        for message in done:
            del segments[message.segment].live[message.seq]
            size += len(message.payload) + 100
        self._live_bytes -= size
        self._note(_ENDED, [m.seq for m in done])

    def released(self, message: Message, due: float) -> None:
        """A message went back to its queue, to be ready at ``due`` on the monotonic clock, 0 for now."""
        self._note(_RELEASED, (message.seq, message.ended, due))

    def left(self, consumer: str) -> None:
        """A consumer has ended."""
        self._note(_LEFT, consumer, lazy=True)

    def settled(self, consumer: str, n: int) -> None:
        """A consumer's settlement of this number is done."""
        self._note(_SETTLED, (consumer, n), lazy=True)

    def declared(self, names: Sequence[str]) -> None:
        """Queues exist."""
        for name in names:
            self._put(f"q:{name}", (_QUEUES, [name]))
        self._note(_QUEUES, list(names))

    def ordered(self, name: str) -> None:
        """A queue keeps groups in order."""
        self._put(f"o:{name}", (_ORDERED, name))
        self._note(_ORDERED, name)

    def kept(self, kept: Kept) -> None:
        """A record is kept."""
        self._put(f"r:{kept.record.id}", (_KEPT, kept))
        self._live_bytes += kept.size
        self._note(_KEPT, kept)

    def dropped(self, kept: Kept) -> None:
        """A record is not kept any more."""
        self._gone(f"r:{kept.record.id}")
        self._live_bytes -= kept.size
        self._note(_DROPPED, kept.record.id, lazy=True)

    def entry(self, entry: Entry) -> None:
        """A key of coordination has a value."""
        self._put(f"k:{entry.key}", (_ENTRY, entry))
        self._note(_ENTRY, entry)

    def entry_dropped(self, entry: Entry) -> None:
        """A key of coordination is no more."""
        self._gone(f"k:{entry.key}")
        self._note(_ENTRY_DROPPED, entry.key)

    def slots(self, key: str, owners: dict[str, float]) -> None:
        """A semaphore has these owners."""
        if owners:
            self._put(f"s:{key}", (_SLOTS, (key, dict(owners))))
        else:
            self._gone(f"s:{key}")
        self._note(_SLOTS, (key, dict(owners)))

    def member(self, index: str, member: str, at: float | None) -> None:
        """A time index has a member, or has it no more."""
        key = f"t:{index}\0{member}"
        if at is not None:
            self._put(key, (_MEMBER, (index, member, at)))
        else:
            self._gone(key)
        self._note(_MEMBER, (index, member, at))

    # ------------------------------------------------------------------------------------------------- writing

    @property
    def due(self) -> bool:
        """Whether something is to be written now."""
        if self._urgent or self.busy:
            return True
        return bool(self._pending) and time.monotonic() - self._lazy_since >= _LAZY_S

    @property
    def lazy(self) -> bool:
        """Whether something is to be written, though it does not hurry."""
        return bool(self._pending)

    def commit(self) -> None:
        """Write what has changed, if it must be, and sync. Raises: OSError: nothing was written; it is kept."""
        if not self.due:
            return
        current = self._current
        run = self._database.execute
        try:
            # in one transaction: what is written again, and the end of where it was
            stale = self._stale()
            data = _encode((time.time() - time.monotonic(), self._pending))
            run("BEGIN")
            if self._pending:
                row = run("INSERT INTO log (entries) VALUES (?)", (data,)).lastrowid
                assert row is not None
                last = row
            if stale:
                run("DELETE FROM log WHERE n <= ?", (stale[-1].last,))
            run("COMMIT")
        except sqlite3.Error as error:
            if self._database.in_transaction:
                run("ROLLBACK")
            raise OSError(str(error)) from error
        for segment in stale:
            self._segments.popleft()
            del self._by_number[segment.number]
            self._bytes -= segment.bytes
        if self._pending:
            self._pending = []
            self._urgent = False
            current.last = last
            current.bytes += len(data)
            self._bytes += len(data)
        if current.bytes >= _SEGMENT_BYTES:
            self._begin_segment()
        self.busy = len(self._segments) > 1 and (
            not self._segments[0].live or (self._bytes > _SMALL and self._live_bytes * 3 < self._bytes)
        )

    def _begin_segment(self) -> None:
        segment = Segment(self._current.number + 1, {}, 0, self._current.last)
        self._segments.append(segment)
        self._by_number[segment.number] = segment
        self._current = segment

    def _stale(self) -> list[Segment]:
        """Return the segments at the front that may go, the first one's live entries having been noted again."""
        stale: list[Segment] = []
        if self.busy:
            first = self._segments[0]
            if first.live and first is not self._current:
                self._note_again(first)
            for segment in self._segments:
                if segment is self._current or segment.live:
                    break
                stale.append(segment)
        return stale

    def _note_again(self, segment: Segment) -> None:
        live, segment.live = segment.live, {}
        messages = []
        for key, what in live.items():
            if isinstance(what, Message):
                what.segment = self._current.number
                self._current.live[what.seq] = what
                messages.append(what)
            else:
                self._where[key] = self._current.number
                self._current.live[key] = what
                self._pending.append(what)
        if messages:
            self._pending.append((_SENT, messages))
            again = {m.seq for m in messages}
            assert self._broker is not None
            for consumer in self._broker.consumers.values():
                for receipt, message in consumer.held.items():
                    if message.seq in again:
                        self._pending.append((_DELIVERED, (consumer.id, consumer.lease_s, receipt, [message.seq])))

    # ------------------------------------------------------------------------------------------------- reading

    def replay(self, broker: Broker, results: Results, coordinator: Coordinator) -> None:
        """Bring a new hub to where the last one was. Raises: ConfigError: the file is damaged."""
        from taskq_lib_zeromq.hub.replay import Replay

        self._broker = broker
        replay = Replay()
        try:
            for n, data in self._database.execute("SELECT n, entries FROM log ORDER BY n"):
                offset, entries = _decode(data)
                replay.segment = self._current.number
                for kind, what in entries:
                    replay.apply(kind, what, offset)
                self._current.last = n
                self._current.bytes += len(data)
                self._bytes += len(data)
                if self._current.bytes >= _SEGMENT_BYTES:
                    self._begin_segment()
        except (sqlite3.Error, msgspec.MsgspecError, KeyError) as error:
            raise ConfigError(
                f"the journal {self.path} is damaged: {error}; restore it, or name another file to begin with nothing"
            ) from error
        replay.finish(broker, results, coordinator)
        for message in replay.messages.values():
            self._by_number[message.segment].live[message.seq] = message
            self._live_bytes += len(message.payload) + 100
        for key, (number, entry) in replay.others.items():
            self._where[key] = number
            self._by_number[number].live[key] = entry
            if entry[0] == _KEPT:
                self._live_bytes += entry[1].size

    def close(self) -> None:
        """Write what is left and close the file."""
        try:
            if self._pending:
                self._urgent = True
                self.commit()
        except OSError:
            pass  # it would have been lost with a crash, too
        self._database.close()
