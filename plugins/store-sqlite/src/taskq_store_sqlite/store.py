"""The SQLite result store, with coordination and a time index."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskq.errors import ResultTooLarge
from taskq.message import Record
from taskq.spi import Op, OpResult, StoreCapabilities
from taskq_lib_sqlite import (
    Database,
    Kind,
    Trouble,
    as_bytes,
    close_database,
    file_for,
    open_database,
    push_records,
    put_records,
    store_errors,
)
from taskq_store_sqlite import coordination
from taskq_store_sqlite.options import MAX_RECORD_BYTES, SqliteStoreOptions, capabilities
from taskq_store_sqlite.waiting import Waiter

if TYPE_CHECKING:
    from taskq.spi import StoreConfig

_PUT_AT_ONCE = 5_000  # records per transaction: others must be able to write between two
_GET_AT_ONCE = 512  # a power of two
_SWEEP_AT_ONCE = 500
_SWEEP_EVERY_S = 30.0

_COLUMNS = "id, state, payload, terminal, attempt, epoch, expires, reply, follow_ups"


class SqliteStore:
    """Results in one SQLite file."""

    def __init__(self, config: StoreConfig) -> None:
        self.options = config.options if isinstance(config.options, SqliteStoreOptions) else SqliteStoreOptions()
        self.path = file_for(config.urls, config.app)
        self._clock = config.clock
        self._capabilities = capabilities(self.options)
        self._database: Database | None = None
        self._waiter: Waiter | None = None
        self._waiter_lock = threading.Lock()

    @property
    def capabilities(self) -> StoreCapabilities:
        return self._capabilities

    @property
    def results_database(self) -> Database | None:
        """The open file, for a transport on the same one."""
        return self._database

    def _open_database(self) -> Database:
        if self._database is None:
            raise Trouble(Kind.CLOSED, f"the result store {self.path} was used before open() or after close()")
        self._database.check_process()
        return self._database

    @store_errors
    def open(self) -> None:
        if self._database is not None:
            return
        database = open_database(self.path)
        durable = self.options.synchronous == "FULL"
        self._writing = database.transaction(durable=durable, patience=self.options.busy_timeout)
        self._sweeping = database.transaction(durable=False, patience=self.options.busy_timeout)
        self._database = database

    def close(self, *, timeout: float = 5.0) -> None:
        database, self._database = self._database, None
        if database is None:
            return
        waiter, self._waiter = self._waiter, None
        if waiter is not None and database.pid == os.getpid():
            waiter.wake()
            waiter.close()
        close_database(database)

    # --------------------------------------------------------------------------------------------------- results

    def check_records(self, records: Sequence[Record]) -> None:
        """Refuse records that cannot be stored. Raises: ResultTooLarge."""
        for record in records:
            size = len(record.payload) + len(record.follow_ups or b"")
            if size > MAX_RECORD_BYTES:
                raise ResultTooLarge(
                    f"the result of {record.id} has {size} bytes, sqlite keeps {MAX_RECORD_BYTES}; "
                    "store the data elsewhere "
                    "and return where it is"
                )

    @store_errors
    def put(self, records: Sequence[Record]) -> Sequence[str]:
        database = self._open_database()
        self.check_records(records)
        superseded: list[str] = []
        for start in range(0, len(records), _PUT_AT_ONCE):
            part = records[start : start + _PUT_AT_ONCE]
            with self._writing as connection:
                superseded += put_records(connection, part, self._clock.now())
            push_records(database.bells, part)
        return superseded

    @store_errors
    def get(self, ids: Sequence[str]) -> Sequence[Record | None]:
        self._open_database()
        found = {record.id: record for record in self._look(ids)}
        return [found.get(i) for i in ids]

    def _look(self, ids: Sequence[str], *, terminal: bool = False) -> list[Record]:
        """Return what is there and has not expired."""
        database = self._open_database()
        now = self._clock.now()
        rows: list[Any] = []
        for start in range(0, len(ids), _GET_AT_ONCE):
            part = list(ids[start : start + _GET_AT_ONCE])
            # Few different lengths, so that SQLite keeps the compiled statements.
            part += part[-1:] * ((1 << (len(part) - 1).bit_length()) - len(part))
            marks = ",".join("?" * len(part))
            only = " AND terminal" if terminal else ""
            statement = f"SELECT {_COLUMNS} FROM taskq_record WHERE id IN ({marks}) AND expires > ?{only}"  # noqa: S608
            rows += database.read(statement, (*part, now))
        return [
            Record(i, state or "", as_bytes(payload), bool(last), attempt, epoch, expires - now, reply, follow_ups)
            for i, state, payload, last, attempt, epoch, expires, reply, follow_ups in rows
        ]

    @store_errors
    def delete(self, ids: Sequence[str]) -> None:
        self._open_database()
        with self._writing as connection:
            connection.executemany("DELETE FROM taskq_record WHERE id = ?", [(i,) for i in ids])

    @store_errors
    def reply_address(self) -> str | None:
        return self._this_process_waiter().address

    # --------------------------------------------------------------------------------------------------- waiting

    def _this_process_waiter(self) -> Waiter:
        database = self._open_database()
        if self._waiter is None:
            with self._waiter_lock:
                if self._waiter is None:
                    self._waiter = Waiter(
                        database.bells, push=self._capabilities.push, poll_s=self.options.poll_interval
                    )
        return self._waiter

    @store_errors
    def wait(self, ids: Sequence[str], timeout: float) -> Sequence[Record]:
        return self._this_process_waiter().wait(ids, timeout, lambda some: self._look(some, terminal=True))

    @store_errors
    def wake(self) -> None:
        self._this_process_waiter().wake()

    @store_errors
    def maintain(self, budget_s: float) -> float:
        database = self._open_database()
        end = time.monotonic() + budget_s
        database.check_file()
        database.bells.sweep()
        while True:
            with self._sweeping as connection:
                swept = coordination.sweep(connection, self._clock.now(), _SWEEP_AT_ONCE)
            if not swept:
                return _SWEEP_EVERY_S
            if time.monotonic() >= end:
                return 1.0

    # ---------------------------------------------------------------------------------------------- coordination

    @store_errors
    def apply(self, ops: Sequence[Op]) -> Sequence[OpResult]:
        self._open_database()
        for op in ops:
            coordination.checked_key(op.key)
        now = self._clock.now()
        with self._writing as connection:
            return [coordination.apply(connection, op, now) for op in ops]

    @store_errors
    def acquire(self, key: str, owner: str, *, slots: int = 1, ttl: float) -> bool:
        self._open_database()
        with self._writing as connection:
            now = self._clock.now()
            return coordination.acquire(connection, coordination.checked_key(key), owner, slots, ttl, now)

    @store_errors
    def renew(self, key: str, owner: str, *, ttl: float) -> bool:
        self._open_database()
        with self._writing as connection:
            return coordination.renew(connection, coordination.checked_key(key), owner, ttl, self._clock.now())

    @store_errors
    def release(self, key: str, owner: str) -> None:
        self._open_database()
        with self._writing as connection:
            connection.execute(
                "DELETE FROM taskq_place WHERE name = ? AND owner = ?", (coordination.checked_key(key), owner)
            )

    @store_errors
    def index_put(self, index: str, entries: Mapping[str, float]) -> None:
        self._open_database()
        with self._writing as connection:
            coordination.index_put(connection, index, entries)

    @store_errors
    def index_due(self, index: str, now: float, limit: int) -> Sequence[tuple[str, float]]:
        return [
            (str(member), float(at))
            for member, at in self._open_database().read(
                "SELECT member, at FROM taskq_due WHERE name = ? AND at <= ? ORDER BY at, member LIMIT ?",
                (index, now, limit),
            )
        ]

    @store_errors
    def index_remove(self, index: str, members: Sequence[str]) -> Sequence[str]:
        self._open_database()
        with self._writing as connection:
            return coordination.index_remove(connection, index, members)
