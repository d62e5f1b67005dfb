"""One connection to a Redis server: made by redis-py, used without it.

Making one is what redis-py is good at (TLS, authentication, the greeting); its pool, command dispatch and reading cost
more than a command. Scripts go by their digest and are loaded where the server does not know them. Nothing here
survives a fork; owners check the process.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import redis
from hiredis import Reader, pack_command
from redis.backoff import NoBackoff
from redis.retry import Retry

from taskq.errors import NotSupported, TaskQError
from taskq.spi import Url
from taskq_lib_client.bell import Source, ready

DEFAULT_PORT = 6379
SENTINEL_PORT = 26379
_BROKEN = (redis.exceptions.RedisError, OSError)
_BUFFER = 1 << 16
# What a server says that cannot work just now, or is no master any more; repeating helps, on another server maybe.
_NOT_NOW = ("READONLY", "LOADING", "MASTERDOWN", "NOREPLICAS", "MISCONF", "BUSY ", "CLUSTERDOWN", "UNBLOCKED")


@dataclass(frozen=True)
class Errors:
    """The error types of the side (transport or store) that a connection serves."""

    failed: type[TaskQError]
    """Nothing was done: the server could not be reached, or says that it cannot work just now."""
    lost: type[TaskQError]
    """The connection broke before the answer."""
    refused: type[TaskQError]
    """The server refuses user, database or command; repeating is pointless."""
    full: type[TaskQError]
    """The server has no memory left; nothing was done."""


@dataclass(frozen=True)
class Target:
    """Where and how to connect; ``urls`` are tried in order."""

    urls: tuple[Url, ...]
    connect_timeout: float
    timeout: float
    errors: Errors
    tls: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of ``redis.SSLConnection``."""
    service: str = ""
    """Name that the sentinels know the servers by; then ``urls`` are those of the sentinels."""
    first: list[int] = field(default_factory=lambda: [0])
    """Index of the URL to try first: not the one that turned out to be a replica. Shared by all connections."""

    @property
    def name(self) -> str:
        """The servers without secrets, for messages."""
        return "; ".join(str(u.without_query()) for u in self.urls)

    @property
    def place(self) -> tuple[Any, ...]:
        """What must be equal for two plugins to meet on one database."""
        return tuple((u.host or "localhost", u.port, u.path.strip("/") or "0") for u in self.urls), self.service


class ServerOptions(Protocol):
    """The options that transport and store have in common."""

    @property
    def connect_timeout(self) -> float: ...
    @property
    def timeout(self) -> float: ...
    @property
    def sentinel_service(self) -> str: ...
    @property
    def tls_ca_file(self) -> str: ...
    @property
    def tls_cert_file(self) -> str: ...
    @property
    def tls_key_file(self) -> str: ...
    @property
    def tls_verify(self) -> bool: ...


def make_target(urls: tuple[Url, ...], options: ServerOptions, errors: Errors) -> Target:
    """Return the target that options describe.

    Raises:
        NotSupported: an option that does not go with the URL's scheme.
    """
    scheme = urls[0].scheme
    if scheme.endswith("+sentinel") != bool(options.sentinel_service):
        raise NotSupported(
            f"{scheme}:// and sentinel_service={options.sentinel_service!r} do not go together: write "
            "redis+sentinel://HOST:26379/0?sentinel_service=NAME, several of them with ';' between"
        )
    files = {"ca": options.tls_ca_file, "cert": options.tls_cert_file, "key": options.tls_key_file}
    tls: dict[str, Any] = {}
    if _is_tls(scheme):
        names = {"ca": "ssl_ca_certs", "cert": "ssl_certfile", "key": "ssl_keyfile"}
        tls = {names[kind]: file for kind, file in files.items() if file}
        tls |= {"ssl_cert_reqs": "required" if options.tls_verify else "none", "ssl_check_hostname": options.tls_verify}
    elif any(files.values()) or not options.tls_verify:
        raise NotSupported(f"{scheme}:// is not encrypted, the tls_ options would do nothing; write rediss://")
    return Target(urls, options.connect_timeout, options.timeout, errors, tls, options.sentinel_service)


def _is_tls(scheme: str) -> bool:
    return scheme.partition("+")[0] in ("rediss", "valkeys")


class Script:
    """A Lua script and its digest."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode()).hexdigest()  # noqa: S324  the server's own name for it


class ServerError(Exception):
    """The server answered with an error; ``code`` is its first word."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code = text.partition(" ")[0]


class Redirected(ServerError):
    """A node of a cluster says that another has the slot, or (``ask``) may have it already."""

    def __init__(self, text: str, slot: int, address: tuple[str, int], *, ask: bool) -> None:
        super().__init__(text)
        self.slot = slot
        self.address = address
        self.ask = ask


class RedisLink:
    """A connection that is made at first use, and again after it broke; for one thread at a time."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._connection: Any = None
        self._sock: Any = None
        self._reader: Any = None
        self._buffer = bytearray(_BUFFER)
        self._errors = target.errors
        self._timeout = target.timeout
        self._pending = 0
        self._doomed = False
        self.streaming = False
        """Whether the server sends of itself what was subscribed to, so that waiting input is no sign of the end."""
        self.peer = ""
        """Host that the connection goes or went to."""

    # -------------------------------------------------------------------------------------------------- commands

    def call(self, *args: Any) -> Any:
        """Send one command and return its answer. Raises the side's typed errors; ServerError for an error answer."""
        self.send(*args)
        return self.receive()

    def script(self, script: Script, keys: Sequence[Any], args: Sequence[Any]) -> Any:
        """Run a script, loading it where the server does not know it."""
        try:
            return self.call(b"EVALSHA", script.sha, len(keys), *keys, *args)
        except ServerError as error:
            if error.code != "NOSCRIPT":
                raise
        return self.call(b"EVAL", script.text, len(keys), *keys, *args)

    def scripts(self, runs: Iterable[tuple[Script, Sequence[Any], Sequence[Any]]]) -> list[Any]:
        """Run scripts, each sent as soon as ``runs`` has made it; an error is returned in its answer's place.

        None is taken from ``runs`` after one that could not be sent.
        """
        begun: list[tuple[Script, Sequence[Any], Sequence[Any]]] = []
        unsent: list[TaskQError] = []
        for script, keys, args in runs:
            begun.append((script, keys, args))
            try:
                self.send(b"EVALSHA", script.sha, len(keys), *keys, *args)
            except TaskQError as error:
                unsent.append(error)
                break
        answers: list[Any] = [self.answer() for _ in range(len(begun) - len(unsent))] + unsent
        for n, answer in enumerate(answers):
            if isinstance(answer, ServerError) and answer.code == "NOSCRIPT":
                script, keys, args = begun[n]
                try:
                    answers[n] = self.call(b"EVAL", script.text, len(keys), *keys, *args)
                except (ServerError, TaskQError) as error:
                    answers[n] = error
        return answers

    def pipeline(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands in one write and return all answers; an error answer is returned as the error."""
        self.begin(commands)
        answers: list[Any] = []
        for _ in commands:
            answers.append(self.answer())
            if isinstance(answers[-1], TaskQError) and self._sock is None:
                raise answers[-1]
        return answers

    def begin(self, commands: Sequence[Sequence[Any]]) -> None:
        """Send commands in one write; their answers are read later, by ``receive``."""
        self._send(b"".join([pack_command(tuple(c)) for c in commands]), len(commands))

    def send(self, *args: Any) -> None:
        """Send one command whose answer is read later, by ``receive``."""
        self._send(pack_command(args), 1)

    def _send(self, packed: bytes, count: int) -> None:
        idle = self._pending <= 0 and not self.streaming
        # nothing is due, so that input is the end, or a parting word: what was sent now would be sent in vain
        if idle and self._sock is not None and (self._doomed or self.has_input() or ready((self._sock,), 0.0)):
            self.close()
        if self._sock is None:
            self._connect()
        try:
            self._sock.sendall(packed)
        except _BROKEN as error:
            raise self._broken(error) from error
        except BaseException:
            self.close()  # what was sent of it is not known
            raise
        self._pending += count

    def receive(self) -> Any:
        """Read the answer of a command that was sent before."""
        sock, reader = self._sock, self._reader
        if sock is None:
            raise self._errors.lost(f"the connection to {self._target.name} was closed before the answer came")
        try:
            while (answer := reader.gets()) is False:  # it is not all there; no answer is False
                size = sock.recv_into(self._buffer)
                if not size:
                    raise ConnectionError("the server closed it")
                reader.feed(self._buffer, 0, size)
        except _BROKEN as error:
            raise self._broken(error) from error
        except BaseException:
            self.close()  # lest the answer be taken for that of another command
            raise
        self._pending -= 1
        if isinstance(answer, redis.exceptions.ResponseError):
            raise self._typed(answer) from answer
        if isinstance(answer, Exception):
            raise self._broken(answer) from answer
        return answer

    def answer(self) -> Any:
        """As ``receive``, with an error returned."""
        try:
            return self.receive()
        except (ServerError, TaskQError) as error:
            return error

    def has_input(self) -> bool:
        """Whether there is input that the socket does not tell of any more: it was read with what came before."""
        return bool(self._reader.has_data()) or (hasattr(self._sock, "pending") and self._sock.pending() > 0)

    def readable(self, timeout: float, also: Source | None = None) -> bool:
        """Wait until an answer can be read, ``also`` can, or the timeout passes; whether an answer can."""
        if self._sock is None:
            self._connect()
        sock = self._sock
        return self.has_input() or sock.fileno() in ready((sock,) if also is None else (sock, also), timeout)

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._sock is not None

    @property
    def socket(self) -> Any:
        """What to wait on together with others; None without a connection."""
        return self._sock

    def hurry(self, seconds: float) -> None:
        """From now on wait no longer than this for anything: the link is about to be closed."""
        self._timeout = min(self._timeout, max(0.05, seconds))
        if self._sock is not None:
            _limit(self._sock, self._timeout)

    def close(self) -> None:
        """Close the connection; the next command makes a new one."""
        connection, self._connection = self._connection, None
        self._sock = self._reader = None
        self._pending = 0
        self._doomed = False
        if connection is not None:
            connection.disconnect()

    # ------------------------------------------------------------------------------------------------ connecting

    def _connect(self) -> None:
        target = self._target
        problems = []
        count = len(target.urls)
        for step in range(count):
            index = (target.first[0] + step) % count
            url = target.urls[index]
            connection = None
            try:
                connection = self._make(url) if not target.service else self._mastered(url)
                connection.connect()
                _limit(connection._sock, self._timeout)
            except (redis.exceptions.AuthenticationError, redis.exceptions.AuthorizationError) as error:
                raise self._errors.refused(
                    f"{url.without_query()} refused the credentials: {error}; check user and password of the URL"
                ) from error
            except _BROKEN as error:
                if connection is not None:
                    connection.disconnect()
                if isinstance(error, redis.exceptions.NoPermissionError) or "DB index" in str(error):
                    raise self._errors.refused(
                        f"{url.without_query()} refused to open the database: {error}"
                    ) from error
                problems.append(f"{url.without_query()}: {_reason(error)}")
                continue
            target.first[0] = index
            self.peer = str(connection.host)
            self._connection, self._sock = connection, connection._sock
            self._reader = Reader(
                protocolError=redis.exceptions.InvalidResponse, replyError=connection._parser.parse_error
            )
            self._pending = 0
            return
        raise self._errors.failed(
            f"cannot connect to Redis: {'; '.join(problems)}. Is the server running, and are host and port right?"
        )

    def _make(self, url: Url, address: tuple[str, int] | None = None, *, database: bool = True) -> Any:
        target = self._target
        number = url.path.strip("/")
        if number and not number.isdigit():
            raise self._errors.refused(
                f"{url.without_query()}: the path is the number of the database, as in redis://localhost/0, not "
                f"{number!r}"
            )
        options: dict[str, Any] = {
            "host": address[0] if address else url.host or "localhost",
            "port": address[1] if address else url.port or DEFAULT_PORT,
            "db": int(number or 0) if database else 0,
            "username": url.username if database else None,
            "password": url.password if database else None,
            "protocol": 2,  # replies have one shape, whatever the server's version
            "socket_timeout": min(target.connect_timeout, self._timeout),  # of the greeting; later it is `timeout`
            "socket_connect_timeout": min(target.connect_timeout, self._timeout),
            "socket_keepalive": True,
            "retry": Retry(NoBackoff(), 0),
        }
        if _is_tls(url.scheme):
            return redis.SSLConnection(**options, **target.tls)
        return redis.Connection(**options)  # type: ignore[no-untyped-call]

    def _mastered(self, url: Url) -> Any:
        """Ask a sentinel where the master is; return a connection to it, not yet made."""
        sentinel = self._make(url, (url.host or "localhost", url.port or SENTINEL_PORT), database=False)
        try:
            sentinel.connect()
            sentinel.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._target.service)
            answer = sentinel.read_response()
        finally:
            sentinel.disconnect()
        if not answer:
            raise redis.exceptions.ConnectionError(f"this sentinel knows no service {self._target.service!r}")
        return self._make(url, (answer[0].decode(), int(answer[1])))

    # ---------------------------------------------------------------------------------------------------- errors

    def _broken(self, error: BaseException) -> TaskQError:
        if isinstance(error, redis.exceptions.AuthenticationError | redis.exceptions.AuthorizationError):
            self.close()
            return self._errors.refused(f"{self._target.name} refuses a command: {error}; check user and password")
        if isinstance(error, redis.exceptions.BusyLoadingError):
            self.close()
            return self._errors.failed(f"{self._target.name} is still starting: {error}")
        self.close()
        if isinstance(error, redis.exceptions.TimeoutError | TimeoutError | BlockingIOError):
            return self._errors.lost(
                f"{self._target.name} did not answer within {self._timeout:g} s; whether it did what was asked is "
                "not known"
            )
        return self._errors.lost(f"the connection to {self._target.name} broke: {_reason(error)}")

    def _typed(self, error: Exception) -> Exception:
        text = str(error)
        if isinstance(error, redis.exceptions.AskError):
            ask = not isinstance(error, redis.exceptions.MovedError)
            return Redirected(text, error.slot_id, (error.host or self.peer, error.port), ask=ask)
        if isinstance(error, redis.exceptions.TryAgainError):
            return ServerError(f"TRYAGAIN {text}")
        if isinstance(error, redis.exceptions.NoScriptError) or text.startswith("No matching script"):
            return ServerError(f"NOSCRIPT {text}")
        if (
            isinstance(error, redis.exceptions.NoPermissionError)
            or text.startswith("NOPERM")
            or "ACL failure in script" in text
            or "executing the script can't" in text
        ):
            return self._errors.refused(
                f"{self._target.name} refuses a command: {text}; give the user the rights that the README lists"
            )
        if isinstance(error, redis.exceptions.OutOfMemoryError) or text.startswith("OOM"):
            return self._errors.full(f"{self._target.name} is out of memory, nothing was accepted: {text}")
        if text.startswith(_NOT_NOW) or isinstance(
            error, redis.exceptions.ReadOnlyError | redis.exceptions.ClusterDownError
        ):
            self._doomed = True  # after a failover another of the servers is the master
            self._target.first[0] += 1
            return self._errors.failed(f"{self._target.name} cannot do this just now: {text}")
        return ServerError(text)


def _limit(sock: Any, seconds: float) -> None:
    """Have reads and writes fail after so long.

    The system does that for a plain socket; Python's own timeouts cost a system call more before each of them, and are
    what TLS, and sockets of greenlets, go by.
    """
    if type(sock).__module__ == "socket" and os.name == "posix":
        sock.settimeout(None)
        limit = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    else:
        sock.settimeout(seconds)


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


class Links:
    """A stack of connections, or of lines to all nodes of a cluster, that threads borrow for one call."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._free: list[Any] = []
        self._closed = False

    def run(self, call: Callable[[Any], Any]) -> Any:
        """Run a call with a connection of its own."""
        try:
            link = self._free.pop()
        except IndexError:
            link = self._make()
        try:
            return call(link)
        except BaseException as error:
            if not isinstance(error, TaskQError | ServerError):
                link.close()  # an answer may be under way that nobody will read
            raise
        finally:
            if self._closed:
                link.close()
            else:
                self._free.append(link)

    def open(self) -> None:
        """Keep connections from now on."""
        self._closed = False

    def close(self) -> None:
        """Close the connections that nobody uses now, and the others when their call ends."""
        self._closed = True
        while self._free:
            self._free.pop().close()
