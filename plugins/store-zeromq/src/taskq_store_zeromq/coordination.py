"""Coordination in the hub, where each operation is atomic because one thread does all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from taskq.errors import OutcomeUnknown, StoreError
from taskq.spi import Op, OpResult
from taskq_lib_zeromq import protocol
from taskq_store_zeromq.errors import AnswerLost

_OPS_AT_ONCE = 500

_results = msgspec.msgpack.Decoder(list[OpResult]).decode
_flag = msgspec.msgpack.Decoder(bool).decode
_due = msgspec.msgpack.Decoder(list[tuple[str, float]]).decode
_names = msgspec.msgpack.Decoder(list[str]).decode


class HubCoordination:
    """The coordination methods of the store; mixed into it."""

    def ask(self, make: Callable[[int], Any]) -> msgspec.Raw:
        """Carry out a request."""
        raise NotImplementedError

    def _coordinate(self, make: Callable[[int], Any]) -> msgspec.Raw:
        try:
            return self.ask(make)
        except AnswerLost as error:
            raise OutcomeUnknown(f"whether a coordination operation took effect is not known: {error}") from error

    @staticmethod
    def _key(key: str) -> str:
        if not key or len(key) > 200 or not key.isascii() or not key.isprintable():
            error = StoreError(f"coordination key {key[:210]!r} is not 1 to 200 printable ASCII characters")
            error.retryable = False
            raise error
        return key

    def apply(self, ops: Sequence[Op]) -> Sequence[OpResult]:
        for op in ops:
            self._key(op.key)
        results: list[OpResult] = []
        for start in range(0, len(ops), _OPS_AT_ONCE):
            part = list(ops[start : start + _OPS_AT_ONCE])
            results += _results(self._coordinate(lambda n, part=part: protocol.Apply(n, part)))  # type: ignore[misc]
        return results

    def acquire(self, key: str, owner: str, *, slots: int = 1, ttl: float) -> bool:
        name = self._key(key)
        return _flag(self._coordinate(lambda n: protocol.Slot(n, "acquire", name, owner, slots, ttl)))

    def renew(self, key: str, owner: str, *, ttl: float) -> bool:
        name = self._key(key)
        return _flag(self._coordinate(lambda n: protocol.Slot(n, "renew", name, owner, 1, ttl)))

    def release(self, key: str, owner: str) -> None:
        name = self._key(key)
        self._coordinate(lambda n: protocol.Slot(n, "release", name, owner))

    def index_put(self, index: str, entries: Mapping[str, float]) -> None:
        name = self._key(index)
        if entries:
            self._coordinate(lambda n: protocol.IndexPut(n, name, dict(entries)))

    def index_due(self, index: str, now: float, limit: int) -> Sequence[tuple[str, float]]:
        name = self._key(index)
        return _due(self._coordinate(lambda n: protocol.IndexDue(n, name, now, limit)))

    def index_remove(self, index: str, members: Sequence[str]) -> Sequence[str]:
        name = self._key(index)
        return _names(self._coordinate(lambda n: protocol.IndexRemove(n, name, list(members)))) if members else ()
