"""Our frames against pika's codec: what one writes the other reads, however the bytes are cut."""

from __future__ import annotations

from typing import Any

import pika.frame
import pika.spec as spec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskq_lib_amqp import wire

FRAME_MAX = 4096


class Heard:
    """Keeps all that a channel is told, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def on_deliveries(self, deliveries: list[wire.Incoming]) -> None:
        self.events += [("delivery", *d) for d in deliveries]

    def on_confirm(self, tag: int, multiple: bool, accepted: bool) -> None:
        self.events.append(("confirm", tag, multiple, accepted))

    def on_method(self, method: Any, properties: Any, body: bytes) -> None:
        self.events.append(("method", type(method), body))


def theirs(channel: int, method: Any, body: bytes | None = None, **properties: Any) -> bytes:
    """Return a method, with a message where it has one, as pika writes it."""
    data: bytes = pika.frame.Method(channel, method).marshal()
    if body is not None:
        data += pika.frame.Header(channel, len(body), spec.BasicProperties(**properties)).marshal()
        room = FRAME_MAX - wire.FRAME_OVERHEAD
        for start in range(0, len(body), room):
            data += pika.frame.Body(channel, body[start : start + room]).marshal()
    return data


bodies = st.one_of(st.binary(max_size=50), st.integers(4000, 9000).map(lambda n: b"\xce" * n))
tags = st.integers(1, 2**40)
headers = st.dictionaries(
    st.text(max_size=8), st.one_of(st.integers(-5, 5), st.text(max_size=9), st.booleans()), max_size=3
)


@st.composite
def events(draw: st.DrawFn) -> tuple[bytes, tuple[Any, ...]]:
    """Return bytes from a server, and what their channel must be told."""
    kind = draw(st.sampled_from(["delivery", "foreign", "confirm", "beat", "method", "get"]))
    tag = draw(tags)
    if kind == "beat":
        return wire.HEARTBEAT, ()
    if kind == "confirm":
        multiple, accepted = draw(st.booleans()), draw(st.booleans())
        method = spec.Basic.Ack(tag, multiple) if accepted else spec.Basic.Nack(tag, multiple, False)
        return theirs(1, method), ("confirm", tag, multiple, accepted)
    if kind == "method":
        return theirs(1, spec.Queue.DeclareOk("q", 1, 2)), ("method", spec.Queue.DeclareOk, b"")
    body = draw(bodies)
    if kind == "get":
        return theirs(1, spec.Basic.GetOk(tag, False, "", "q", 0), body), ("method", spec.Basic.GetOk, body)
    consumer, redelivered = draw(st.sampled_from(["1", "ctag-ž", ""])), draw(st.booleans())
    method = spec.Basic.Deliver(consumer, tag, redelivered, draw(st.sampled_from(["", "x"])), "key")
    returns, priority = None, draw(st.integers(0, 9))
    fields: dict[str, Any] = {"delivery_mode": draw(st.sampled_from([None, 2])), "message_id": "id"}
    if kind == "foreign":
        table = draw(headers)
        if draw(st.booleans()):
            returns = table["x-delivery-count"] = draw(st.integers(0, 99))
        fields |= {"headers": table, "content_type": draw(st.sampled_from([None, "text/plain"])), "reply_to": "r"}
    data = theirs(1, method, body, priority=priority or None, **fields)
    return data, ("delivery", consumer.encode(), tag, redelivered, returns, priority, body)


@settings(max_examples=150)
@given(st.lists(events(), max_size=8), st.lists(st.integers(1, 3000), max_size=20))
def test_any_stream_in_any_pieces(stream: list[tuple[bytes, tuple[Any, ...]]], cuts: list[int]) -> None:
    heard = Heard()
    parser = wire.Parser(lambda channel: heard if channel == 1 else None)
    data = b"".join(piece for piece, _ in stream)
    for cut in cuts:
        parser.feed(data[:cut])
        data = data[cut:]
    parser.feed(data)
    assert heard.events == [event for _, event in stream if event]


@given(st.binary(max_size=9000), st.binary(max_size=255), st.one_of(st.none(), st.integers(0, 9)), st.booleans())
def test_messages_are_written_as_pika_writes_them(
    body: bytes, name: bytes, priority: int | None, lasting: bool
) -> None:
    properties = spec.BasicProperties(delivery_mode=2 if lasting else 1, priority=priority, message_id=name)
    expected = pika.frame.Header(3, len(body), properties).marshal()
    room = FRAME_MAX - wire.FRAME_OVERHEAD
    expected += b"".join(pika.frame.Body(3, body[i : i + room]).marshal() for i in range(0, len(body), room))
    assert wire.content_frames(3, body, name, priority, FRAME_MAX, persistent=lasting) == expected


@given(tags, st.booleans())
def test_settlements_are_written_as_pika_writes_them(tag: int, multiple: bool) -> None:
    assert wire.ack_frame(2, tag, multiple=multiple) == pika.frame.Method(2, spec.Basic.Ack(tag, multiple)).marshal()
    nack = spec.Basic.Nack(tag, multiple, True)
    assert wire.nack_frame(2, tag, multiple=multiple) == pika.frame.Method(2, nack).marshal()


@given(st.binary(min_size=8, max_size=200))
def test_rubbish_is_a_protocol_error_or_not_enough(data: bytes) -> None:
    """No other exception, and nothing is made up of it for channel 1 but what it says."""
    parser = wire.Parser(lambda channel: Heard())
    try:
        parser.feed(data)
    except wire.ProtocolError:
        return


def test_a_frame_without_an_end_is_refused() -> None:
    data = bytearray(theirs(1, spec.Basic.Deliver("1", 1, False, "", "q"), b"x"))
    data[-1] = 0
    with pytest.raises(wire.ProtocolError):
        wire.Parser(lambda channel: Heard()).feed(bytes(data))
