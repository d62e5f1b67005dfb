"""AMQP 0-9-1 frames: those that decide the rate are cut and made here, all others by pika's codec.

A delivery is three frames (method, header, body). Cutting the three in one go, out of the bytes as they came from the
socket, costs about a microsecond; building an object for each costs ten.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any, NamedTuple, Protocol

import pika.exceptions
import pika.frame
import pika.spec

METHOD, HEADER, BODY, HEARTBEAT_FRAME = 1, 2, 3, 8
FRAME_END = 0xCE
FRAME_OVERHEAD = 8
HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"
GREETING = b"AMQP\x00\x00\x09\x01"
_DELIVER, _ACK, _NACK = 0x003C003C, 0x003C0050, 0x003C0078
_CONTENT = (pika.spec.Basic.Deliver, pika.spec.Basic.GetOk, pika.spec.Basic.Return)
_HAS_PRIORITY, _HAS_MODE, _HAS_ID = 0x0800, 0x1000, 0x0080
_COMPLEX = 0xE001
"""Flags of content type, encoding, headers and further flags: such properties are left to pika's codec."""

_method_head = Struct(">BHII").unpack_from
_header_head = Struct(">BHIHHQH").unpack_from
_frame_head = Struct(">BHI").unpack_from
_tag_and_flag = Struct(">QB").unpack_from
_confirm = Struct(">BHIIQBB").unpack_from
_pack_frame = Struct(">BHI").pack
_pack_header = Struct(">BHIHHQHB").pack
_pack_ack = Struct(">BHIIQBB").pack


class Incoming(NamedTuple):
    """A delivered message. ``returns`` is what the server counted before this delivery, None where it does not."""

    consumer: bytes
    tag: int
    redelivered: bool
    returns: int | None
    priority: int
    body: bytes


class ProtocolError(Exception):
    """The bytes are no AMQP frames: the connection is of no use any more."""


class Listener(Protocol):
    """Who gets what arrives on one channel."""

    def on_deliveries(self, deliveries: list[Incoming]) -> None:
        """Take messages, in order."""

    def on_confirm(self, tag: int, multiple: bool, accepted: bool) -> None:
        """Take the server's word on published messages."""

    def on_method(self, method: Any, properties: Any, body: bytes) -> None:
        """Take any other method, with its content where it has one."""


class _Content:
    """A message that arrives in pieces."""

    __slots__ = ("chunks", "left", "method", "properties")

    def __init__(self, method: Any) -> None:
        self.method = method
        self.properties: Any = None
        self.left = -1
        self.chunks: list[bytes] = []


class Parser:
    """Cuts a stream of bytes into frames and hands them to the listeners of their channels."""

    def __init__(self, listener: Callable[[int], Listener | None]) -> None:
        self._listener = listener
        self._rest = b""
        self._partial: dict[int, _Content] = {}

    def feed(self, data: bytes) -> None:
        """Take bytes from the socket. Raises: ProtocolError."""
        buffer = self._rest + data if self._rest else data
        try:
            position = self._cut(buffer)
        except (pika.exceptions.AMQPError, KeyError, ValueError, IndexError) as error:
            raise ProtocolError(f"{type(error).__name__}: {error}") from error
        self._rest = buffer[position:]

    def _cut(self, buffer: bytes) -> int:
        size, position = len(buffer), 0
        batch: list[Incoming] = []
        add = batch.append
        of = -1  # channel of the batch
        while size - position >= FRAME_OVERHEAD:
            kind, channel, length = _frame_head(buffer, position)
            end = position + FRAME_OVERHEAD + length
            if end > size:
                break
            if buffer[end - 1] != FRAME_END:
                raise ProtocolError("a frame does not end where it says")
            if kind == METHOD:
                name = _method_head(buffer, position)[3]
                if name == _DELIVER:
                    if size - end < 22:
                        break
                    _, _, props, _, _, total, flags = _header_head(buffer, end)
                    start = end + FRAME_OVERHEAD + props
                    if total == 0:
                        after, whole = start, start <= size
                        body = b""
                    elif size - start < 7:
                        break
                    else:
                        length = _frame_head(buffer, start)[2]
                        after = start + FRAME_OVERHEAD + length
                        whole = length == total and after <= size
                        if not whole and length == total:
                            break
                        body = buffer[start + 7 : after - 1] if whole else b""
                    if whole and channel not in self._partial:
                        if buffer[after - 1] != FRAME_END:
                            raise ProtocolError("a message does not end where it says")
                        if channel != of:
                            if batch:
                                self._deliver(of, batch)
                                batch = []
                                add = batch.append
                            of = channel
                        at = position + 12 + buffer[position + 11]
                        tag, redelivered = _tag_and_flag(buffer, at)
                        if flags & _COMPLEX:
                            count, priority = facts(_properties(buffer[end + 19 : start - 1]))
                        else:
                            count, priority = None, 0
                            if flags & _HAS_PRIORITY:
                                priority = buffer[end + 22 if flags & _HAS_MODE else end + 21]
                        add(Incoming(buffer[position + 12 : at], tag, redelivered & 1 == 1, count, priority, body))
                        position = after
                        continue
                    if total and not whole and length == total:
                        break
                elif name in (_ACK, _NACK) and length == 13:
                    if batch:
                        self._deliver(of, batch)
                        batch = []
                        add = batch.append
                    _, _, _, _, tag, bits, _ = _confirm(buffer, position)
                    listener = self._listener(channel)
                    if listener is not None:
                        listener.on_confirm(tag, bits & 1 == 1, name == _ACK)
                    position = end
                    continue
            if batch:
                self._deliver(of, batch)
                batch = []
                add = batch.append
            self._slowly(kind, channel, buffer[position:end])
            position = end
        if batch:
            self._deliver(of, batch)
        return position

    def _deliver(self, channel: int, batch: list[Incoming]) -> None:
        listener = self._listener(channel)
        if listener is not None:
            listener.on_deliveries(batch)

    def _slowly(self, kind: int, channel: int, data: bytes) -> None:
        if kind == HEARTBEAT_FRAME:
            return
        if kind == BODY:
            content = self._partial.get(channel)
            if content is None or content.left < 0:
                raise ProtocolError("a body without a header")
            content.chunks.append(data[7:-1])
            content.left -= len(data) - FRAME_OVERHEAD
        elif kind == HEADER:
            content = self._partial.get(channel)
            if content is None:
                raise ProtocolError("a header without a method")
            content.left = int.from_bytes(data[11:19], "big")
            content.properties = _properties(data[19:-1])
        else:
            _, frame = pika.frame.decode_frame(data)
            method = getattr(frame, "method", None)
            if isinstance(method, _CONTENT):
                self._partial[channel] = _Content(method)
                return
            listener = self._listener(channel)
            if listener is not None and method is not None:
                listener.on_method(method, None, b"")
            return
        if content.left == 0:
            del self._partial[channel]
            self._whole(channel, content)

    def _whole(self, channel: int, content: _Content) -> None:
        listener = self._listener(channel)
        if listener is None:
            return
        body = b"".join(content.chunks)
        method = content.method
        if isinstance(method, pika.spec.Basic.Deliver):
            count, priority = facts(content.properties)
            consumer = method.consumer_tag.encode()
            redelivered = bool(method.redelivered)
            listener.on_deliveries([Incoming(consumer, method.delivery_tag, redelivered, count, priority, body)])
        else:
            listener.on_method(method, content.properties, body)


def _properties(data: bytes) -> Any:
    """Read properties; those that another program wrote wrongly count as none."""
    properties = pika.spec.BasicProperties()
    try:
        properties.decode(data)
    except Exception:
        return pika.spec.BasicProperties()
    return properties


def facts(properties: Any) -> tuple[int | None, int]:
    """Return the delivery count and the priority."""
    count = (properties.headers or {}).get("x-delivery-count")
    return count if isinstance(count, int) else None, properties.priority or 0


def method_frame(channel: int, method: Any) -> bytes:
    """Return the frame of a method without content."""
    frame: bytes = pika.frame.Method(channel, method).marshal()
    return frame


def publish_frame(channel: int, exchange: str, key: str, *, mandatory: bool = True) -> bytes:
    """Return the first frame of a message; it is the same for all messages of a queue."""
    method = pika.spec.Basic.Publish(exchange=exchange, routing_key=key, mandatory=mandatory)
    return method_frame(channel, method)


def content_frames(
    channel: int, body: bytes, message_id: bytes, priority: int | None, frame_max: int, *, persistent: bool = True
) -> bytes:
    """Return the second and further frames of a message: header and body. ``message_id`` takes at most 255 bytes."""
    mode = 2 if persistent else 1
    size = len(body)
    if priority is None:
        flags, more = _HAS_MODE | _HAS_ID, b"%c%b" % (len(message_id), message_id)
    else:
        flags, more = _HAS_MODE | _HAS_PRIORITY | _HAS_ID, b"%c%c%b" % (priority, len(message_id), message_id)
    head = _pack_header(HEADER, channel, 15 + len(more), 60, 0, size, flags, mode)
    room = frame_max - FRAME_OVERHEAD
    if size <= room:
        if not size:
            return b"%b%b\xce" % (head, more)
        return b"%b%b\xce%b%b\xce" % (head, more, _pack_frame(BODY, channel, size), body)
    parts = [head, more, b"\xce"]
    for start in range(0, size, room):
        chunk = body[start : start + room]
        parts += (_pack_frame(BODY, channel, len(chunk)), chunk, b"\xce")
    return b"".join(parts)


def ack_frame(channel: int, tag: int, *, multiple: bool = False) -> bytes:
    """Return the acknowledgement of one delivery, or of all up to it."""
    return _pack_ack(METHOD, channel, 13, _ACK, tag, multiple, FRAME_END)


def nack_frame(channel: int, tag: int, *, multiple: bool = False) -> bytes:
    """Return the frame that gives one delivery back, or all up to it; tag 0 with ``multiple`` means all."""
    return _pack_ack(METHOD, channel, 13, _NACK, tag, 2 | multiple, FRAME_END)
