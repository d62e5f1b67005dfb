"""The result store on a Redis Cluster: every record, and every key of coordination, lies in its own name's slot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from taskq.errors import OutcomeUnknown, StoreError
from taskq.message import Record
from taskq.spi import Durable, StoreConfig
from taskq_lib_redis.cluster import Lines, Nodes, slot_of
from taskq_lib_redis.connection import Links, RedisLink, ServerError, Target
from taskq_lib_redis.records import pushes, record_arguments
from taskq_store_redis.coordination import APPLY, WORDS
from taskq_store_redis.errors import AnswerLost
from taskq_store_redis.store import PUT, RedisStore


class ClusterStore(RedisStore):
    """Results on a Redis or Valkey cluster."""

    def __init__(self, config: StoreConfig) -> None:
        super().__init__(config)
        self._nodes = Nodes(self._target)
        self._links = Links(lambda: Lines(self._nodes, self.options.timeout))

    def _meet(self) -> None:
        self._links.run(lambda lines: lines.call(b"GET", f"{self.prefix}r:"))  # whether we may read
        evicts = False
        for address in self._nodes.masters():
            link = RedisLink(self._nodes.node(address))
            try:
                self._greet(link)
            finally:
                link.close()
            evicts = evicts or self._capabilities.keeps is Durable.EVICTABLE
        if evicts:
            self._capabilities = msgspec.structs.replace(self._capabilities, keeps=Durable.EVICTABLE)

    def _anywhere(self) -> Target:
        return self._nodes.anywhere()

    def _store(self, part: Sequence[Record]) -> list[str]:
        keys, values, ttls = record_arguments(part, self.prefix)
        runs = [(PUT, (key,), (value, ttl)) for key, value, ttl in zip(keys, values, ttls, strict=True)]
        answers = self._answers(self.run(lambda lines: lines.scripts(runs)))
        # a push that every node passes on to the others: whoever waits listens to any of them
        pushed = [(b"PUBLISH", channel, data) for channel, data in pushes(part, values).items()]
        if pushed:
            self._answers(self.run(lambda lines: lines.pipeline(pushed)))
        return [record.id for record, worse in zip(part, answers, strict=True) if worse]

    def _values(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        # of another type than a string there is no value, as MGET has it
        commands = [(b"GET", key) for key in keys]
        answers: list[Any] = self.run(lambda lines: lines.pipeline(commands))
        return self._answers([None if isinstance(a, ServerError) and a.code == "WRONGTYPE" else a for a in answers])

    def _forget(self, ids: Sequence[str]) -> None:
        self._answers(self.run(lambda lines: lines.pipeline([(b"DEL", key) for key in self._keys(ids)])))

    def _apply(self, keys: Sequence[str], args: Sequence[Any]) -> Sequence[Any]:
        """Run the operations of each slot together; those of one key stay in their order."""
        places: dict[int, list[int]] = {}
        for i, key in enumerate(keys):
            places.setdefault(slot_of(key), []).append(i)
        runs = [
            (APPLY, [keys[i] for i in group], [a for i in group for a in args[WORDS * i : WORDS * (i + 1)]])
            for group in places.values()
        ]
        try:
            answers = self._answers(self.run(lambda lines: lines.scripts(runs)))
        except AnswerLost as error:
            raise OutcomeUnknown(f"whether a coordination operation took effect is not known: {error}") from error
        flat: list[Any] = [None] * (2 * len(keys))
        for group, answer in zip(places.values(), answers, strict=True):
            for n, i in enumerate(group):
                flat[2 * i : 2 * i + 2] = answer[2 * n : 2 * n + 2]
        return flat

    def _answers(self, answers: list[Any]) -> list[Any]:
        """Return answers without an error among them; one that may have been done comes first."""
        problems = [a for a in answers if isinstance(a, Exception)]
        for problem in sorted(problems, key=lambda p: not isinstance(p, AnswerLost)):
            if isinstance(problem, ServerError):
                raise StoreError(f"{self._target.name} refused a command: {problem}") from problem
            raise problem
        return answers
