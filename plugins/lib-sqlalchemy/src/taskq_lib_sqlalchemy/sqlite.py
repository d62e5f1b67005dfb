"""SQLite: one writer at a time, told with BEGIN IMMEDIATE that it will write; the clock is this machine's."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from taskq.spi import Durability
from taskq_lib_sqlalchemy.database import Answer
from taskq_lib_sqlalchemy.records import RecordRow, record_values
from taskq_lib_sqlalchemy.strategy import Strategy, Taken

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


class SQLite(Strategy):
    """Lists travel as one JSON parameter, so that a statement's text, and its compiled form, is always the same."""

    parameter = ":"
    now = ":now"
    in_ids = "IN (SELECT value FROM json_each(:ids))"
    in_names = "IN (SELECT value FROM json_each(:names))"

    looks_first = True

    def listed(self, values: Iterable[Any]) -> Any:
        return json.dumps(list(values))

    def check_server(self, connection: Connection) -> None:
        if sqlite3.sqlite_version_info < (3, 38):  # RETURNING came with 3.35, JSON in every build with 3.38
            raise self.too_old(f"used through SQLite {sqlite3.sqlite_version}", "SQLite 3.38")

    def durability(self, connection: Connection) -> tuple[Durability, str | None]:
        if self.database.options.synchronous == "full":
            return Durability.DISK, None
        return Durability.SERVER, "synchronous is normal: power loss may take the last moments"

    def _take(self, connection: Connection, me: int, ids: Sequence[int]) -> Sequence[Taken]:
        rows = self.do(
            connection,
            "UPDATE {messages} SET state = 2, owner = :me, deliveries = deliveries + 1 WHERE id {in_ids} "
            "RETURNING id, queue, payload, deliveries, grp, size",
            me=me,
            ids=self.listed(ids),
        )
        return [Taken._make(row) for row in rows.rows]

    def _upsert(self, connection: Connection, wave: Sequence[RecordRow]) -> set[int]:
        # One execute for each: only so does SQLite say which it stored, and there is no network to save.
        sql, _ = self.sql(_UPSERT)
        driver: Any = connection.connection.dbapi_connection
        cursor = driver.cursor()
        now = self.database.clock.now()
        stored = set()
        for row in wave:
            cursor.execute(sql, {**record_values(row.record), "now": now})
            if cursor.rowcount:
                stored.add(row.place)
        cursor.close()
        return stored

    def _lock_entries(self, connection: Connection, names: Sequence[str]) -> Answer:
        # The transaction is the lock, but absent entries need rows that can be updated.
        return self.do(
            connection,
            "INSERT INTO {entries} (name, value, expires) SELECT value, NULL, 0 FROM json_each(:names) WHERE TRUE "
            "ON CONFLICT (name) DO UPDATE SET name = excluded.name "
            "RETURNING name, value, :now, expires",
            names=self.listed(names),
        )


_UPSERT = """
INSERT INTO {results} AS r (id, state, terminal, attempt, epoch, expires, ttl, writer, reply, payload, follow_ups)
VALUES (:id, :state, :terminal, :attempt, :epoch, :now + :ttl, :ttl, 0, :reply, :payload, :follow_ups)
ON CONFLICT (id) DO UPDATE SET state = excluded.state, terminal = excluded.terminal, attempt = excluded.attempt,
    epoch = excluded.epoch, expires = excluded.expires, ttl = excluded.ttl, reply = excluded.reply,
    payload = excluded.payload, follow_ups = excluded.follow_ups
WHERE r.expires <= :now OR excluded.epoch > r.epoch OR (excluded.epoch = r.epoch AND
    (excluded.attempt > r.attempt OR (excluded.attempt = r.attempt AND NOT r.terminal)))
"""
