"""A connection to a hub without encryption, over TCP or a Unix socket."""

from __future__ import annotations

import socket
import time

from taskq_lib_client.bell import Source, ready
from taskq_lib_zeromq import zmtp
from taskq_lib_zeromq.wire import Broken, Denied

_BEATS = 3
"""Heartbeats without an answer after which the other side is given up."""
_UNLIMITED = 1 << 62
NO_HUB = "what answers there is no hub of taskq, or of another version"


class Stream:
    """A DEALER's side of ZMTP, spoken by the thread that uses it."""

    def __init__(self, address: str, *, connect_timeout: float, timeout: float, heartbeat: float) -> None:
        """Connect and shake hands, each within ``connect_timeout`` seconds; a frame is sent within ``timeout``.

        Raises:
            Denied: the hub encrypts.
            Broken: there is none.
        """
        self._address = address
        self._timeout = timeout
        self._heartbeat = heartbeat
        self._reader = zmtp.Reader(_UNLIMITED)
        self._messages = self._reader.messages
        try:
            self._socket = dial(address, connect_timeout)
        except OSError as error:
            raise Broken(_words(error)) from error
        try:
            self._shake_hands(time.monotonic() + connect_timeout)
            self._socket.settimeout(0.0)
        except OSError as error:
            self.close()
            raise Broken(_words(error)) from error
        except BaseException:
            self.close()
            raise

    def _shake_hands(self, end: float) -> None:
        theirs = greet(self._socket)
        if theirs is None:
            raise Broken(NO_HUB)
        if theirs != "NULL":
            raise Denied(other_mechanism(self._address, encrypted=False))
        self._socket.sendall(zmtp.REST + zmtp.ready(b"DEALER"))
        while not self._reader.shaken:  # libzmq hangs up on frames that come before it is ready itself
            left = end - time.monotonic()
            if left <= 0 or not ready((self._socket,), left):
                raise Broken("it accepts connections and does not answer")
            self._read()

    def close(self) -> None:
        self._socket.close()

    def send(self, frame: bytes) -> None:
        self._write(zmtp.frame(frame))

    def _write(self, data: bytes) -> None:
        try:
            try:
                sent = self._socket.send(data)
            except BlockingIOError:
                sent = 0
            if sent < len(data):
                self._socket.settimeout(self._timeout)
                self._socket.sendall(memoryview(data)[sent:])
                self._socket.settimeout(0.0)
        except OSError as error:
            self.close()
            raise Broken(_words(error)) from error
        except BaseException:  # a signal's handler, maybe in the middle of the frame
            self.close()
            raise

    def poll(self, seconds: float, bell: Source | None = None) -> bool:
        sources = (self._socket,) if bell is None else (self._socket, bell)
        own = self._socket.fileno()
        if own < 0:
            raise Broken("the connection was given up")
        end = time.monotonic() + seconds
        silent, left = 0, seconds
        while not self._messages:
            found = ready(sources, min(left, self._heartbeat))
            if own in found:
                silent = 0
                self._read()
            elif found or left <= self._heartbeat:
                return False
            elif silent == _BEATS:
                raise Broken(f"silence for {_BEATS} heartbeats")
            else:
                silent += 1
                self._write(zmtp.PING)
            left = end - time.monotonic()
        return True

    def receive(self) -> bytes | None:
        return self._messages.popleft() if self._messages else None

    def _read(self) -> None:
        """Take in what is there. Raises: Broken."""
        reader = self._reader
        try:
            if not reader.read(self._socket):
                raise Broken("the connection broke")
            if reader.replies:
                replies, reader.replies = b"".join(reader.replies), []
                self._write(replies)
            if reader.strange:
                raise Broken(NO_HUB)
        except BlockingIOError:
            return  # it only seemed so
        except OSError as error:
            self.close()
            raise Broken(_words(error)) from error
        except zmtp.Nonsense as error:
            self.close()
            raise Broken(f"{NO_HUB} ({error})") from error
        except BaseException:  # a signal's handler, maybe between the reading and the taking note
            self.close()
            raise


def dial(address: str, timeout: float) -> socket.socket:
    """Connect to a ZeroMQ address. Raises: OSError."""
    kind, _, rest = address.partition("://")
    if kind == "ipc":
        dialled = socket.socket(socket.AF_UNIX)
        try:
            dialled.settimeout(timeout)
            dialled.connect(rest)
        except BaseException:
            dialled.close()
            raise
        return dialled
    host, _, port = rest.rpartition(":")
    dialled = socket.create_connection((host.strip("[]"), int(port)), timeout)
    dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return dialled


def greet(dialled: socket.socket) -> str | None:
    """Begin to greet, and return the mechanism that the other side announces, None where it is no ZeroMQ.

    It hears of our mechanism later: one that has another would hang up, maybe before it has said so.
    """
    dialled.sendall(zmtp.SIGNATURE)
    heard = b""
    while len(heard) < zmtp.GREETING_BYTES and zmtp.SIGNATURE.startswith(heard[:1]):
        data = dialled.recv(zmtp.GREETING_BYTES - len(heard))
        if not data:
            break
        heard += data
    return zmtp.mechanism(heard)


def greeting_mechanism(address: str, timeout: float) -> str | None:
    """Ask for the security mechanism of whoever listens at an address; None where that is not said."""
    try:
        with dial(address, timeout) as dialled:
            return greet(dialled)
    except OSError:
        return None


def other_mechanism(address: str, *, encrypted: bool) -> str:
    """Say that a hub encrypts and we do not, or the other way round."""
    return (
        f"the hub at {address} takes no connection {'with' if encrypted else 'without'} CURVE encryption; give "
        "curve_server_key exactly where it was started with a secret key"
    )


def _words(error: OSError) -> str:
    return "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error) or type(error).__name__
