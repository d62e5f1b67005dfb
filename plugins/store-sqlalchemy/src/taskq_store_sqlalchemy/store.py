"""The SQL result store."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

import msgspec

from taskq.errors import OutcomeUnknown, ResultTooLarge, StoreError
from taskq.message import Record
from taskq.spi import Op, OpResult, StoreCapabilities, StoreConfig
from taskq_lib_sqlalchemy.database import Database, commit_unknown, single_statement, transaction
from taskq_lib_sqlalchemy.errors import STORE_ERRORS
from taskq_lib_sqlalchemy.local import Neighbours, neighbours
from taskq_lib_sqlalchemy.schema import RESULTS
from taskq_lib_sqlalchemy.strategy import Strategy, open_tables
from taskq_store_sqlalchemy import coordination
from taskq_store_sqlalchemy.options import SqlStoreOptions, capabilities
from taskq_store_sqlalchemy.waiting import ResultWait

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

T = TypeVar("T")
_BATCH = 1000
_BATCH_BYTES = 16_000_000
_SWEEP_EVERY = 30.0


class SqlStore:
    """Results and coordination in the tables of one database."""

    def __init__(self, config: StoreConfig) -> None:
        self.options: SqlStoreOptions = config.options
        self.database = Database(config.urls, config.options, errors=STORE_ERRORS, clock=config.clock)
        self.instance = 0
        self.neighbours = Neighbours()
        self._capabilities = self._before_open()
        self._strategy: Strategy | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._wait: ResultWait | None = None
        self._address = f"taskq_r_{secrets.token_hex(16)}"

    def _before_open(self) -> StoreCapabilities:
        dialect = self.database.dialect
        return msgspec.structs.replace(
            capabilities(self.options),
            network=dialect != "sqlite",
            push=dialect == "postgresql" and self.options.listen,
        )

    @property
    def capabilities(self) -> StoreCapabilities:
        return self._capabilities

    # ------------------------------------------------------------------------------------------------ open and close

    def open(self) -> None:
        with self._lock:
            if self._strategy is not None and not self._closed:
                return
            strategy, self.instance = open_tables(self.database, RESULTS)
            limit = self.database.run(strategy.max_payload, "looking at the server")
            self._capabilities = msgspec.structs.replace(self._before_open(), max_record_bytes=limit)
            self.neighbours = neighbours(self.instance)
            self._strategy = strategy
            self._closed = False

    def close(self, *, timeout: float = 5.0) -> None:
        if self._closed or self._strategy is None or self.database.inherited:
            return
        self._closed = True
        with self._lock:
            wait, self._wait = self._wait, None
        if wait is not None:
            wait.close(timeout)
        self.database.close()

    def _open_strategy(self) -> Strategy:
        if self._strategy is None or self._closed:
            raise self.database.errors.closed(
                f"the result store at {self.database.where} was used before open() or after close()"
            )
        return self._strategy

    # ------------------------------------------------------------------------------------------------------- records

    def put(self, records: Sequence[Record]) -> Sequence[str]:
        strategy = self._open_strategy()
        limit = self._capabilities.max_record_bytes or 0
        for record in records:
            size = len(record.payload) + len(record.follow_ups or b"")
            if size > limit:
                raise ResultTooLarge(
                    f"the record of {record.id} has {size} bytes, {self.database.current.text} takes {limit}; "
                    "return less, or store the data elsewhere and return where"
                )
        superseded: list[str] = []
        for chunk in _chunks(records):
            superseded += self._put(strategy, chunk)
        if records:
            self.neighbours.stored()
        return superseded

    def _put(self, strategy: Strategy, records: Sequence[Record]) -> list[str]:
        def work(connection: Connection) -> set[int]:
            if strategy.pushes or len(records) == 1:
                stored = strategy.upsert(connection, records)
            else:
                with transaction(connection):
                    stored = strategy.upsert(connection, records)
            try:
                strategy.tell(connection, (), [records[i] for i in sorted(stored)])
            except Exception:  # they are stored; who waits looks by himself now and then
                connection.invalidate()
            return stored

        stored = self.database.run(work, "storing results")
        return [record.id for i, record in enumerate(records) if i not in stored]

    def get(self, ids: Sequence[str]) -> Sequence[Record | None]:
        found = {record.id: record for record in self._read(list(dict.fromkeys(ids)))}
        return [found.get(task_id) for task_id in ids]

    def _read(self, ids: Sequence[str]) -> list[Record]:
        strategy = self._open_strategy()
        if not ids:
            return []

        def work(connection: Connection) -> list[Record]:
            return [
                record
                for start in range(0, len(ids), _BATCH)
                for record in strategy.read(connection, ids[start : start + _BATCH])
            ]

        return self.database.run(work, "reading results")

    def delete(self, ids: Sequence[str]) -> None:
        strategy = self._open_strategy()

        def work(connection: Connection) -> None:
            for start in range(0, len(ids), _BATCH):
                strategy.forget(connection, sorted(ids[start : start + _BATCH]))

        if ids:
            self.database.run(work, "deleting results")

    def maintain(self, budget_s: float) -> float:
        strategy = self._open_strategy()
        end = monotonic() + budget_s
        while self.database.run(strategy.sweep, "sweeping expired results"):
            if monotonic() >= end:
                return 0.1
        return _SWEEP_EVERY

    # ------------------------------------------------------------------------------------------------------- waiting

    def reply_address(self) -> str | None:
        self._open_strategy()
        if not self._capabilities.push:
            return None
        return self._address

    def wait(self, ids: Sequence[str], timeout: float) -> Sequence[Record]:
        self._open_strategy()
        return self._waiting().wait(ids, timeout)

    def wake(self) -> None:
        if not self._closed and self._strategy is not None:
            self._waiting().wake()

    def _waiting(self) -> ResultWait:
        if self._wait is None:
            with self._lock:
                if self._wait is None:
                    poll = (self.options.poll_min, self.options.poll_max)
                    wait = ResultWait(
                        self.database.link(listens=self._capabilities.push), self.reply_address(), self._read, poll
                    )
                    self.neighbours.add_waiter(wait)
                    self._wait = wait
        return self._wait

    # -------------------------------------------------------------------------------------------------- coordination

    def _coordinate(self, work: Callable[[Connection, Strategy], T], what: str) -> T:
        strategy = self._open_strategy()
        try:
            return self.database.run(lambda connection: work(connection, strategy), what)
        except StoreError as error:
            if commit_unknown(error):
                raise OutcomeUnknown(f"{error} (whether it took effect is not known)") from error
            raise

    def apply(self, ops: Sequence[Op]) -> Sequence[OpResult]:
        results: list[OpResult] = []
        for start in range(0, len(ops), _BATCH):
            chunk = ops[start : start + _BATCH]
            results += self._coordinate(partial(coordination.apply, ops=chunk), "coordinating")
        return results

    def acquire(self, key: str, owner: str, *, slots: int = 1, ttl: float) -> bool:
        def change(owners: dict[str, float], now: float) -> bool | None:
            if owner not in owners and len(owners) >= slots:
                return None
            owners[owner] = now + ttl
            return True

        return self._coordinate(lambda c, s: coordination.change_semaphore(c, s, key, change), f"acquiring {key}")

    def renew(self, key: str, owner: str, *, ttl: float) -> bool:
        def change(owners: dict[str, float], now: float) -> bool | None:
            if owner not in owners:
                return None
            owners[owner] = now + ttl
            return True

        return self._coordinate(lambda c, s: coordination.change_semaphore(c, s, key, change), f"renewing {key}")

    def release(self, key: str, owner: str) -> None:
        def change(owners: dict[str, float], now: float) -> bool | None:
            return None if owners.pop(owner, None) is None else True

        self._coordinate(lambda c, s: coordination.change_semaphore(c, s, key, change), f"releasing {key}")

    def index_put(self, index: str, entries: Mapping[str, float]) -> None:
        def work(connection: Connection, strategy: Strategy) -> None:
            with single_statement():
                strategy.put_times(connection, index, entries)

        if entries:
            self._coordinate(work, "writing a time index")

    def index_due(self, index: str, now: float, limit: int) -> Sequence[tuple[str, float]]:
        return self._coordinate(lambda c, s: s.due_times(c, index, now, limit), "reading a time index")

    def index_remove(self, index: str, members: Sequence[str]) -> Sequence[str]:
        def work(connection: Connection, strategy: Strategy) -> list[str]:
            with single_statement():
                return strategy.remove_times(connection, index, sorted(set(members)))

        return self._coordinate(work, "removing from a time index") if members else []


def _chunks(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    start = size = 0
    for i, record in enumerate(records):
        length = len(record.payload) + len(record.follow_ups or b"")
        if i > start and (i - start == _BATCH or size + length > _BATCH_BYTES):
            yield records[start:i]
            start, size = i, 0
        size += length
    if records:
        yield records[start:]
