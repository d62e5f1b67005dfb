"""One connection to an AMQP server, on a plain socket.

Whoever needs something reads: a thread that waits for an answer, a confirm or a message takes the reading turn, reads
from the socket and hands to each channel what is its; threads that wait meanwhile are told. So an answer reaches its
thread without a hop over another one. What arrives while nobody waits is read by the ``Keeper``, which also sends the
heartbeats: a task may block its thread for as long as it likes.

A link is made connected and is never repaired: its owner makes a new one.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

import pika.spec as spec

from taskq.errors import TaskQError
from taskq.spi import Url
from taskq_lib_amqp import wire
from taskq_lib_amqp.channel import Channel, ChannelClosed, Zero
from taskq_lib_amqp.servers import Target, address, credentials, virtual_host
from taskq_lib_amqp.waiting import Bell, wait_for

_CHUNK = 1 << 16
_FRAME_MAX = 131072
_SLICE = 0.02
"""Longest sleep in seconds of a thread that must hear a bell while another one reads."""
_ALIVE = 1.0


class Link:
    """A connection, open when it is made. Raises the target's typed errors."""

    def __init__(self, target: Target, url: Url, role: str) -> None:
        self.target = target
        self.url = url
        self.role = role
        self.name = str(url.without_query())
        self.error: TaskQError | None = None
        self.blocked: str | None = None
        """Why the server does not read from this connection, None when it does."""
        self.channels: dict[int, Channel] = {}
        self.properties: dict[str, Any] = {}
        self.frame_max = _FRAME_MAX
        self.heartbeat = 0
        self.pid = os.getpid()
        self._parser = wire.Parser(self.channels.get)
        self._reading = threading.Lock()
        self._writing = threading.Lock()
        self._tls = threading.Lock() if target.tls is not None else None
        self._news = threading.Condition()
        self._listening = 0
        self.last_read = self.last_write = time.monotonic()
        deadline = time.monotonic() + target.connect_timeout
        self._sock = self._dial()
        try:
            self._greet(deadline)
        except BaseException:
            self._sock.close()
            raise

    # ---------------------------------------------------------------------------------------------- connecting

    def _dial(self) -> Any:
        host, port = address(self.url)
        try:
            sock: Any = socket.create_connection((host, port), timeout=self.target.connect_timeout)
        except OSError as error:
            raise self.target.errors.failed(f"{self.name}: {_reason(error)}") from error
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self.target.tls is not None:
                sock = self.target.tls.wrap_socket(sock, server_hostname=host)
            sock.setblocking(False)
        except ssl.SSLCertVerificationError as error:
            sock.close()
            raise self.target.errors.refused(
                f"{self.name}: the server's certificate is not trusted ({error.verify_message}); name its authority "
                "with tls_ca_file"
            ) from error
        except OSError as error:
            sock.close()
            raise self.target.errors.failed(f"{self.name}: no TLS connection: {_reason(error)}") from error
        return sock

    def _greet(self, deadline: float) -> None:
        zero = Zero(self, 0)
        self.write(wire.GREETING)
        start = zero.expect(spec.Connection.Start, deadline)
        self.properties = dict(start.server_properties or {})
        mechanisms = (start.mechanisms or "").split() if isinstance(start.mechanisms, str) else ["PLAIN"]
        user, password = credentials(self.url)
        external = self.target.tls is not None and "EXTERNAL" in mechanisms and self.url.username is None
        zero.send(
            spec.Connection.StartOk(
                client_properties={
                    "product": "taskq",
                    "connection_name": f"{self.target.product} {self.role} {os.getpid()}",
                    "capabilities": {
                        "authentication_failure_close": True,
                        "basic.nack": True,
                        "connection.blocked": True,
                        "consumer_cancel_notify": True,
                        "publisher_confirms": True,
                    },
                },
                mechanism="EXTERNAL" if external else "PLAIN",
                response="" if external else f"\0{user}\0{password}",
                locale="en_US",
            )
        )
        tune = zero.expect(spec.Connection.Tune, deadline)
        self.frame_max = min(_FRAME_MAX, tune.frame_max or _FRAME_MAX)
        self.heartbeat = self.target.heartbeat
        zero.send(spec.Connection.TuneOk(tune.channel_max, self.frame_max, self.heartbeat))
        zero.send(spec.Connection.Open(virtual_host(self.url)))
        zero.expect(spec.Connection.OpenOk, deadline)

    # ------------------------------------------------------------------------------------------------- writing

    def write(self, data: bytes, timeout: float | None = None) -> None:
        """Send bytes, whole frames. Raises the side's lost error; the link is of no use then."""
        if self.error is not None:
            raise self.error
        with self._writing:
            self._write(data, self.target.timeout if timeout is None else timeout)

    def _write(self, data: bytes, timeout: float) -> None:
        try:
            sent = self._send(data)
            if sent < len(data):
                view = memoryview(data)[sent:]
                deadline = time.monotonic() + timeout
                while view:
                    if self.error is not None:
                        raise self.error
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise self._fail(self._too_slow(timeout))
                    wait_for(min(left, 0.2), write=(self._sock,))
                    if sent := self._send(view):
                        view = view[sent:]
                        deadline = time.monotonic() + timeout
        except (OSError, ValueError) as error:
            raise self._broken(error) from error
        self.last_write = time.monotonic()

    def _too_slow(self, timeout: float) -> TaskQError:
        why = f"it takes no messages: {self.blocked}" if self.blocked else "it may be overloaded or cut off"
        return self.target.errors.lost(f"{self.name} read nothing for {timeout:g} s; {why}")

    def _send(self, data: Any) -> int:
        try:
            if self._tls is None:
                return int(self._sock.send(data))
            with self._tls:
                return int(self._sock.send(data))
        except (BlockingIOError, InterruptedError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return 0

    def beat(self) -> None:
        """Send a heartbeat if one is due and nobody is writing anyway."""
        if not self.heartbeat or self.error is not None:
            return
        now = time.monotonic()
        if now - self.last_write >= self.heartbeat / 2 and self._writing.acquire(blocking=False):
            try:
                self._write(wire.HEARTBEAT, 1.0)
            except TaskQError:
                pass  # the owner finds out
            finally:
                self._writing.release()
        if now - self.last_read > self.heartbeat * 2 + _ALIVE:
            self._fail(
                self.target.errors.lost(f"{self.name} was silent for more than {self.heartbeat * 2} s; taken for dead")
            )

    # ------------------------------------------------------------------------------------------------- reading

    def wait(self, ready: Callable[[], bool], timeout: float, bell: Bell | None = None) -> bool:
        """Read until something is so, or the bell rings; whether it is so. Raises the side's lost error."""
        deadline = time.monotonic() + timeout
        while not ready():
            if self.error is not None:
                raise self.error
            if bell is not None and bell.rung:
                return False
            left = deadline - time.monotonic()
            if left < 0:
                return False
            if self._reading.acquire(blocking=False):
                try:
                    if not ready():
                        self._read(left, bell)
                finally:
                    self._next_reader()
            else:
                with self._news:
                    if self._reading.acquire(blocking=False):
                        self._reading.release()
                    elif not ready() and self.error is None:
                        self._listening += 1
                        self._news.wait(min(left, _SLICE if bell is not None else 1.0))
                        self._listening -= 1
        return True

    def _next_reader(self) -> None:
        with self._news:
            self._reading.release()
            if self._listening:
                self._news.notify_all()

    def read_now(self) -> None:
        """Take what has arrived, without waiting; unless somebody reads already. Nothing is raised."""
        if self.error is None and self._reading.acquire(blocking=False):
            try:
                self._read(0.0, None)
            except TaskQError:
                pass  # kept in `error`
            finally:
                self._next_reader()

    def _read(self, timeout: float, bell: Bell | None) -> None:
        """Read what there is, after waiting for it. The caller has the reading turn."""
        if self.error is not None:
            raise self.error
        try:
            data = self._receive()
            if data is None:
                if timeout > 0:
                    wait_for(timeout, read=(self._sock,) if bell is None else (self._sock, bell))
                    data = self._receive()
                if data is None:
                    return
        except (OSError, ValueError) as error:
            raise self._broken(error) from error
        if not data:
            raise self._fail(self.target.errors.lost(f"{self.name} closed the connection"))
        self.last_read = time.monotonic()
        try:
            self._parser.feed(data)
        except wire.ProtocolError as error:
            raise self._fail(self.target.errors.lost(f"{self.name} does not speak AMQP 0-9-1: {error}")) from error
        if self._listening:
            with self._news:
                self._news.notify_all()

    def _receive(self) -> bytes | None:
        try:
            if self._tls is None:
                return bytes(self._sock.recv(_CHUNK))
            with self._tls:
                return bytes(self._sock.recv(_CHUNK))
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None

    # -------------------------------------------------------------------------------------------------- ending

    def closed_by_server(self, code: int, text: str) -> None:
        """Take the server's parting word."""
        with contextlib.suppress(TaskQError):
            self.write(wire.method_frame(0, spec.Connection.CloseOk()), 0.5)
        errors = self.target.errors
        user = credentials(self.url)[0]
        if code == 403:
            error = errors.refused(f"{self.name} refused user {user!r}: {text}; check user, password and rights")
        elif code == 530:
            error = errors.refused(
                f"{self.name} refused virtual host {virtual_host(self.url)!r}: {text}; make it with 'rabbitmqctl "
                "add_vhost', give the user rights there, or correct the URL's path"
            )
        else:
            error = errors.lost(f"{self.name} closed the connection: {code} {text}")
        self._fail(error)

    def failed(self, why: str) -> TaskQError:
        """Give the link up; return the error to raise."""
        return self._fail(self.target.errors.lost(f"{self.name}: {why}"))

    def silent(self, timeout: float) -> TaskQError:
        """Return the error for an answer that did not come; the link goes on."""
        why = f" (it takes no messages: {self.blocked})" if self.blocked else ""
        return self.target.errors.lost(f"{self.name} did not answer within {timeout:g} s{why}")

    def _broken(self, error: BaseException) -> TaskQError:
        return self._fail(self.target.errors.lost(f"the connection to {self.name} broke: {_reason(error)}"))

    def _fail(self, error: TaskQError) -> TaskQError:
        if self.error is None:
            self.error = error
            if self.pid == os.getpid():
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)
            with self._news:
                self._news.notify_all()
        return self.error

    def close(self, timeout: float = 1.0) -> None:
        """Say good-bye, where there is a connection, and close it; nothing is raised."""
        if self.pid != os.getpid():
            return
        if self.error is None:
            closing = spec.Connection.Close(200, "bye", 0, 0)
            with contextlib.suppress(TaskQError, ChannelClosed):
                self.channels[0].ask(closing, timeout=timeout)
        self._fail(self.target.errors.lost(f"the connection to {self.name} was closed"))
        with self._reading, self._writing:
            self._sock.close()


def connect(target: Target, role: str) -> Link:
    """Connect to the first server that answers. Raises the target's typed errors."""
    problems: list[str] = []
    count = len(target.urls)
    for step in range(count):
        index = (target.first[0] + step) % count
        try:
            link = Link(target, target.urls[index], role)
        except TaskQError as error:
            if isinstance(error, target.errors.refused):
                raise
            problems.append(str(error))
            continue
        target.first[0] = index
        return link
    raise target.errors.failed(
        f"cannot connect to RabbitMQ: {'; '.join(problems)}. Is the server running, and are host and port right?"
    )


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
