"""The AMQP result store: results are messages to the process that sent the task.

Each process that waits has one reply queue, which nobody else may consume from and which expires when its process stays
away. What arrives is kept in the process's memory until its ttl has passed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import msgspec
import pika.spec as spec

from taskq.errors import ResultTooLarge, StoreError, StoreUnavailable, TaskQError
from taskq.message import Record
from taskq.spi import StoreCapabilities, StoreConfig
from taskq_lib_amqp.channel import Channel, ChannelClosed
from taskq_lib_amqp.keeper import Keeper
from taskq_lib_amqp.link import Link, connect
from taskq_lib_amqp.publisher import Item, Publisher
from taskq_lib_amqp.servers import Errors, make_target
from taskq_lib_amqp.waiting import Bell
from taskq_lib_amqp.wire import Incoming, ack_frame
from taskq_store_amqp.options import MAX_RECORD_BYTES, AmqpStoreOptions, capabilities

logger = logging.getLogger("taskq.store.amqp")
_ADDRESS = "taskq.reply."
_PORTION, _PORTION_BYTES = 100, 1 << 19
_READ_KEPT = 1000
"""Results already handed out that are kept all the same, for a second look."""


class StoreRefused(StoreError):
    """The server refuses user, virtual host or command, or the store is not open; repeating is pointless."""

    retryable = False


ERRORS = Errors(StoreUnavailable, StoreUnavailable, StoreRefused, StoreUnavailable)
_Packed = tuple[str, str, bytes, bool, int, int, float, bytes | None]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[_Packed]).decode


class Kept:
    """The results that have arrived in this process, each until its ttl has passed."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._unread: OrderedDict[str, tuple[float, Record]] = OrderedDict()
        self._read: OrderedDict[str, tuple[float, Record]] = OrderedDict()
        self._guard = threading.Lock()
        self._warned = False
        self.arrived = 0

    def add(self, records: Sequence[Record]) -> None:
        """Keep records, by the rule which replaces which."""
        now = time.monotonic()
        with self._guard:
            for record in records:
                known = self._unread.get(record.id) or self._read.get(record.id)
                if known is not None and known[0] > now and not _better(record, known[1]):
                    continue
                self._read.pop(record.id, None)
                self._unread[record.id] = now + record.ttl, record
            while len(self._unread) > self._most:
                if not self._unread.popitem(last=False)[1][0] < now and not self._warned:
                    self._warned = True
                    logger.warning(
                        "more than %d results have arrived that nobody asked for; the oldest are dropped. Send such "
                        "tasks with ignore_result, or raise max_kept", self._most,
                    )  # fmt: skip
            self.arrived += 1

    def look(self, ids: Sequence[str]) -> list[Record | None]:
        """Return each id's record."""
        now = time.monotonic()
        found: list[Record | None] = []
        with self._guard:
            for task in ids:
                known = self._unread.get(task)
                if known is not None and known[1].terminal:
                    self._read[task] = self._unread.pop(task)
                    while len(self._read) > _READ_KEPT + len(ids):
                        self._read.popitem(last=False)
                known = known or self._read.get(task)
                found.append(known[1] if known is not None and known[0] > now else None)
        return found

    def drop(self, ids: Sequence[str]) -> None:
        """Forget records."""
        with self._guard:
            for task in ids:
                self._unread.pop(task, None)
                self._read.pop(task, None)


def _better(new: Record, old: Record) -> bool:
    mine, theirs = (new.epoch, new.attempt), (old.epoch, old.attempt)
    return mine > theirs or (mine == theirs and not old.terminal)


class ReplyChannel(Channel):
    """The channel on which this process's results arrive."""

    def __init__(self, link: Link, number: int, kept: Kept) -> None:
        super().__init__(link, number)
        self._kept = kept
        self.ended = False

    def on_deliveries(self, deliveries: list[Incoming]) -> None:
        records: list[Record] = []
        for incoming in deliveries:
            try:
                packed = _decode(incoming.body)
            except msgspec.MsgspecError:
                logger.warning("a message in this process's reply queue is no result; it is dropped")
                continue
            records += [Record(*entry[:7], follow_ups=entry[7]) for entry in packed]
        self._kept.add(records)
        # only now: what is on its way to a connection that is just breaking comes again on the next one
        with contextlib.suppress(TaskQError):
            self.link.write(ack_frame(self.number, deliveries[-1].tag, multiple=True))

    def on_method(self, method: Any, properties: Any, body: bytes) -> None:
        if isinstance(method, spec.Basic.Cancel):  # the queue was deleted
            self.ended = True
        else:
            super().on_method(method, properties, body)


class AmqpStore:
    """Results by way of one RabbitMQ server or cluster; further URLs are further nodes of it."""

    def __init__(self, config: StoreConfig) -> None:
        self.options: AmqpStoreOptions = config.options
        self._target = make_target(config.urls, self.options, ERRORS, product=config.app)
        self._capabilities = capabilities(self.options)
        self._address = _ADDRESS + os.urandom(12).hex()
        self._pid = os.getpid()
        self._opened = False
        self._opening = threading.Lock()
        self._keeper = Keeper("taskq-amqp-replies")
        self._publisher = Publisher(lambda: connect(self._target, "results"), self._keeper, lasting=False)
        self._listening = threading.Lock()
        """Held while the reply queue is made or given up, not while it is waited on."""
        self._replies: ReplyChannel | None = None
        self._turn = threading.Lock()
        """Held by the thread that waits."""
        self._kept = Kept(self.options.max_kept)
        self._bell: Bell | None = None
        self._woken = False

    @property
    def capabilities(self) -> StoreCapabilities:
        return self._capabilities

    def open(self) -> None:
        self._check_process()
        with self._opening:
            if self._opened:
                return
            try:
                self._publisher.ping()
            except BaseException:
                self._publisher.close(0.1)
                self._keeper.close()
                raise
            self._bell = Bell()
            self._opened = True

    def close(self, *, timeout: float = 5.0) -> None:
        if self._pid != os.getpid():
            return
        with self._opening:
            if not self._opened:
                return
            self._opened = False
            self.wake()
            waited = self._turn.acquire(timeout=timeout)
            try:
                with self._listening:
                    self._give_up(delete=True)
                self._publisher.close(min(1.0, timeout))
                self._keeper.close()
                if self._bell is not None:
                    self._bell.close()
            finally:
                if waited:
                    self._turn.release()

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise StoreRefused(f"this store belongs to process {self._pid}; open a new one in process {os.getpid()}")

    def _check(self) -> None:
        self._check_process()
        if not self._opened:
            raise StoreRefused("the result store is not open; call open() first")

    # -------------------------------------------------------------------------------------------------- records

    def put(self, records: Sequence[Record]) -> Sequence[str]:
        self._check()
        portions: dict[str, list[list[_Packed]]] = {}
        sizes: dict[str, int] = {}
        for r in records:
            size = len(r.payload) + len(r.follow_ups or b"")
            if size > MAX_RECORD_BYTES:
                raise ResultTooLarge(
                    f"the record of task [{r.id}] takes {size} bytes, at most {MAX_RECORD_BYTES} fit into a message; "
                    "store large results elsewhere and return their address"
                )
            if r.reply is None or not r.reply.startswith(_ADDRESS):
                continue  # nobody waits, and nobody else could ever read it
            parts = portions.setdefault(r.reply, [])
            if not parts or len(parts[-1]) >= _PORTION or sizes[r.reply] + size > _PORTION_BYTES:
                parts.append([])
                sizes[r.reply] = 0
            sizes[r.reply] += size
            parts[-1].append((r.id, r.state, r.payload, r.terminal, r.attempt, r.epoch, r.ttl, r.follow_ups))
        items: list[Item] = []
        for reply, parts in portions.items():
            items += [Item(len(items) + n, "", reply, _encode(part), part[0][0]) for n, part in enumerate(parts)]
        if items:
            refused = self._publisher.publish(items)
            if refused:
                raise StoreUnavailable(
                    f"{self._target.name} did not take {len(refused)} of {len(items)} messages with results: "
                    f"{refused[0].reason}"
                )
        return []

    def get(self, ids: Sequence[str]) -> Sequence[Record | None]:
        self._check()
        if not ids:
            return []
        found = self._kept.look(ids)
        if None in found:
            # what the server has sent before its answer is here after it
            replies = self._replies
            if replies is None or replies.link.error is not None or replies.closed is not None:
                self._publisher.ping()
            else:
                try:
                    replies.ask(spec.Channel.Flow(True))
                except ChannelClosed as closed:
                    raise StoreUnavailable(f"the channel for results was closed: {closed}") from closed
            found = self._kept.look(ids)
        return found

    def delete(self, ids: Sequence[str]) -> None:
        self._check()
        self._kept.drop(ids)

    # -------------------------------------------------------------------------------------------------- waiting

    def reply_address(self) -> str | None:
        self._check()
        if self._replies is None:
            self._listen()
        return self._address

    def _listen(self) -> ReplyChannel:
        """Return the channel of the reply queue, making both where there is none or it broke."""
        with self._listening:
            self._check()
            replies = self._replies
            if replies is not None:
                if replies.link.error is None and replies.closed is None and not replies.ended:
                    return replies
                self._give_up()
            link = connect(self._target, "replies")
            replies = ReplyChannel(link, 1, self._kept)
            try:
                replies.open()
                expires = {"x-expires": max(1, round(self.options.reply_expires * 1000))}
                replies.ask(spec.Queue.Declare(queue=self._address, arguments=expires))
                replies.ask(spec.Basic.Consume(queue=self._address, exclusive=True))
            except ChannelClosed as closed:
                link.close()
                if closed.code == 403 and "exclusive" in str(closed):  # the broken connection is not forgotten yet
                    raise StoreUnavailable(f"{link.name} still has this process's old connection: {closed}") from closed
                raise StoreRefused(f"{link.name} refuses a reply queue: {closed}; give the user the right") from closed
            except BaseException:
                link.close()
                raise
            self._keeper.add(link)
            self._replies = replies
            return replies

    def _give_up(self, *, delete: bool = False) -> None:
        replies, self._replies = self._replies, None
        if replies is None:
            return
        self._keeper.remove(replies.link)
        if delete and replies.link.error is None and replies.closed is None:
            try:
                replies.ask(spec.Queue.Delete(queue=self._address), timeout=1.0)
            except (TaskQError, ChannelClosed):
                pass  # it expires
        replies.link.close(0.5)

    def wait(self, ids: Sequence[str], timeout: float) -> Sequence[Record]:
        self._check()
        with self._turn:
            return self._wait(ids, time.monotonic() + timeout)

    def _wait(self, ids: Sequence[str], end: float) -> Sequence[Record]:
        kept, bell = self._kept, self._bell
        assert bell is not None
        while self._opened:
            replies = self._listen()
            arrived = kept.arrived
            found = [r for r in kept.look(ids) if r is not None and r.terminal]
            left = end - time.monotonic()
            if found or self._woken or left <= 0:
                bell.hush()
                self._woken = self._woken and bool(found)
                return found
            replies.link.wait(
                lambda: kept.arrived != arrived or replies.ended or replies.closed is not None,  # noqa: B023  run at once
                left,
                bell,
            )
        return []

    def wake(self) -> None:
        self._woken = True
        if self._bell is not None:
            self._bell.ring()
