"""One connection to a Redis server, at the level of ``redis.Connection``.

That level keeps what redis-py is good at (TLS, authentication, the C parser) and leaves out its connection pool and
command dispatch, which cost more than the command. Scripts go by their digest and are loaded where the server does not
know them. Nothing here survives a fork; owners check the process.
"""

from __future__ import annotations

import hashlib
import select
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from hiredis import pack_command

from taskq.errors import TaskQError
from taskq.spi import Url

DEFAULT_PORT = 6379


@dataclass(frozen=True)
class Errors:
    """The error types of the side (transport or store) that a connection serves."""

    failed: type[TaskQError]
    lost: type[TaskQError]
    refused: type[TaskQError]
    full: type[TaskQError]
    other: type[TaskQError]


@dataclass(frozen=True)
class Target:
    """Where and how to connect; ``urls`` are tried in order."""

    urls: tuple[Url, ...]
    connect_timeout: float
    timeout: float
    errors: Errors

    @property
    def name(self) -> str:
        """The servers without secrets, for messages."""
        return "; ".join(str(u.without_query()) for u in self.urls)


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


class RedisLink:
    """A connection that is made at first use, and again after it broke; for one thread at a time."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._connection: Any = None
        self._errors = target.errors
        self.generation = 0
        """How often a connection was made."""

    # -------------------------------------------------------------------------------------------------- commands

    def call(self, *args: Any) -> Any:
        """Send one command and return its answer. Raises the side's typed errors; ServerError for an error answer."""
        connection = self._connection or self._connect()
        try:
            connection.send_packed_command([pack_command(args)], check_health=False)
            return self._read(connection)
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError) as error:
            raise self._broken(error) from error

    def script(self, script: Script, keys: Sequence[Any], args: Sequence[Any]) -> Any:
        """Run a script, loading it where the server does not know it."""
        try:
            return self.call(b"EVALSHA", script.sha, len(keys), *keys, *args)
        except ServerError as error:
            if error.code != "NOSCRIPT":
                raise
        return self.call(b"EVAL", script.text, len(keys), *keys, *args)

    def pipeline(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands in one write and return all answers; an error answer is returned as ServerError."""
        connection = self._connection or self._connect()
        answers: list[Any] = []
        try:
            connection.send_packed_command([pack_command(tuple(c)) for c in commands], check_health=False)
            for _ in commands:
                try:
                    answers.append(self._read(connection))
                except ServerError as error:
                    answers.append(error)
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError) as error:
            raise self._broken(error) from error
        return answers

    def send(self, *args: Any) -> None:
        """Send one command whose answer is read later, by ``receive``."""
        connection = self._connection or self._connect()
        try:
            connection.send_packed_command([pack_command(args)], check_health=False)
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError) as error:
            raise self._broken(error) from error

    def receive(self) -> Any:
        """Read the answer of a command that was sent before."""
        try:
            return self._read(self._connection)
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError) as error:
            raise self._broken(error) from error

    def readable(self, timeout: float, also: Sequence[Any] = ()) -> bool:
        """Wait until an answer can be read, one of ``also`` can, or the timeout passes; whether an answer can."""
        connection = self._connection or self._connect()
        if connection.can_read(timeout=0):
            return True
        ready, _, _ = select.select([connection._sock, *also], [], [], max(0.0, timeout))
        return connection._sock in ready

    def _read(self, connection: Any) -> Any:
        try:
            return connection.read_response()
        except redis.exceptions.ResponseError as error:
            raise self._typed(error) from error

    # ------------------------------------------------------------------------------------------------ connecting

    def _connect(self) -> Any:
        problems = []
        for url in self._target.urls:
            connection = _make(url, self._target)
            try:
                connection.connect()
            except redis.exceptions.AuthenticationError as error:
                raise self._errors.refused(
                    f"{url.without_query()} refused the credentials: {error}; check user and password of the URL"
                ) from error
            except (redis.exceptions.RedisError, OSError) as error:
                problems.append(f"{url.without_query()}: {_reason(error)}")
                continue
            self._connection = connection
            self.generation += 1
            return connection
        raise self._errors.failed(
            f"cannot connect to Redis: {'; '.join(problems)}. Is the server running, and are host and port right?"
        )

    def _broken(self, error: BaseException) -> TaskQError:
        self.close()
        if isinstance(error, redis.exceptions.TimeoutError | TimeoutError):
            return self._errors.lost(
                f"{self._target.name} did not answer within {self._target.timeout:g} s; whether it did what was asked is "
                "not known"
            )
        return self._errors.lost(f"the connection to {self._target.name} broke: {_reason(error)}")

    def _typed(self, error: Exception) -> Exception:
        text = str(error)
        kind = type(error).__name__
        if isinstance(error, redis.exceptions.AuthenticationError | redis.exceptions.NoPermissionError):
            return self._errors.refused(f"{self._target.name} refuses a command: {text}; check the user's ACL")
        if text.startswith("OOM") or kind == "OutOfMemoryError" or "used memory > 'maxmemory'" in text:
            return self._errors.full(f"{self._target.name} is out of memory, nothing was accepted: {text}")
        if kind in ("ReadOnlyError", "BusyLoadingError", "MasterDownError") or text.startswith(("READONLY", "LOADING")):
            self.close()  # after a failover the next connection may reach the new master
            return self._errors.lost(f"{self._target.name} cannot write just now: {kind}: {text}")
        if isinstance(error, redis.exceptions.NoScriptError) or text.startswith("No matching script"):
            return ServerError(f"NOSCRIPT {text}")
        return ServerError(text)

    def close(self) -> None:
        """Close the connection; the next command makes a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._connection is not None


def _make(url: Url, target: Target) -> Any:
    database = url.path.strip("/")
    if database and not database.isdigit():
        raise target.errors.refused(
            f"{url.without_query()}: the path is the number of the database, as in redis://localhost/0, not {database!r}"
        )
    options: dict[str, Any] = {
        "host": url.host or "localhost",
        "port": url.port or DEFAULT_PORT,
        "db": int(database or 0),
        "username": url.username,
        "password": url.password,
        "protocol": 2,  # replies have one shape, whatever the server's version
        "socket_timeout": target.timeout,
        "socket_connect_timeout": target.connect_timeout,
        "socket_keepalive": True,
        "client_name": "taskq",
        "retry": redis.retry.Retry(redis.backoff.NoBackoff(), 0),
    }
    kind = redis.SSLConnection if url.scheme == "rediss" else redis.Connection
    return kind(**options)


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


class Links:
    """A stack of connections that threads borrow for one call."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._free: list[RedisLink] = []

    def run(self, call: Callable[[RedisLink], Any]) -> Any:
        """Run a call with a connection of its own."""
        try:
            link = self._free.pop()
        except IndexError:
            link = RedisLink(self._target)
        try:
            return call(link)
        finally:
            self._free.append(link)

    def close(self) -> None:
        """Close the connections that nobody uses."""
        while self._free:
            self._free.pop().close()


