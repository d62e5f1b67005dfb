"""What a consuming channel keeps in mind about its windows, without a server."""

from __future__ import annotations

import threading
from typing import Any, cast

import pika.spec as spec

from taskq_lib_amqp.wire import Incoming
from taskq_transport_amqp.windows import ConsumeChannel, Source


class Wire:
    def __init__(self) -> None:
        self.channels: dict[int, Any] = {}

    def write(self, data: bytes) -> None:
        pass


def made(n: int, size: int) -> tuple[ConsumeChannel, list[Source]]:
    """A channel with a window of this size for each of n queues."""
    channel = ConsumeChannel(cast("Any", Wire()), 1, threading.Lock())
    sources = [Source(f"q{i}", i, 1, classic=False) for i in range(n)]
    channel.widen([(source, size) for source in sources])
    return channel, sources


def test_a_window_is_remembered_until_the_server_has_ended_it() -> None:
    """A message may be under way while its window is cancelled, however many are cancelled at once."""
    channel, sources = made(200, 1)
    tags = list(channel.windows)
    channel.cancel(sources)
    assert channel.capacity() == 0
    channel.on_deliveries([Incoming(tag, n, False, None, 0, b"late") for n, tag in enumerate(tags, 1)])
    assert channel.capacity() == len(channel.buffer) == 200
    for tag in tags:
        channel.on_method(spec.Basic.CancelOk(tag.decode()), None, b"")
    channel.give_back([channel.buffer.popleft() for _ in tags])
    assert channel.capacity() == 0
    assert not channel.windows


def test_room_that_is_moved_counts_until_the_server_has_ended_its_window() -> None:
    channel, sources = made(2, 10)
    tag = next(iter(channel.windows))
    channel.on_deliveries([Incoming(tag, 1, False, None, 0, b"a")])
    channel.cancel(sources[:1], answered=True)
    assert channel.capacity() == 20
    channel.on_method(spec.Basic.CancelOk(tag.decode()), None, b"")
    assert (channel.capacity(), channel.returned) == (11, 1)
    assert [(s.open, s.room) for s in sources] == [(0, 0), (10, 10)]
