"""The memory result store, with coordination and a time index."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from taskq.errors import StoreError
from taskq.message import Record
from taskq.spi import Op, OpResult, StoreCapabilities
from taskq_lib_memory import Bell, MemoryServer, Patience, server_for
from taskq_store_memory.options import CAPABILITIES

if TYPE_CHECKING:
    from taskq.spi import StoreConfig

_SWEEP_EVERY_S = 60.0


class MemoryStore:
    """Results of this process. Records are kept by reference: what was put must not be changed afterwards."""

    def __init__(self, config: StoreConfig) -> None:
        self._config = config
        self._server: MemoryServer | None = None
        self._closed = False
        self._bell = Bell()
        self._woken = False
        self.ids: frozenset[str] = frozenset()
        self.ring = self._bell.ring

    @property
    def capabilities(self) -> StoreCapabilities:
        return CAPABILITIES

    @property
    def server(self) -> MemoryServer:
        """The open server.

        Raises:
            StoreError: not open, or opened by the parent process.
        """
        server = self._server
        if server is not None and not self._closed and not server.inherited():
            return server
        if server is None or self._closed:
            error = StoreError("the memory:// store was used before open() or after close()")
        else:
            error = StoreError(
                f"the memory:// store was opened by process {server.pid} and holds nothing in its child {os.getpid()}: "
                "open a new one here (it starts empty), or use one that several processes can reach, such as sqlite://"
            )
        error.retryable = False
        raise error

    def open(self) -> None:
        if self._server is None:
            self._server = server_for(self._config.urls, self._config.clock)
            self._server.bells.add(self._bell)
        self._closed = False

    def close(self, *, timeout: float = 5.0) -> None:
        self._closed = True
        self._bell.ring()

    def put(self, records: Sequence[Record]) -> Sequence[str]:
        server = self.server
        now = server.clock.monotonic()
        with server.lock:
            return server.records.put(records, now)

    def get(self, ids: Sequence[str]) -> Sequence[Record | None]:
        server = self.server
        now = server.clock.monotonic()
        with server.lock:
            return server.records.get(ids, now)

    def delete(self, ids: Sequence[str]) -> None:
        server = self.server
        with server.lock:
            server.records.delete(ids)

    def reply_address(self) -> str | None:
        return f"memory-{self.server.name}-{os.getpid()}"

    # --------------------------------------------------------------------------------------------------- waiting

    def wait(self, ids: Sequence[str], timeout: float) -> Sequence[Record]:
        server = self.server
        patience = Patience(server, timeout)
        self.ids = frozenset(ids)
        try:
            while True:
                now = server.clock.monotonic()
                with server.lock:
                    found = [r for r in server.records.get(ids, now) if r is not None and r.terminal]
                    if not found:
                        server.records.waiting[self] = None
                if found or self._woken or self._closed or (left := patience.left()) <= 0:
                    self._woken = False
                    return found
                self._bell.wait(left)
        finally:
            with server.lock:
                server.records.waiting.pop(self, None)

    def wake(self) -> None:
        self._woken = True
        self._bell.ring()

    def maintain(self, budget_s: float) -> float:
        server = self.server
        with server.lock:
            server.records.sweep(server.clock.monotonic())
        return _SWEEP_EVERY_S

    # ---------------------------------------------------------------------------------------------- coordination

    def apply(self, ops: Sequence[Op]) -> Sequence[OpResult]:
        server = self.server
        with server.lock:
            return server.records.apply(ops, server.clock.monotonic())

    def acquire(self, key: str, owner: str, *, slots: int = 1, ttl: float) -> bool:
        server = self.server
        now = server.clock.monotonic()
        with server.lock:
            return server.records.acquire(key, owner, slots, now + ttl, now)

    def renew(self, key: str, owner: str, *, ttl: float) -> bool:
        server = self.server
        now = server.clock.monotonic()
        with server.lock:
            return server.records.renew(key, owner, now + ttl, now)

    def release(self, key: str, owner: str) -> None:
        server = self.server
        with server.lock:
            server.records.release(key, owner)

    def index_put(self, index: str, entries: Mapping[str, float]) -> None:
        server = self.server
        with server.lock:
            server.records.index_put(index, entries)

    def index_due(self, index: str, now: float, limit: int) -> Sequence[tuple[str, float]]:
        server = self.server
        with server.lock:
            return server.records.index_due(index, now, limit)

    def index_remove(self, index: str, members: Sequence[str]) -> Sequence[str]:
        server = self.server
        with server.lock:
            return server.records.index_remove(index, members)
