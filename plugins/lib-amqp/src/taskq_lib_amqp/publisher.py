"""Publishing with confirms, pipelined: any number of messages are on their way at once, each is answered for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from enum import Enum
from hashlib import blake2b
from typing import Any

import pika.spec as spec
from msgspec import Struct

from taskq.errors import TaskQError
from taskq_lib_amqp import wire
from taskq_lib_amqp.channel import Channel, ChannelClosed
from taskq_lib_amqp.keeper import Keeper
from taskq_lib_amqp.link import Link

_CHUNK_BYTES = 1 << 16
_KNOWN_HEADS = 10_000
_WINDOW = 4000
"""Most messages that wait for their confirms; the server's answers must fit into the socket's buffers."""


class Item(Struct, gc=False):
    """A message to publish. ``index`` is its place in the caller's batch."""

    index: int
    exchange: str
    key: str
    payload: bytes
    id: str
    priority: int | None = None


class Why(Enum):
    """Why a message was not accepted."""

    UNROUTABLE = "no queue is bound there, so nobody got it"
    REJECTED = "the server said no, so nobody got it"
    OTHER = "it was not sent, or not answered for"


class Refused(Struct, gc=False):
    """A message that was not accepted."""

    item: Item
    reason: str
    maybe_sent: bool = False
    retryable: bool = True
    why: Why = Why.OTHER


class PublishChannel(Channel):
    """A channel in confirm mode, and how far the server has answered."""

    def __init__(self, link: Link, number: int, *, lasting: bool) -> None:
        super().__init__(link, number)
        self.lasting = lasting
        self.next = 1
        self.confirmed = 0
        """All tags up to here are answered."""
        self._early: set[int] = set()
        self.rejected: set[int] = set()
        self.returned: dict[str, str] = {}
        self._heads: dict[tuple[str, str], bytes] = {}

    def open(self) -> None:
        super().open()
        self.ask(spec.Confirm.Select())

    def head(self, exchange: str, key: str) -> bytes:
        """Return the first frame of messages that go there."""
        known = self._heads.get((exchange, key))
        if known is None:
            if len(self._heads) > _KNOWN_HEADS:  # keys may be made of data
                self._heads.clear()
            known = wire.publish_frame(self.number, exchange, key, mandatory=self.lasting)
            self._heads[exchange, key] = known
        return known

    def on_confirm(self, tag: int, multiple: bool, accepted: bool) -> None:
        early = self._early
        if not accepted:
            self.rejected.update(range(self.confirmed + 1, tag + 1) if multiple else (tag,))
        if multiple:
            if tag > self.confirmed:
                self.confirmed = tag
                if early:
                    self._early = early = {t for t in early if t > tag}
        elif tag == self.confirmed + 1:
            self.confirmed = tag
        else:
            early.add(tag)
            return
        while early and self.confirmed + 1 in early:
            self.confirmed += 1
            early.discard(self.confirmed)

    def on_method(self, method: Any, properties: Any, body: bytes) -> None:
        if isinstance(method, spec.Basic.Return):
            self.returned[properties.message_id or ""] = method.reply_text or "unroutable"
        else:
            super().on_method(method, properties, body)


class Publisher:
    """Publishes from any thread, over one connection that is made at first use and again after it broke."""

    def __init__(self, connect: Callable[[], Link], keeper: Keeper, *, lasting: bool = True) -> None:
        """``lasting``: messages survive a restart of the server, and one that no queue takes is refused."""
        self._connect = connect
        self._lasting = lasting
        self._keeper = keeper
        self._turn = threading.Lock()
        """Held while tags are given out and bytes are written, never while confirms are waited for alone."""
        self._channel: PublishChannel | None = None

    def close(self, timeout: float) -> None:
        """Close the connection."""
        channel, self._channel = self._channel, None
        if channel is not None:
            self._keeper.remove(channel.link)
            channel.link.close(timeout)

    @property
    def blocked(self) -> bool:
        """Whether the server is known to take no messages."""
        channel = self._channel
        return channel is not None and channel.link.blocked is not None

    def ping(self) -> None:
        """Make sure that the server is there. Raises: the target's typed errors."""
        with self._turn:
            channel = self._ready()
        try:
            channel.ask(spec.Channel.Flow(True))
        except ChannelClosed as closed:
            raise channel.link.target.errors.lost(f"{channel.link.name} closed the channel: {closed}") from closed

    def publish(self, items: Sequence[Item]) -> list[Refused]:
        """Publish and wait until each message is answered for; return those that were not accepted.

        Raises:
            The target's typed errors: nothing was sent.
        """
        known = self._channel
        if known is not None and known.link.error is None:
            self._unblocked(known.link)  # without the turn: those who wait do so side by side
        with self._turn:
            channel = self._ready()
            first = channel.next
            error = self._write(channel, items)
            last = channel.next - 1
        if error is None:
            error = self._await(channel, last)
        # what is written after the server has closed the channel makes it close the connection: the first is the cause
        error = error and (channel.closed or error)
        return self._verdict(channel, items, first, last, error)

    def _ready(self) -> PublishChannel:
        channel = self._channel
        if channel is not None:
            channel.link.read_now()  # an end, or a block, that nobody has read yet
            if channel.link.error is None and channel.closed is None:
                self._unblocked(channel.link, 0.0)
                return channel
            self._drop(channel)
        link = self._connect()
        try:
            channel = PublishChannel(link, 1, lasting=self._lasting)
            channel.open()
        except ChannelClosed as closed:
            link.close()
            raise link.target.errors.refused(f"{link.name} does not confirm messages: {closed}") from closed
        except BaseException:
            link.close()
            raise
        self._keeper.add(link)
        self._channel = channel
        return channel

    def _unblocked(self, link: Link, timeout: float | None = None) -> None:
        """Wait for a server that takes no messages. Raises: the side's error for a full server."""
        if link.blocked is None:
            return
        why = link.blocked
        if not link.wait(lambda: link.blocked is None, link.target.timeout if timeout is None else timeout):
            raise link.target.errors.full(
                f"{link.name} takes no messages: {why}; nothing was sent. Free memory or disk on the server, or let "
                "workers empty the queues"
            )

    def _drop(self, channel: PublishChannel) -> None:
        if self._channel is channel:
            self._channel = None
        self._keeper.remove(channel.link)
        channel.link.close(0.2)

    def _write(self, channel: PublishChannel, items: Sequence[Item]) -> Exception | None:
        link, number, frame_max = channel.link, channel.number, channel.link.frame_max
        parts: list[bytes] = []
        size = 0
        waiting = 0
        head = channel.head
        try:
            for item in items:
                name = item.id.encode()
                if len(name) > 255:
                    name = blake2b(name).hexdigest().encode()
                content = wire.content_frames(
                    number, item.payload, name, item.priority, frame_max, persistent=self._lasting
                )
                parts += (head(item.exchange, item.key), content)
                size += len(content)
                waiting += 1
                if size >= _CHUNK_BYTES or waiting >= _WINDOW // 4:
                    channel.next += waiting
                    link.write(b"".join(parts))
                    parts, size, waiting = [], 0, 0
                    if channel.next - channel.confirmed > _WINDOW:
                        error = self._await(channel, channel.next - _WINDOW // 2)
                        if error is not None:
                            return error
                    if channel.closed is not None:
                        return channel.closed
            if parts:
                channel.next += waiting
                link.write(b"".join(parts))
        except TaskQError as error:
            return error
        return None

    def _await(self, channel: PublishChannel, tag: int) -> Exception | None:
        """Wait until all tags up to this are answered, as long as answers keep coming; return what prevented it."""
        link = channel.link
        timeout = link.target.timeout
        while channel.confirmed < tag:
            before = channel.confirmed
            try:
                ready = link.wait(lambda: channel.confirmed >= tag or channel.closed is not None, timeout)
            except TaskQError as error:
                return error
            if channel.closed is not None and channel.confirmed < tag:
                return channel.closed
            if not ready and channel.confirmed == before:
                return link.silent(timeout)
        return None

    def _verdict(
        self, channel: PublishChannel, items: Sequence[Item], first: int, last: int, error: Exception | None
    ) -> list[Refused]:
        rejected, returned = channel.rejected, channel.returned
        if error is None and not rejected and not returned:
            return []
        found: list[Refused] = []
        confirmed, early = channel.confirmed, channel._early
        for offset, item in enumerate(items):
            tag = first + offset
            if tag > last:
                found.append(Refused(item, f"not sent: {error}"))
            elif tag > confirmed and tag not in early:
                found.append(self._unanswered(item, error, alone=len(items) == 1))
            elif tag in rejected:
                rejected.discard(tag)
                found.append(Refused(item, "the server refused it: queue full or without leader", why=Why.REJECTED))
            elif item.id in returned:
                found.append(Refused(item, f"no queue takes it ({returned[item.id]})", why=Why.UNROUTABLE))
        for refused in found:
            if refused.why is Why.UNROUTABLE:
                returned.pop(refused.item.id, None)
        broken = channel.closed is not None or channel.link.error is not None
        if error is not None and (broken or channel.link.blocked is None):
            with self._turn:
                self._drop(channel)
        return found

    @staticmethod
    def _unanswered(item: Item, error: Exception | None, *, alone: bool) -> Refused:
        if isinstance(error, ChannelClosed):
            # which of several the server objected to is not known, and the others may have got through
            final = alone and error.code in (403, 404, 406)
            return Refused(item, f"the server refused it: {error}", maybe_sent=not alone, retryable=not final)
        return Refused(item, f"no confirm: {error}", maybe_sent=True)
