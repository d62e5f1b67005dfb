"""The Redis transport: sending, counting, and the chores that any worker may do."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from taskq.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    ConnectionLost,
    NotSupported,
    SchemaMismatch,
    StorageFull,
    TransportClosed,
    TransportError,
)
from taskq.message import Outbound, Peeked, QueueFacts, QueueSpec, QueueStats, SendFailure
from taskq.spi import Capabilities, DeclareMode, Durability, TransportConfig
from taskq_lib_redis import Errors, Links, RedisLink, Script, ServerError, Target
from taskq_transport_redis import scripts
from taskq_transport_redis.consumer import RedisConsumer
from taskq_transport_redis.options import MAX_PAYLOAD_BYTES, RedisOptions, capabilities

ERRORS = Errors(ConnectionFailed, ConnectionLost, AuthenticationFailed, StorageFull, TransportError)
_SEND_CHUNK = 1000
_OLDEST = (6, 2)


class RedisTransport:
    """One Redis or Valkey server, or its fail-over servers in order."""

    def __init__(self, config: TransportConfig) -> None:
        self.options: RedisOptions = config.options
        self.config = config
        self.prefix = self.options.key_prefix
        self.target = Target(config.urls, self.options.connect_timeout, self.options.timeout, ERRORS)
        self.lease_s = config.lease_s or capabilities(self.options).lease_default_s
        self._capabilities = capabilities(self.options)
        self._links = Links(self.target)
        self._pid = os.getpid()
        self._open = False
        self._consumers: set[RedisConsumer] = set()

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def place(self) -> tuple[Any, ...]:
        """Server, database and prefix: a store of the same place can be fused."""
        return tuple((u.host, u.port, u.path.strip("/") or "0") for u in self.config.urls), self.prefix

    def open(self) -> None:
        if self._open:
            return
        self.check_process()
        self._links.run(self._greet)
        self._open = True

    def _greet(self, link: RedisLink) -> None:
        """Look at the server's version and persistence."""
        info = self._asked(link, b"INFO", b"server")
        fields = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
        version = fields.get("redis_version", "0")
        if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
            raise SchemaMismatch(f"{self.target.name} is Redis {version}; this transport needs 6.2 or newer")
        durability = Durability.SERVER
        try:
            answer = link.call(b"CONFIG", b"GET", b"append*")
            settings = {answer[i]: answer[i + 1] for i in range(0, len(answer), 2)}
            if settings.get(b"appendonly") == b"yes" and settings.get(b"appendfsync") == b"always":
                durability = Durability.DISK
        except (ServerError, AuthenticationFailed):
            pass  # the user may not ask; then nothing is promised
        self._capabilities = msgspec.structs.replace(self._capabilities, durability=durability)

    def _asked(self, link: RedisLink, *command: Any) -> Any:
        try:
            return link.call(*command)
        except ServerError as error:
            raise TransportError(f"{self.target.name} refused {command[0].decode()}: {error}") from error

    def close(self, *, timeout: float = 5.0) -> None:
        if self._pid != os.getpid():
            return
        for consumer in list(self._consumers):
            consumer.close()
        self._links.close()
        self._open = False

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

    def run(self, script: Script, keys: Sequence[Any], args: Sequence[Any]) -> Any:
        """Run a script on a borrowed connection; an error answer becomes a TransportError."""
        self._check()

        def call(link: RedisLink) -> Any:
            try:
                return link.script(script, keys, args)
            except ServerError as error:
                raise TransportError(f"{self.target.name} refused a script: {error}") from error

        return self._links.run(call)

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
        return {queue.name: QueueFacts(created=False) for queue in queues}

    def send(self, batch: Sequence[Outbound]) -> Sequence[SendFailure]:
        self._check()
        if len(batch) == 1:
            outbound = batch[0]
            if outbound.delay <= 0 and len(outbound.payload) <= MAX_PAYLOAD_BYTES and outbound.group is None:
                self._send_one(outbound)
                return ()
        failures = [failure for i, o in enumerate(batch) if (failure := _refusal(i, o)) is not None]
        bad = {failure.index for failure in failures}
        good = [(i, o) for i, o in enumerate(batch) if i not in bad] if bad else list(enumerate(batch))
        if good:
            failures += self._send_groups(good)
        return failures

    def _send_one(self, outbound: Outbound) -> None:
        p, queue, priority = self.prefix, outbound.queue, outbound.priority
        frame = b"\0%c%b" % (priority, outbound.payload)
        keys = (f"{p}q:{queue}:{priority}", f"{p}b:{queue}")
        self._links.run(lambda link: _typed(link.script, scripts.SEND, keys, (frame,)))

    def _send_groups(self, good: Sequence[tuple[int, Outbound]]) -> list[SendFailure]:
        """Send by queue and priority, all in one write; what the server refuses is reported one by one."""
        now: dict[tuple[str, int], list[tuple[int, bytes]]] = {}
        later: dict[str, list[tuple[int, int, bytes]]] = {}
        for i, o in good:
            frame = b"\0%c%b" % (o.priority, o.payload)
            if o.delay > 0:
                later.setdefault(o.queue, []).append((i, max(1, round(o.delay * 1000)), os.urandom(8) + frame))
            else:
                now.setdefault((o.queue, o.priority), []).append((i, frame))
        commands: list[tuple[Script, tuple[str, str], list[Any], list[int]]] = []
        p = self.prefix
        for (queue, priority), entries in now.items():
            keys = (f"{p}q:{queue}:{priority}", f"{p}b:{queue}")
            for start in range(0, len(entries), _SEND_CHUNK):
                part = entries[start : start + _SEND_CHUNK]
                commands.append((scripts.SEND, keys, [frame for _, frame in part], [i for i, _ in part]))
        for queue, delayed in later.items():
            keys = (f"{p}d:{queue}", f"{p}b:{queue}")
            for start in range(0, len(delayed), _SEND_CHUNK):
                some = delayed[start : start + _SEND_CHUNK]
                args = [value for _, delay, member in some for value in (delay, member)]
                commands.append((scripts.SEND_DELAYED, keys, args, [i for i, _, _ in some]))
        return self._links.run(lambda link: self._pipelined(link, commands))  # type: ignore[no-any-return]

    def _pipelined(
        self, link: RedisLink, commands: Sequence[tuple[Script, tuple[str, str], list[Any], list[int]]]
    ) -> list[SendFailure]:
        packed = [(b"EVALSHA", script.sha, 2, *keys, *args) for script, keys, args, _ in commands]
        try:
            answers = link.pipeline(packed)
        except ConnectionLost as error:
            if len(commands) == 1:
                raise
            return [SendFailure(i, str(error), maybe_sent=True) for *_, numbers in commands for i in numbers]
        failures: list[SendFailure] = []
        for (script, keys, args, numbers), answer in zip(commands, answers, strict=True):
            if not isinstance(answer, Exception):
                continue
            try:
                if isinstance(answer, ServerError) and answer.code == "NOSCRIPT":
                    _typed(link.script, script, keys, args)
                    continue
                raise answer
            except (TransportError, ServerError) as error:
                retryable = getattr(error, "retryable", True)
                failures += [SendFailure(i, str(error), isinstance(error, ConnectionLost), retryable) for i in numbers]
        return failures

    def consumer(self) -> RedisConsumer:
        self._check()
        consumer = RedisConsumer(self)
        self._consumers.add(consumer)
        return consumer

    def forget(self, consumer: RedisConsumer) -> None:
        """Take a closed consumer off the list of those to close."""
        self._consumers.discard(consumer)

    # -------------------------------------------------------------------------------------------------- looking

    def lists(self, queue: str) -> list[str]:
        """Return the lists of a queue, highest priority first."""
        return [f"{self.prefix}q:{queue}:{priority}" for priority in range(9, -1, -1)]

    def stats(self, queues: Sequence[str]) -> Mapping[str, QueueStats]:
        self._check()
        p = self.prefix
        held: dict[str, int] = {}
        flat = self.run(scripts.IN_FLIGHT, (), (p,))
        for i in range(0, len(flat), 2):
            name = flat[i].decode()
            held[name] = held.get(name, 0) + int(flat[i + 1])
        for queue in queues:
            self._promote(queue)
        commands = [c for q in queues for c in [*((b"LLEN", key) for key in self.lists(q)), (b"ZCARD", f"{p}d:{q}")]]
        answers = self._links.run(lambda link: link.pipeline(commands)) if commands else []
        counts = {}
        for n, queue in enumerate(queues):
            own = answers[n * 11 : n * 11 + 11]
            counts[queue] = QueueStats(sum(own[:10]), held.get(queue, 0), own[10])
        return counts

    def _promote(self, queue: str) -> None:
        p = self.prefix
        while self.run(scripts.PROMOTE, (f"{p}d:{queue}", f"{p}b:{queue}"), (f"{p}q:{queue}:",)) == 1000:
            continue

    def purge(self, queues: Sequence[str]) -> Mapping[str, int]:
        counts = {}
        for queue in queues:
            before = self.stats([queue])[queue]
            keys = [*self.lists(queue), f"{self.prefix}d:{queue}"]
            self._links.run(lambda link, keys=keys: _typed(link.call, b"DEL", *keys))
            counts[queue] = (before.ready or 0) + (before.delayed or 0)
        return counts

    def peek(self, queue: str, *, limit: int = 100, after: str | None = None) -> Sequence[Peeked]:
        self._check()
        self._promote(queue)
        start = int(after) + 1 if after is not None else 0
        found: list[Peeked] = []
        position = 0
        for key in self.lists(queue):
            size = self._links.run(lambda link, key=key: _typed(link.call, b"LLEN", key))
            first = max(0, start - position)
            if first < size and len(found) < limit:
                last = first + limit - len(found) - 1
                frames = self._links.run(lambda link, k=key, a=first, z=last: _typed(link.call, b"LRANGE", k, a, z))
                found += [
                    Peeked(str(position + first + n), f[2:], queue, priority=f[1], deliveries=f[0])
                    for n, f in enumerate(frames)
                ]
            position += size
        if len(found) < limit:
            found += self._peek_delayed(queue, limit - len(found), max(0, start - position), position)
        return found

    def _peek_delayed(self, queue: str, limit: int, first: int, position: int) -> list[Peeked]:
        key = f"{self.prefix}d:{queue}"
        answer = self._links.run(
            lambda link: link.pipeline([
                (b"TIME",), (b"ZRANGE", key, first, first + limit - 1, b"WITHSCORES")
            ])
        )  # fmt: skip
        seconds, micros = answer[0]
        now = int(seconds) + int(micros) / 1e6
        return [
            Peeked(
                str(position + first + n // 2), answer[1][n][10:], queue, priority=answer[1][n][9],
                delay=max(0.0, float(answer[1][n + 1]) / 1000 - now), deliveries=answer[1][n][8],
            )
            for n in range(0, len(answer[1]), 2)
        ]  # fmt: skip

    def maintain(self, budget_s: float) -> float:
        died, _, next_end = self.run(scripts.REAP, (), (self.prefix,))
        if died >= 10:
            return 0.0
        pause = self.lease_s / 2
        return pause if next_end < 0 else max(0.05, min(pause, next_end / 1000))


def _typed(call: Any, *args: Any) -> Any:
    try:
        return call(*args)
    except ServerError as error:
        raise TransportError(f"Redis refused a command: {error}") from error


def _refusal(index: int, outbound: Outbound) -> SendFailure | None:
    if len(outbound.payload) > MAX_PAYLOAD_BYTES:
        reason = f"the payload takes {len(outbound.payload)} bytes, at most {MAX_PAYLOAD_BYTES} fit"
        return SendFailure(index, reason, retryable=False)
    if outbound.group is not None:
        return SendFailure(index, "the Redis transport keeps no order per group", retryable=False)
    return None
