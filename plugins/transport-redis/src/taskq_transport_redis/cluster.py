"""The transport on a Redis Cluster: every queue is a world of its own, with all its keys in one slot.

A queue's keys begin with the prefix and the queue's name in braces, its hash tag; consumers, leases and bells are kept
per queue. What concerns several queues is done for each, in one write to each node.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from taskq.errors import AuthenticationFailed, ConnectionLost, TransportError
from taskq.message import Outbound, QueueFacts, QueueSpec, QueueStats, SendFailure
from taskq.spi import Capabilities, DeclareMode, Durability, TransportConfig
from taskq_lib_redis.cluster import Lines, Nodes, Unreplicated
from taskq_lib_redis.connection import Links, RedisLink, Script, ServerError, Target
from taskq_transport_redis import scripts
from taskq_transport_redis.cluster_consumer import ClusterConsumer
from taskq_transport_redis.options import cluster_capabilities
from taskq_transport_redis.transport import RedisTransport, SendCommand, refused

_BETWEEN_CHORES = 500


@lru_cache(100_000)
def space_of(prefix: str, queue: str) -> str:
    """Return the beginning of a queue's keys."""
    tag = queue.replace("%", "%25").replace("}", "%7D")
    return f"{prefix}{{{tag}}}:"


def guard(space: str) -> str:
    """Return a key of the queue's slot that never exists; see ``taskq_lib_redis.cluster``."""
    return f"{space}-"


class ClusterTransport(RedisTransport):
    """A Redis or Valkey cluster."""

    _oldest = (7, 0)  # sharded publish

    def __init__(self, config: TransportConfig) -> None:
        super().__init__(config)
        self._capabilities = cluster_capabilities(self.options)
        self.nodes = Nodes(self.target)
        self._links = Links(lambda: Lines(self.nodes, self.options.timeout))
        self._chores = Links(lambda: Lines(self.nodes, 0.0))
        """For what must not hold up the thread that renews leases, when a node is away."""
        self._known: dict[str, None] = {}
        """Queues that were declared or subscribed to here, for the chores."""

    def close(self, *, timeout: float = 5.0) -> None:
        super().close(timeout=timeout)
        if self.owned:
            self._chores.close()

    def _meet(self) -> None:
        self._chores.open()
        found: list[Capabilities] = []
        for address in self.nodes.masters():
            link = RedisLink(self.nodes.node(address))
            try:
                self._greet(link)
            finally:
                link.close()
            found.append(self._capabilities)
        for answer in self._links.run(lambda lines: lines.scripts([self._of("taskq", scripts.STATS, "taskq")])):
            if isinstance(answer, Exception):
                raise refused(self.target.name, answer) if isinstance(answer, ServerError) else answer
        safe = all(c.durability is Durability.DISK for c in found)
        self._capabilities = msgspec.structs.replace(
            cluster_capabilities(self.options), durability=Durability.DISK if safe else Durability.SERVER
        )

    def _check_mode(self, mode: str) -> None:
        return  # asking for the slots has told

    def _probe(self, link: RedisLink) -> None:
        return  # no node has all slots

    def _anywhere(self) -> Target:
        return self.nodes.anywhere()

    def space(self, queue: str) -> str:
        return space_of(self.prefix, queue)

    def know(self, queues: Sequence[str]) -> None:
        """Do the chores of these queues from now on."""
        self._known.update(dict.fromkeys(queues))

    def _run(self, queue: str, script: Script, *args: Any) -> Any:
        return self._do(lambda lines: lines.script(*self._of(queue, script, *args)))

    def _of(self, queue: str, script: Script, *args: Any) -> tuple[Script, tuple[str, ...], tuple[Any, ...]]:
        space = self.space(queue)
        return scripts.on_cluster(script), (f"{space}c", guard(space)), (space, *args)

    def _each(self, runs: Sequence[tuple[Script, Sequence[Any], Sequence[Any]]]) -> list[Any]:
        """Run scripts of several queues; an error is returned in its answer's place."""
        self._check()
        answers: list[Any] = self._chores.run(lambda lines: lines.scripts(runs))
        return [refused(self.target.name, a) if isinstance(a, ServerError) else a for a in answers]

    # ------------------------------------------------------------------------------------------------- messages

    def declare(self, queues: Sequence[QueueSpec], *, mode: DeclareMode = "create") -> Mapping[str, QueueFacts]:
        self.know([queue.name for queue in queues])
        return super().declare(queues, mode=mode)

    def send(self, batch: Sequence[Outbound]) -> Sequence[SendFailure]:
        self._check()
        return self._send_any(batch)

    def _sent(self, link: Any, commands: Sequence[SendCommand]) -> list[SendFailure]:
        wanted = self.options.wait_replicas
        after = (b"WAIT", wanted, max(1, round(self.options.timeout * 500))) if wanted else ()
        answers = link.scripts([(scripts.on_cluster(c.script), c.keys, c.args) for c in commands], after)
        failures: list[SendFailure] = []
        reachable = False
        for command, answer in zip(commands, answers, strict=True):
            if not isinstance(answer, Exception):
                reachable = True
                continue
            if isinstance(answer, Unreplicated):
                reachable = True
                reason = f"{answer.count} of {wanted} replicas have it; a failover now would lose it"
                failures += [SendFailure(i, reason, maybe_sent=True) for i in command.indices]
                continue
            problem = refused(self.target.name, answer) if isinstance(answer, ServerError) else answer
            if not isinstance(problem, TransportError):
                raise problem
            maybe = isinstance(problem, ConnectionLost)
            reachable = reachable or maybe
            failures += [SendFailure(i, str(problem), maybe, problem.retryable) for i in command.indices]
        if not reachable and isinstance(answer, TransportError):
            raise answer
        return failures

    def consumer(self) -> ClusterConsumer:  # type: ignore[override]
        self._check()
        consumer = ClusterConsumer(self)
        self._consumers.add(consumer)
        return consumer

    # -------------------------------------------------------------------------------------------------- looking

    def stats(self, queues: Sequence[str]) -> Mapping[str, QueueStats]:
        counts: dict[str, QueueStats] = {}
        for queue, answer in zip(queues, self._each([self._of(q, scripts.STATS, q) for q in queues]), strict=True):
            if isinstance(answer, Exception):
                raise answer
            known, ready, held, delayed = answer
            if known:
                counts[queue] = QueueStats(ready, held, delayed)
        return counts

    def _now(self) -> float:
        link = RedisLink(self._anywhere())
        try:
            seconds, micros = link.call(b"TIME")
        finally:
            link.close()
        return int(seconds) + int(micros) / 1e6

    def maintain(self, budget_s: float) -> float:
        end = time.monotonic() + budget_s
        pause = self.lease_s / 2
        queues = list(self._known)
        problem: Exception | None = None
        for start in range(0, len(queues), _BETWEEN_CHORES):
            part = queues[start : start + _BETWEEN_CHORES]
            while part:
                answers = self._each([self._of(queue, scripts.REAP) for queue in part])
                more = []
                for queue, answer in zip(part, answers, strict=True):
                    if isinstance(answer, AuthenticationFailed):
                        raise answer
                    if isinstance(answer, Exception):
                        problem = answer  # the others' chores are done all the same
                        continue
                    died, next_end = answer
                    if died >= scripts.REAPED_AT_ONCE:
                        more.append(queue)
                    if next_end >= 0:
                        pause = min(pause, max(0.05, next_end / 1000))
                part = more if time.monotonic() < end else []
        if problem is not None:
            raise problem
        return pause
