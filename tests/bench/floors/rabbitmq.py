"""pika alone: SelectConnection, publishing with pipelined confirms, consuming with acknowledgements of many at once."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import pika

from tests.bench.floors import PAYLOAD
from tests.bench.stopwatch import tick

_kind = os.environ.get("BENCH_QUEUE", "quorum")
_name = os.environ.get("BENCH_NAME", "bench")
ACK = "after the run (at least once), 100 at once"
DURABILITY = f"{_kind} queue, persistent, publisher confirms"
NOTE = "prefetch 1000; no retry, no delay, one queue; the round trip is one persistent message each way"
RESULTS = False
VERSIONS = ("pika",)
QUEUES = ("{name}", "{name}.calls", "{name}.answers")

_PERSISTENT = pika.BasicProperties(delivery_mode=2)
_PREFETCH = 1000
_ACK_EVERY = 100
_WINDOW = 1000
"""Messages published and not yet confirmed."""


def parameters() -> pika.URLParameters:
    return pika.URLParameters(os.environ["BENCH_URL"].replace("localhost//", "localhost/%2F"))


class Client:
    """One connection and channel, with its queues declared; callbacks work, `run` returns when they say so."""

    def __init__(self) -> None:
        self.channel: Any = None
        self.unconfirmed = 0
        self.on_confirm: Callable[[], None] = lambda: None
        self.connection = pika.SelectConnection(parameters(), on_open_callback=self._opened)
        self.run()

    def _opened(self, connection: Any) -> None:
        connection.channel(on_open_callback=self._channel)

    def _channel(self, channel: Any) -> None:
        self.channel = channel
        left = [_name, f"{_name}.calls", f"{_name}.answers"]

        def ready(_: Any) -> None:
            channel.confirm_delivery(self._confirmed, callback=self.leave)

        def declare(_: Any = None) -> None:
            if left:
                arguments = {"x-queue-type": _kind}
                channel.queue_declare(left.pop(), durable=True, arguments=arguments, callback=declare)
            else:
                channel.basic_qos(prefetch_count=_PREFETCH, callback=ready)

        declare()

    def _confirmed(self, frame: Any) -> None:
        tag = frame.method.delivery_tag
        self.unconfirmed = self.sent - tag if frame.method.multiple else self.unconfirmed - 1
        self.on_confirm()

    sent = 0

    def publish(self, queue: str, payload: bytes) -> None:
        self.sent += 1
        self.unconfirmed += 1
        self.channel.basic_publish("", queue, payload, _PERSISTENT)

    def run(self) -> None:
        self.connection.ioloop.start()

    def leave(self, _: Any = None) -> None:
        self.connection.ioloop.stop()


@functools.cache
def client() -> Client:
    return Client()


def worker() -> list[str]:
    return [sys.executable, "-m", __name__]


def send(count: int, *, bulk: bool, results: bool) -> None:
    made, left = client(), count
    window = _WINDOW if bulk else 1

    def more() -> None:
        nonlocal left
        while left and made.unconfirmed < window:
            made.publish(_name, PAYLOAD)
            left -= 1
        if not left and not made.unconfirmed:
            made.leave()

    made.on_confirm = more
    more()
    made.run()


@functools.cache
def answers() -> None:
    made = client()
    made.on_confirm = lambda: None

    def got(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        channel.basic_ack(method.delivery_tag)
        made.leave()

    made.channel.basic_consume(f"{_name}.answers", got)


def call() -> None:
    answers()
    client().publish(f"{_name}.calls", PAYLOAD)
    client().run()


def serve() -> None:
    made, seen = client(), 0

    def task(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        nonlocal seen
        tick()
        seen += 1
        if seen % _ACK_EVERY == 0:
            channel.basic_ack(method.delivery_tag, multiple=True)

    def asked(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        made.publish(f"{_name}.answers", PAYLOAD)
        channel.basic_ack(method.delivery_tag)

    made.channel.basic_consume(f"{_name}.calls", asked)
    made.channel.basic_consume(_name, task)
    made.run()


if __name__ == "__main__":
    serve()
