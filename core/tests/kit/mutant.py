"""A sound memory transport and store to break, and how mutants are found."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import ClassVar, TypeVar

from taskq.spi import Op, OpResult
from taskq_store_memory.store import MemoryStore
from taskq_transport_memory.consumer import MemoryConsumer
from taskq_transport_memory.transport import MemoryTransport

T = TypeVar("T")


class Consumer(MemoryConsumer):
    """A sound consumer, to break."""


class Transport(MemoryTransport):
    """A sound transport whose consumers are of the mutant's own type; ``caught_by``: the tests that must see it."""

    caught_by: ClassVar[tuple[str, ...]] = ()
    consumer_type: ClassVar[type[MemoryConsumer]] = Consumer

    def consumer(self) -> MemoryConsumer:
        consumer = self.consumer_type(self, self.server, self._lease_s)
        self._consumers[consumer] = None
        return consumer


class Store(MemoryStore):
    """A sound store, to break."""

    caught_by: ClassVar[tuple[str, ...]] = ()


class Coordinating(Store):
    """A sound store, to break in what ``CoordinationSuite`` tests."""

    def answer(self, op: Op) -> OpResult:
        return super().apply([op])[0]

    def apply(self, ops: Sequence[Op]) -> Sequence[OpResult]:
        return [self.answer(op) for op in ops]


def mutants_of(base: type[T], *modules: ModuleType) -> list[type[T]]:
    """Return the mutants that modules define, in their order."""
    found = [v for m in modules for v in vars(m).values() if isinstance(v, type) and v.__module__ == m.__name__]
    return [v for v in found if issubclass(v, base) and getattr(v, "caught_by", ())]
