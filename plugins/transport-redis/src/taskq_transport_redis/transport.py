"""The Redis transport: sending, counting, and the chores that any worker may do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from taskq.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    ConnectionLost,
    NotSupported,
    PayloadTooLarge,
    QueueMissing,
    SchemaMismatch,
    StorageFull,
    TransportClosed,
    TransportError,
)
from taskq.message import Outbound, Peeked, QueueFacts, QueueSpec, QueueStats, SendFailure
from taskq.spi import Capabilities, DeclareMode, Duplicates, Durability, TransportConfig
from taskq_lib_redis.connection import Errors, Links, RedisLink, Script, ServerError, Target, make_target
from taskq_transport_redis import scripts
from taskq_transport_redis.broadcast import Listener
from taskq_transport_redis.consumer import RedisConsumer
from taskq_transport_redis.frames import check_size, delayed_member, frame, read_frame, read_member
from taskq_transport_redis.options import RedisOptions, capabilities

ERRORS = Errors(ConnectionFailed, ConnectionLost, AuthenticationFailed, StorageFull)
_CHUNK = 1000
_CHUNK_BYTES = 8 << 20
_QUEUES_AT_ONCE = 500


class SendCommand:
    """A script call that sends some messages of a batch."""

    __slots__ = ("args", "indices", "keys", "script")

    def __init__(self, script: Script, keys: tuple[str, str, str], args: list[Any], indices: list[int]) -> None:
        self.script = script
        self.keys = keys
        self.args = args
        self.indices = indices


class RedisTransport:
    """One Redis or Valkey server, or its fail-over servers in order."""

    _oldest = (6, 2)

    def __init__(self, config: TransportConfig) -> None:
        self.options: RedisOptions = config.options
        self.config = config
        self.prefix = self.options.key_prefix
        self.target = make_target(config.urls, self.options, ERRORS)
        self.lease_s = config.lease_s or capabilities(self.options).lease_default_s
        self._capabilities = capabilities(self.options)
        self._links = Links(lambda: RedisLink(self.target))
        self._pid = os.getpid()
        self._open = False
        self._consumers: set[Any] = set()
        self._listeners: dict[str, Listener] = {}

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def place(self) -> tuple[Any, ...]:
        """Server, database and prefix: a store of the same place can be fused."""
        return self.target.place, self.prefix

    @property
    def owned(self) -> bool:
        """Whether this process opened it, not its parent."""
        return self._pid == os.getpid()

    def open(self) -> None:
        if self._open:
            return
        self.check_process()
        self._links.open()
        try:
            self._meet()
        except BaseException:
            self._links.close()
            raise
        self._open = True

    def _meet(self) -> None:
        """Look at the server, and know what it can do."""
        self._links.run(self._greet)

    def _greet(self, link: RedisLink) -> None:
        """Look at the server's version, what we may do there, and its persistence."""
        try:
            fields = dict(
                line.split(":", 1) for line in link.call(b"INFO", b"server").decode().splitlines() if ":" in line
            )
            version = fields.get("redis_version", "")
        except (ServerError, AuthenticationFailed):
            fields, version = {}, ""  # the user may not ask
        oldest = self._oldest
        if version and tuple(int(part) for part in version.split(".")[:2]) < oldest:
            raise SchemaMismatch(
                f"{self.target.name} is Redis {version}; this transport needs {oldest[0]}.{oldest[1]} or newer"
            )
        self._check_mode(fields.get("redis_mode", "") or fields.get("server_mode", ""))
        try:
            self._probe(link)
        except ServerError as error:
            raise TransportError(f"{self.target.name} cannot be a broker: {error}") from error
        settings = self._settings(link)
        always = settings.get("appendonly") == "yes" and settings.get("appendfsync") == "always"
        policy = settings.get("maxmemory-policy", "")
        if policy.startswith("allkeys") and settings.get("maxmemory", "0") != "0":
            raise NotSupported(
                f"{self.target.name} has maxmemory-policy {policy}: it would drop queues to make room; set it to "
                "noeviction (or a volatile one, which may drop results early)"
            )
        fail_over = len(self.target.urls) > 1 or bool(self.target.service)
        self._capabilities = msgspec.structs.replace(
            self._capabilities,
            durability=Durability.DISK if always else Durability.SERVER,
            duplicates=Duplicates.POSSIBLE if fail_over else Duplicates.AFTER_LOST_LEASE,
        )

    def _check_mode(self, mode: str) -> None:
        if mode == "cluster":
            scheme = self.target.urls[0].scheme.replace("valkey", "redis").partition("+")[0]
            raise NotSupported(f"{self.target.name} is a node of a cluster; write {scheme}+cluster://")

    def _probe(self, link: RedisLink) -> None:
        """See whether we may do here what we will do. Raises: ServerError, AuthenticationFailed."""
        link.script(scripts.STATS, (f"{self.prefix}c",), (self.prefix, "taskq"))

    def _settings(self, link: RedisLink) -> dict[str, str]:
        """Return the server's settings that matter here; nothing where the user may not ask."""
        found: dict[str, str] = {}
        for pattern in (b"append*", b"maxmemory*"):
            try:
                flat = link.call(b"CONFIG", b"GET", pattern)
            except (ServerError, AuthenticationFailed):
                break
            found.update((flat[i].decode(), flat[i + 1].decode()) for i in range(0, len(flat), 2))
        return found

    def close(self, *, timeout: float = 5.0) -> None:
        self._open = False
        if not self.owned:
            return
        end = time.monotonic() + timeout
        for consumer in list(self._consumers):
            consumer.close(max(0.1, (end - time.monotonic()) / 2))
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()
        self._links.close()

    def check_process(self) -> None:
        """Refuse to work on what a parent process opened. Raises: TransportClosed."""
        if self._pid != os.getpid():
            raise TransportClosed(
                f"this transport belongs to process {self._pid}; open a new one in process {os.getpid()}"
            )

    def _check(self) -> None:
        self.check_process()
        if not self._open:
            raise TransportClosed("the transport is not open; call open() first")

    def _do(self, call: Callable[[RedisLink], Any]) -> Any:
        """Do something on a borrowed connection; an error answer becomes a TransportError."""
        self._check()
        try:
            return self._links.run(call)
        except ServerError as error:
            raise refused(self.target.name, error) from error

    def _call(self, *command: Any) -> Any:
        return self._do(lambda link: link.call(*command))

    def space(self, queue: str) -> str:
        """Return the beginning of a queue's keys."""
        return str(self.prefix)

    def _run(self, queue: str, script: Script, *args: Any) -> Any:
        """Run a script that is about one queue."""
        space: str = self.space(queue)
        return self._do(lambda link: link.script(script, (f"{space}c",), (space, *args)))

    # ------------------------------------------------------------------------------------------------- messages

    def declare(self, queues: Sequence[QueueSpec], *, mode: DeclareMode = "create") -> Mapping[str, QueueFacts]:
        self._check()
        for queue in queues:
            if queue.ordered:
                raise NotSupported(
                    f"queue {queue.name!r} is declared ordered, which the Redis transport cannot keep per group; "
                    "use a sqlite or postgresql broker for it"
                )
            if queue.options:
                raise NotSupported(f"queue {queue.name!r} has options {sorted(queue.options)}; Redis queues have none")
        names = [queue.name for queue in queues]
        made: set[str] = set()
        if mode == "create" and names:
            commands = [(b"SADD", f"{self.space(name)}queues", name) for name in names]
            answers = self._do(lambda link: link.pipeline(commands))
            for name, answer in zip(names, answers, strict=True):
                if isinstance(answer, ServerError):
                    raise refused(self.target.name, answer)
                if isinstance(answer, Exception):
                    raise answer
                if answer:
                    made.add(name)
        elif mode == "verify":
            known = self.stats(names)
            missing = [name for name in names if name not in known]
            if missing:
                raise QueueMissing(
                    f"{self.target.name} has no queue {', '.join(map(repr, missing))}; declare it with mode 'create' "
                    "once, or correct the name"
                )
        return {name: QueueFacts(created=name in made) for name in names}

    def send(self, batch: Sequence[Outbound]) -> Sequence[SendFailure]:
        self._check()
        if len(batch) == 1 and batch[0].delay <= 0 and batch[0].group is None and not self.options.wait_replicas:
            outbound = batch[0]
            check_size(outbound)
            try:
                self._links.run(lambda link: link.script(scripts.SEND, *self._single(outbound)))
            except ConnectionLost as error:
                return (SendFailure(0, str(error), maybe_sent=True),)
            except ServerError as error:
                return (SendFailure(0, str(refused(self.target.name, error))),)
            return ()
        return self._send_any(batch)

    def _send_any(self, batch: Sequence[Outbound]) -> list[SendFailure]:
        failures = [failure for i, o in enumerate(batch) if (failure := _refusal(i, o)) is not None]
        bad = {failure.index for failure in failures}
        good = [(i, o) for i, o in enumerate(batch) if i not in bad] if bad else list(enumerate(batch))
        if good:
            commands = self._commands(good)
            failures += self._links.run(lambda link: self._sent(link, commands))
        return failures

    def _single(self, outbound: Outbound) -> tuple[tuple[str, str, str], tuple[str, bytes]]:
        queue = outbound.queue
        p = self.space(queue)
        return (f"{p}q:{queue}:{outbound.priority}", f"{p}b:{queue}", f"{p}n"), (queue, frame(outbound))

    def _commands(self, good: Sequence[tuple[int, Outbound]]) -> list[SendCommand]:
        """Group messages by queue and priority, each group in the order given."""
        now: dict[tuple[str, int], list[tuple[int, list[Any], int]]] = {}
        later: dict[str, list[tuple[int, list[Any], int]]] = {}
        for i, o in good:
            if o.delay > 0:
                entry = [max(1, round(o.delay * 1000)), delayed_member(o)]
                later.setdefault(o.queue, []).append((i, entry, len(o.payload)))
            else:
                now.setdefault((o.queue, o.priority), []).append((i, [frame(o)], len(o.payload)))
        commands: list[SendCommand] = []
        for (queue, priority), entries in now.items():
            p = self.space(queue)
            _chunked(commands, scripts.SEND, (f"{p}q:{queue}:{priority}", f"{p}b:{queue}", f"{p}n"), queue, entries)
        for queue, entries in later.items():
            p = self.space(queue)
            _chunked(commands, scripts.SEND_DELAYED, (f"{p}d:{queue}", f"{p}b:{queue}", f"{p}n"), queue, entries)
        return commands

    def _sent(self, link: RedisLink, commands: Sequence[SendCommand]) -> list[SendFailure]:
        packed: list[tuple[Any, ...]] = [(b"EVALSHA", c.script.sha, 3, *c.keys, *c.args) for c in commands]
        replicas = self.options.wait_replicas
        if replicas:
            packed.append((b"WAIT", replicas, max(1, round(self.options.timeout * 500))))
        try:
            answers = link.pipeline(packed)
        except ConnectionLost as error:
            return [SendFailure(i, str(error), maybe_sent=True) for c in commands for i in c.indices]
        failures: list[SendFailure] = []
        repeated = False
        for command, answer in zip(commands, answers, strict=False):
            if not isinstance(answer, Exception):
                continue
            try:
                if not isinstance(answer, ServerError) or answer.code != "NOSCRIPT":
                    raise answer
                repeated = True
                link.script(command.script, command.keys, command.args)
            except (TransportError, ServerError) as error:
                problem = refused(self.target.name, error) if isinstance(error, ServerError) else error
                maybe = isinstance(error, ConnectionLost)
                failures += [SendFailure(i, str(problem), maybe, problem.retryable) for i in command.indices]
        if replicas:
            failures += self._unreplicated(link, commands, {f.index for f in failures}, answers[-1], repeated)
        return failures

    def _unreplicated(
        self, link: RedisLink, commands: Sequence[SendCommand], failed: set[int], answer: Any, repeated: bool
    ) -> list[SendFailure]:
        wanted = self.options.wait_replicas
        if repeated:
            try:
                answer = link.call(b"WAIT", wanted, max(1, round(self.options.timeout * 500)))
            except (TransportError, ServerError) as error:
                answer = error
        if isinstance(answer, int) and answer >= wanted:
            return []
        reason = f"{answer} of {wanted} replicas have it; a failover now would lose it"
        return [SendFailure(i, reason, maybe_sent=True) for c in commands for i in c.indices if i not in failed]

    def consumer(self) -> RedisConsumer:
        self._check()
        consumer = RedisConsumer(self)
        self._consumers.add(consumer)
        return consumer

    def forget(self, consumer: Any) -> None:
        """Take a closed consumer off the list of those to close."""
        self._consumers.discard(consumer)

    # -------------------------------------------------------------------------------------------------- looking

    def stats(self, queues: Sequence[str]) -> Mapping[str, QueueStats]:
        self._check()
        counts: dict[str, QueueStats] = {}
        for start in range(0, len(queues), _QUEUES_AT_ONCE):
            part = queues[start : start + _QUEUES_AT_ONCE]
            flat = self._run(part[0], scripts.STATS, *part)
            for n, queue in enumerate(part):
                known, ready, held, delayed = flat[4 * n : 4 * n + 4]
                if known:
                    counts[queue] = QueueStats(ready, held, delayed)
        return counts

    def purge(self, queues: Sequence[str]) -> Mapping[str, int]:
        return {queue: int(self._run(queue, scripts.PURGE, queue)) for queue in queues}

    def peek(self, queue: str, *, limit: int = 100, after: str | None = None) -> Sequence[Peeked]:
        while self._run(queue, scripts.PROMOTE, queue) == 1000:
            continue
        start = int(after) + 1 if after is not None else 0
        found: list[Peeked] = []
        position = 0
        for priority in range(9, -1, -1):
            key = f"{self.space(queue)}q:{queue}:{priority}"
            size = self._call(b"LLEN", key)
            first = max(0, start - position)
            if first < size and len(found) < limit:
                last = first + limit - len(found) - 1
                frames = self._call(b"LRANGE", key, first, last)
                for n, raw in enumerate(frames):
                    payload, deliveries, _ = read_frame(raw, priority)
                    cursor = str(position + first + n)
                    found.append(Peeked(cursor, payload, queue, priority=priority, deliveries=deliveries))
            position += size
        if len(found) < limit:
            found += self._peek_delayed(queue, limit - len(found), max(0, start - position), position)
        return found

    def _peek_delayed(self, queue: str, limit: int, first: int, position: int) -> list[Peeked]:
        key = f"{self.space(queue)}d:{queue}"
        now = self._now()
        members = self._call(b"ZRANGE", key, first, first + limit - 1, b"WITHSCORES")
        found = []
        for n in range(0, len(members), 2):
            payload, deliveries, priority = read_member(members[n])
            delay = max(0.0, float(members[n + 1]) / 1000 - now)
            cursor = str(position + first + n // 2)
            found.append(Peeked(cursor, payload, queue, priority=priority, delay=delay, deliveries=deliveries))
        return found

    def _now(self) -> float:
        seconds, micros = self._call(b"TIME")
        return int(seconds) + int(micros) / 1e6

    def broadcast(self, channel: str, payload: bytes) -> None:
        self._call(b"PUBLISH", f"{self.prefix}x:{channel}", payload)

    def listen(self, channel: str, wait: float) -> Sequence[bytes]:
        self._check()
        listener = self._listeners.get(channel)
        if listener is None:
            listener = self._listeners[channel] = Listener(self._anywhere(), f"{self.prefix}x:{channel}")
        return listener.listen(wait)

    def _anywhere(self) -> Target:
        return self.target

    def maintain(self, budget_s: float) -> float:
        end = time.monotonic() + budget_s
        while True:
            died, next_end = self._do(lambda link: link.script(scripts.REAP, (f"{self.prefix}c",), (self.prefix,)))
            if died < scripts.REAPED_AT_ONCE or time.monotonic() >= end:
                break
        pause = self.lease_s / 2
        return pause if next_end < 0 else max(0.05, min(pause, next_end / 1000))


def _chunked(
    commands: list[SendCommand], script: Script, keys: tuple[str, str, str], queue: str,
    entries: Sequence[tuple[int, list[Any], int]],
) -> None:  # fmt: skip
    """Add the commands that send these entries, none out of proportion."""
    args: list[Any] = [queue]
    indices: list[int] = []
    size = 0
    for i, values, length in entries:
        if indices and (len(indices) >= _CHUNK or size + length > _CHUNK_BYTES):
            commands.append(SendCommand(script, keys, args, indices))
            args, indices, size = [queue], [], 0
        args += values
        indices.append(i)
        size += length
    commands.append(SendCommand(script, keys, args, indices))


def refused(server: str, error: ServerError) -> TransportError:
    """Return the error for what the server answered."""
    return TransportError(f"{server} refused a command: {error}")


def _refusal(index: int, outbound: Outbound) -> SendFailure | None:
    if outbound.group is not None:
        return SendFailure(index, "the Redis transport keeps no order per group", retryable=False)
    try:
        check_size(outbound)
    except PayloadTooLarge as error:
        return SendFailure(index, str(error), retryable=False)
    return None
