"""What a channel says and when, without a server."""

from __future__ import annotations

from typing import Any, cast

import pika.spec as spec

from taskq_lib_amqp import wire
from taskq_lib_amqp.channel import Channel


class Wire:
    """A link that keeps what is written, with what the channel looked like then."""

    def __init__(self) -> None:
        self.channels: dict[int, Channel] = {}
        self.written: list[tuple[bytes, bool]] = []

    def write(self, data: bytes) -> None:
        self.written.append((data, self.channels[1].closed is not None))


def test_a_channel_counts_as_closed_once_its_end_is_answered() -> None:
    """Whoever sees it closed may open it again at once; the server must have the answer before."""
    link = Wire()
    channel = Channel(cast("Any", link), 1)
    channel.on_method(spec.Channel.Close(404, "no queue", 50, 10), None, b"")
    assert link.written == [(wire.method_frame(1, spec.Channel.CloseOk()), False)]
    assert channel.closed is not None
    assert channel.closed.code == 404
