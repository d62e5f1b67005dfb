"""A channel of a connection: questions and their answers; and channel 0, which is the connection's own."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import pika.spec as spec

from taskq.errors import TaskQError
from taskq_lib_amqp import wire

if TYPE_CHECKING:
    from taskq_lib_amqp.link import Link

logger = logging.getLogger("taskq.amqp")


class ChannelClosed(Exception):
    """The server closed the channel: what was asked of it is refused. ``code`` is AMQP's reply code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Channel:
    """A channel of a link: asks and gets answers. Subclasses take deliveries and confirms."""

    def __init__(self, link: Link, number: int) -> None:
        self.link = link
        self.number = number
        self.closed: ChannelClosed | None = None
        self._answers: deque[tuple[Any, Any, bytes]] = deque()
        self._overdue = 0
        """Answers to come that nobody waits for any more."""
        self._turn = threading.Lock()
        link.channels[number] = self

    def open(self) -> None:
        """Open it on the server. Raises the side's typed errors."""
        self.ask(spec.Channel.Open())

    def ask(self, method: Any, *, timeout: float | None = None) -> Any:
        """Send a method that the server answers; return the answer.

        Raises:
            ChannelClosed: the server refused it.
        """
        return self.ask_for_content(method, timeout=timeout)[0]

    def ask_for_content(self, method: Any, *, timeout: float | None = None) -> tuple[Any, Any, bytes]:
        """As ``ask``, for answers that come with a message: (method, properties, body)."""
        link = self.link
        timeout = link.target.timeout if timeout is None else timeout
        with self._turn:
            self._answers.clear()
            self.send(method)
            if not link.wait(lambda: bool(self._answers) or self.closed is not None, timeout):
                self._overdue += 1
                raise link.silent(timeout)
            if self.closed is not None:
                raise self.closed
            return self._answers.popleft()

    def send(self, method: Any) -> None:
        """Send a method that needs no answer."""
        if self.closed is not None:
            raise self.closed
        self.link.write(wire.method_frame(self.number, method))

    def close(self, timeout: float = 1.0) -> None:
        """Close it; nothing is raised."""
        if self.closed is None and self.link.error is None:
            with contextlib.suppress(TaskQError, ChannelClosed):
                self.ask(spec.Channel.Close(200, "bye", 0, 0), timeout=timeout)
        self.closed = self.closed or ChannelClosed(200, "closed here")
        self.link.channels.pop(self.number, None)

    # -- wire.Listener ------------------------------------------------------------------------------------------

    def on_deliveries(self, deliveries: list[wire.Incoming]) -> None:
        """Drop them: nobody here consumes."""

    def on_confirm(self, tag: int, multiple: bool, accepted: bool) -> None:
        """Ignore it: nobody here publishes."""

    def on_method(self, method: Any, properties: Any, body: bytes) -> None:
        if isinstance(method, spec.Channel.Close):
            with contextlib.suppress(TaskQError):
                self.link.write(wire.method_frame(self.number, spec.Channel.CloseOk()))
            # not earlier: whoever sees it may open the channel again at once, which must come after the answer
            self.closed = ChannelClosed(method.reply_code, method.reply_text)
        elif self._overdue:
            self._overdue -= 1
        else:
            self._answers.append((method, properties, body))


class Zero(Channel):
    """Channel 0: the connection itself."""

    def on_method(self, method: Any, properties: Any, body: bytes) -> None:
        link = self.link
        if isinstance(method, spec.Connection.Close):
            link.closed_by_server(method.reply_code, method.reply_text)
        elif isinstance(method, spec.Connection.Blocked):
            link.blocked = method.reason or "no reason given"
            logger.warning("%s takes no messages just now: %s", link.name, link.blocked)
        elif isinstance(method, spec.Connection.Unblocked):
            link.blocked = None
            logger.info("%s takes messages again", link.name)
        else:
            self._answers.append((method, properties, body))

    def expect(self, kind: type, deadline: float) -> Any:
        """Wait for the server's next step in the greeting."""
        left = max(0.0, deadline - time.monotonic())
        if not self.link.wait(lambda: bool(self._answers), left):
            raise self.link.silent(self.link.target.connect_timeout)
        method = self._answers.popleft()[0]
        if not isinstance(method, kind):
            raise self.link.failed(f"it said {type(method).__name__} where {kind.__name__} was due")
        return method
