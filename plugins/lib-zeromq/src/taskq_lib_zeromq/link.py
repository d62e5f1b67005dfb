"""One connection to a hub: a DEALER socket that lives as long as its TCP connection.

ZeroMQ reconnects in silence and forgets what was under way, so that is switched off here: a monitor tells of a broken
connection, and a new socket says hello in the old session, whose last request the hub does not carry out twice. A link
is used by one thread at a time. Nothing here survives a fork; owners check the process.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

from taskq.errors import NotSupported, TaskQError
from taskq.spi import Url
from taskq_lib_zeromq import protocol
from taskq_lib_zeromq.protocol import Answer, Failed, Refused, Reset, Welcome, decode_from_hub, encode

_EVENTS = (
    zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)  # fmt: skip
_SLICE_MS = 40
_SENT_AT_ONCE = 100_000
"""Messages that may wait in a socket to be written; ours are batches, each answered, so that it is never reached."""

_context: zmq.Context[zmq.Socket[bytes]] | None = None
_context_pid = 0
_inherited: list[Any] = []
"""Contexts of a parent process, kept so that nothing touches them here."""
_context_lock = threading.Lock()


def context() -> zmq.Context[zmq.Socket[bytes]]:
    """Return this process's ZeroMQ context, with its one I/O thread."""
    global _context, _context_pid
    with _context_lock:
        if _context is None or _context_pid != os.getpid():
            if _context is not None:
                _inherited.append(_context)
            _context = zmq.Context()
            _context.set(zmq.MAX_SOCKETS, 16_000)
            _context_pid = os.getpid()
        return _context


@dataclass(frozen=True)
class Errors:
    """The error types of the side (transport or store) that a link serves."""

    failed: type[TaskQError]
    """The hub could not be reached; nothing was done."""
    lost: type[TaskQError]
    """The connection broke, or no answer came, and what was asked may have been done."""
    refused: type[TaskQError]
    """The hub refuses the keys; repeating is pointless."""
    mismatch: type[TaskQError]
    """The hub speaks another version."""
    full: type[TaskQError]
    """The hub has no room, or its disk; nothing was done."""
    wrong: type[TaskQError]
    """The hub cannot do what it was asked."""


@dataclass(frozen=True)
class Curve:
    """Keys of an encrypted connection, in the 40 characters of Z85."""

    server: str
    public: str
    secret: str = field(repr=False)


@dataclass(frozen=True)
class Target:
    """Where and how to connect; ``addresses`` are tried in order."""

    addresses: tuple[str, ...]
    name: str
    connect_timeout: float
    timeout: float
    heartbeat: float
    curve: Curve | None
    errors: Errors
    first: list[int] = field(default_factory=lambda: [0])
    """Index of the address that answered last. Shared by all links."""
    revive: Callable[[], bool] | None = None
    """Called where no hub answers: whether it has started one."""


class LinkOptions(Protocol):
    """The options that transport and store have in common."""

    @property
    def connect_timeout(self) -> float: ...
    @property
    def timeout(self) -> float: ...
    @property
    def heartbeat(self) -> float: ...
    @property
    def curve_server_key(self) -> str: ...
    @property
    def curve_public_key(self) -> str: ...
    @property
    def curve_secret_key(self) -> str: ...


def address_of(url: Url) -> str:
    """Return the ZeroMQ address of a URL: TCP, or with a path and no host a Unix socket.

    Raises:
        NotSupported: both, or a user or password, which a hub does not know.
    """
    if url.username or url.password:
        raise NotSupported(
            f"{url} has a user or password; a hub knows clients by curve_public_key and curve_secret_key"
        )
    path = url.path.rstrip("/")
    if not path:
        host = url.host or "127.0.0.1"
        return f"tcp://{f'[{host}]' if ':' in host else host}:{url.port or protocol.DEFAULT_PORT}"
    if url.host or url.port:
        raise NotSupported(f"{url} has a path; write zeromq://HOST:PORT, or zeromq:///PATH for a Unix socket")
    return f"ipc://{path}"


def make_target(urls: tuple[Url, ...], options: LinkOptions, errors: Errors) -> Target:
    """Return the target of a configuration.

    Raises:
        NotSupported: a URL that cannot be a hub's, or keys that are none.
    """
    return Target(
        addresses=tuple(address_of(u) for u in urls),
        name="; ".join(str(u.without_query()) for u in urls),
        connect_timeout=options.connect_timeout,
        timeout=options.timeout,
        heartbeat=options.heartbeat,
        curve=_curve(options),
        errors=errors,
    )


def _curve(options: LinkOptions) -> Curve | None:
    server, public, secret = options.curve_server_key, options.curve_public_key, options.curve_secret_key
    if not server and not public and not secret:
        return None
    if not server or bool(public) != bool(secret):
        raise NotSupported(
            "an encrypted connection needs curve_server_key, the hub's public key, and either both of "
            "curve_public_key and curve_secret_key or neither"
        )
    if not public:
        made = zmq.curve_keypair()
        public, secret = made[0].decode(), made[1].decode()
    for name, key in (("curve_server_key", server), ("curve_public_key", public), ("curve_secret_key", secret)):
        if len(key) != 40 or not key.isascii():
            raise NotSupported(f"{name} is not a CURVE key of 40 characters; `taskq zeromq keys` makes a pair")
    return Curve(server, public, secret)


def greeting_mechanism(address: str, timeout: float) -> str | None:
    """Return the security mechanism that a ZeroMQ socket announces (NULL, CURVE), None where it does not say."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01"  # no mechanism of ours, so that it has no reason to hang up
    heard = b""
    try:
        with _dial(address, timeout) as dialled:
            dialled.sendall(greeting)
            while len(heard) < 32 and (data := dialled.recv(64)):
                heard += data
    except OSError:
        pass  # what was heard until then may do
    return heard[12:32].rstrip(b"\0").decode("ascii", "replace") if len(heard) >= 32 else None


def _dial(address: str, timeout: float) -> socket.socket:
    kind, _, rest = address.partition("://")
    if kind == "ipc":
        dialled = socket.socket(socket.AF_UNIX)
        dialled.settimeout(timeout)
        dialled.connect(rest)
        return dialled
    host, _, port = rest.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout)


def _readable(source: zmq.Socket[bytes]) -> bool:
    return bool(int(source.get(zmq.EVENTS)) & zmq.POLLIN)


class Broken(Exception):
    """The connection is gone; why is in the text."""


class Link:
    """A connection that is made when it is needed, and again after it broke."""

    def __init__(self, target: Target, wake_fd: int | None = None, *, sliced: bool = False) -> None:
        """``wake_fd`` ends a ``poll``: at once, or with ``sliced`` within ``_SLICE_MS``, which costs less."""
        self.target = target
        self.session = uuid.uuid4().hex
        self.welcome: Welcome | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._wake_fd = wake_fd
        self._poller = zmq.Poller()
        self._n = 0
        self._handshake_failed = False
        self._sliced = sliced or wake_fd is None
        self._slice = -1
        self._received: bytes | None = None

    @property
    def connected(self) -> bool:
        """Whether the connection stands, as far as is known by now."""
        if self._monitor is None:
            return False
        if _readable(self._monitor):
            self.close()
            return False
        return True

    def connect(self, timeout: float | None = None) -> Welcome:
        """As ``_connect``, with another try where that has brought a hub to life."""
        try:
            return self._connect(timeout)
        except self.target.errors.failed:
            if self.target.revive is None or not self.target.revive():
                raise
            return self._connect(timeout)

    def _connect(self, timeout: float | None) -> Welcome:
        """Connect to the first address that answers, and say hello; what was connected is closed.

        Raises:
            The target's ``failed``, ``refused`` or ``mismatch``.
        """
        target = self.target
        problem: TaskQError | None = None
        count = len(target.addresses)
        wait = target.connect_timeout if timeout is None else min(timeout, target.connect_timeout)
        for step in range(count):
            index = (target.first[0] + step) % count
            address = target.addresses[index]
            try:
                self.welcome = self._greet(address, wait)
                target.first[0] = index
                return self.welcome
            except Broken as error:
                problem = self._judge(address, error, wait)
            except TaskQError as error:
                problem = error
            if not getattr(problem, "retryable", True) and step == count - 1:
                break
        assert problem is not None
        self.close()
        raise problem

    def _judge(self, address: str, error: Broken, wait: float) -> TaskQError:
        """Return why there is no connection: a refusal of keys looks much like a network that broke."""
        target = self.target
        if self._handshake_failed:
            theirs = greeting_mechanism(address, wait)
            mine = "NULL" if target.curve is None else "CURVE"
            if theirs is not None and theirs != mine:
                return self._other_mechanism(address)
            if theirs == "CURVE":
                return target.errors.refused(
                    f"the hub at {address} does not accept the keys of this connection; compare curve_server_key with "
                    "the hub's public key, and see whether the hub knows curve_public_key"
                )
        return target.errors.failed(
            f"no hub answers at {address}: {error}; start one with `taskq zeromq hub`, or correct the URL"
        )

    def _other_mechanism(self, address: str) -> TaskQError:
        mine = "with" if self.target.curve is not None else "without"
        return self.target.errors.refused(
            f"the hub at {address} takes no connection {mine} CURVE encryption; give curve_server_key exactly where "
            "it was started with a secret key"
        )

    def _greet(self, address: str, timeout: float) -> Welcome:
        self.close()
        self._handshake_failed = False
        end = time.monotonic() + timeout
        self._make_socket(address)
        try:
            self.send(encode(protocol.Hello(protocol.VERSION, self.session, f"pid {os.getpid()}")))
            while True:
                left = end - time.monotonic()
                if left <= 0:
                    raise Broken(f"no answer within {timeout:g} s")
                if not self.poll(left, wakes=False):
                    continue
                frame = self.receive()
                if isinstance(frame, Welcome):
                    return frame
                if isinstance(frame, Refused):
                    raise self.target.errors.mismatch(f"the hub at {address} refuses this client: {frame.text}")
        except BaseException:
            self.close()
            raise

    def _make_socket(self, address: str) -> None:
        target = self.target
        dealer = context().socket(zmq.DEALER)
        try:
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.setsockopt(zmq.RECONNECT_IVL, -1)
            dealer.setsockopt(zmq.SNDHWM, _SENT_AT_ONCE)
            dealer.setsockopt(zmq.RCVHWM, _SENT_AT_ONCE)
            dealer.setsockopt(zmq.IPV6, int("[" in address))
            beat = round(target.heartbeat * 1000)
            dealer.setsockopt(zmq.HEARTBEAT_IVL, beat)
            dealer.setsockopt(zmq.HEARTBEAT_TIMEOUT, beat * 3)
            if target.curve is not None:
                dealer.curve_serverkey = target.curve.server.encode()
                dealer.curve_publickey = target.curve.public.encode()
                dealer.curve_secretkey = target.curve.secret.encode()
            self._monitor = dealer.get_monitor_socket(_EVENTS)
            self._socket = dealer
            dealer.connect(address)
        except zmq.ZMQError as error:
            if self._socket is None:
                dealer.close(0)
            self.close()
            raise Broken(str(error)) from error
        self._poller = zmq.Poller()
        self._poller.register(dealer, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        if self._wake_fd is not None:
            self._poller.register(self._wake_fd, zmq.POLLIN)

    def close(self) -> None:
        """Close the connection at once; what was not written yet is dropped."""
        socket, self._socket = self._socket, None
        self._received, self._slice = None, -1
        monitor, self._monitor = self._monitor, None
        if socket is not None:
            try:
                socket.disable_monitor()
            finally:
                if monitor is not None:
                    monitor.close(0)
                socket.close(0)

    # ---------------------------------------------------------------------------------------------------- frames

    def send(self, data: bytes) -> None:
        """Queue a frame for writing. Raises: Broken: it was not."""
        if self._socket is None:
            raise Broken("not connected")
        try:
            self._socket.send(data, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            raise Broken(self._why() or str(error)) from error

    def poll(self, seconds: float, *, wakes: bool = True) -> bool:
        """Wait until a frame is there (True), or the wake-up rings or the time has passed (False). Raises: Broken."""
        socket = self._socket
        if socket is None:
            raise Broken("not connected")
        if self._received is not None:
            return True
        if seconds > 0 and (self._sliced or not wakes):
            return self._receive_in_slices(socket, seconds, wakes=wakes)
        ready = self._poller.poll(max(0, round(seconds * 1000 + 0.499)))
        if not ready:
            return False
        woken = broken = False
        for source, _ in ready:
            if source is socket:
                return True
            if source is self._monitor:
                broken = True
            else:
                woken = True
        if broken:
            raise Broken(self._why() or "the connection broke")
        if woken and not wakes:
            time.sleep(0.001)
        return False

    def _receive_in_slices(self, socket: zmq.Socket[bytes], seconds: float, *, wakes: bool) -> bool:
        """As ``poll``, by blocking receives: a third of the system calls, and all else is noticed between two."""
        end = time.monotonic() + seconds
        left = seconds
        while True:
            slice_ms = max(1, min(_SLICE_MS, round(left * 1000 + 0.499)))
            if slice_ms != self._slice:
                socket.setsockopt(zmq.RCVTIMEO, slice_ms)
                self._slice = slice_ms
            try:
                self._received = socket.recv()
                return True
            except zmq.Again:
                pass
            except zmq.ZMQError as error:
                raise Broken(str(error)) from error
            if self._monitor is not None and _readable(self._monitor):
                raise Broken(self._why() or "the connection broke")
            left = end - time.monotonic()
            if left <= 0 or (wakes and self._wake_fd is not None and select.select((self._wake_fd,), (), (), 0)[0]):
                return False

    def receive(self) -> Any:
        """Return the next frame that is there, None where there is none. Raises: Broken."""
        socket = self._socket
        if socket is None:
            raise Broken("not connected")
        try:
            if self._received is not None:
                data, self._received = self._received, None
            else:
                data = socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None
        except zmq.ZMQError as error:
            raise Broken(str(error)) from error
        try:
            return decode_from_hub(data)
        except msgspec.MsgspecError as error:
            self.close()
            raise Broken(f"what answers there is no hub of taskq, or of another version ({error})") from error

    def _why(self) -> str:
        """Return what the monitor has to say."""
        reasons = []
        monitor = self._monitor
        while monitor is not None and _readable(monitor):
            event = recv_monitor_message(monitor)["event"]
            if event == zmq.EVENT_CLOSED:
                reasons.append("connection refused")
            elif event == zmq.EVENT_DISCONNECTED:
                reasons.append("the connection broke")
            else:
                self._handshake_failed = True
                reasons.append("the handshake failed")
        return ", ".join(dict.fromkeys(reasons))

    # -------------------------------------------------------------------------------------------------- requests

    def number(self) -> int:
        """Return a new request number."""
        self._n += 1
        return self._n

    def request(self, make: Callable[[int], Any]) -> msgspec.Raw:
        """Carry out a request, over a new connection too if it must be; return the answer's value.

        Raises:
            The target's errors: ``failed`` where nothing was done, ``lost`` where that is not known.
        """
        n = self.number()
        data = encode(make(n))
        end = time.monotonic() + self.target.timeout
        epoch = None
        if not self.connected:
            self.connect()
        for again in (False, True):
            assert self.welcome is not None
            try:
                if again:
                    self._reconnect(end)
                    if self.welcome.epoch != epoch or not self.welcome.session_known:
                        raise Broken("another hub has taken its place")
                epoch = self.welcome.epoch
                self.send(data)
                return self._answer(n, data, end)
            except Broken as error:
                self.close()
                if again or time.monotonic() >= end:
                    raise self.target.errors.lost(
                        f"no answer from the hub {self.target.name} ({error}); it may have done what it was asked"
                    ) from error
        raise AssertionError

    def _reconnect(self, end: float) -> None:
        try:
            self.connect(max(0.05, end - time.monotonic()))
        except TaskQError as error:
            raise Broken(str(error)) from error

    def _answer(self, n: int, data: bytes, end: float) -> msgspec.Raw:
        while True:
            left = end - time.monotonic()
            if left <= 0:
                raise Broken(f"silence for {self.target.timeout:g} s")
            if not self.poll(left, wakes=False):
                continue
            frame = self.receive()
            if type(frame) is Answer and frame.n == n:
                return frame.value
            if type(frame) is Failed and frame.n == n:
                raise self.failure(frame)
            if type(frame) is Reset:
                self.send(encode(protocol.Hello(protocol.VERSION, self.session, f"pid {os.getpid()}")))
            elif type(frame) is Welcome:
                self.welcome = frame
                self.send(data)

    def failure(self, frame: Failed) -> TaskQError:
        """Return the error of an answer."""
        error = self.target.errors.full if frame.code == "full" else self.target.errors.wrong
        return error(f"the hub {self.target.name}: {frame.text}")


class Links:
    """Idle connections of one transport or store; each thread that asks something borrows one."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._idle: deque[Link] = deque()
        self._closed = False

    def open(self) -> Welcome:
        """Connect once, so that what is wrong is found."""
        self._closed = False
        link = Link(self._target)
        welcome = link.connect()
        self._idle.append(link)
        return welcome

    @contextmanager
    def borrowed(self) -> Iterator[Link]:
        """Lend a link to the calling thread."""
        try:
            link = self._idle.pop()
        except IndexError:
            link = Link(self._target)
        try:
            yield link
        finally:
            if self._closed:
                link.close()
            else:
                self._idle.append(link)

    def request(self, make: Callable[[int], Any]) -> msgspec.Raw:
        """Carry out a request on a borrowed link. Raises: as ``Link.request``."""
        try:
            link = self._idle.pop()
        except IndexError:
            link = Link(self._target)
        try:
            return link.request(make)
        finally:
            if self._closed:
                link.close()
            else:
                self._idle.append(link)

    def close(self) -> None:
        """Close all that is idle; what is borrowed closes when it comes back."""
        self._closed = True
        while True:
            try:
                self._idle.pop().close()
            except IndexError:
                return
