"""MariaDB and MySQL: claims by ``FOR UPDATE SKIP LOCKED`` under READ COMMITTED; nobody can be notified."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from taskq.spi import Durability, Outbound
from taskq_lib_sqlalchemy.database import Answer, Database, transaction
from taskq_lib_sqlalchemy.records import RecordRow, record_values
from taskq_lib_sqlalchemy.strategy import Strategy, Taken, message_row

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

_MESSAGE_HEAD = (
    "INSERT INTO {messages} (state, level, deliveries, size, owner, sent, due, queue, uid, grp, payload) VALUES "
)
_MESSAGE = "(%(state)s,%(level)s,0,%(size)s,NULL,{now},{now}+%(delay)s,%(queue)s,%(uid)s,%(grp)s,%(payload)s)"
_RECORD = (
    "(%(id)s,%(state)s,%(terminal)s,%(attempt)s,%(epoch)s,{now}+%(ttl)s,%(ttl)s,{writer},%(reply)s,%(payload)s,"
    "%(follow_ups)s)"
)
_STATEMENT_BYTES = 1_000_000


class MySQL(Strategy):
    """Batches travel as rows of one ``VALUES``."""

    # NOW and UNIX_TIMESTAMP agree because sessions are set to UTC; the addition turns the decimal into a double.
    now = "(UNIX_TIMESTAMP(NOW(6)) + 0e0)"
    in_ids = "IN :ids"
    in_names = "IN :names"
    skip_locked = "FOR UPDATE SKIP LOCKED"
    share_lock = "LOCK IN SHARE MODE"

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.mariadb = bool(getattr(self.tables.dialect, "is_mariadb", False))

    # ------------------------------------------------------------------------------------------------- the server

    def check_server(self, connection: Connection) -> None:
        version = connection.dialect.server_version_info or (0,)
        text = ".".join(map(str, version))
        if self.mariadb and version < (10, 6):
            raise self.too_old(f"MariaDB {text}", "MariaDB 10.6")
        if not self.mariadb and version < (8, 0, 1):
            raise self.too_old(f"MySQL {text}", "MySQL 8.0.1")

    def durability(self, connection: Connection) -> tuple[Durability, str | None]:
        flush = self.do(connection, "SELECT @@innodb_flush_log_at_trx_commit").value()
        if int(flush) != 1:
            return Durability.SERVER, f"innodb_flush_log_at_trx_commit is {flush}: power loss may take the last second"
        return Durability.DISK, None

    def max_payload(self, connection: Connection) -> int:
        packet = int(self.do(connection, "SELECT @@max_allowed_packet").value())
        return (packet - 16384) // 2  # each byte may need an escape

    # Not INSERT IGNORE, which would also ignore a name that is too long.
    _add_queue = "INSERT INTO {queues} (name, created) VALUES (:name, {now}) ON DUPLICATE KEY UPDATE name = name"
    _purge = "DELETE FROM {messages} WHERE queue = :queue AND state IN (0, 1) LIMIT 10000"

    # --------------------------------------------------------------------------------------------------- messages

    def insert(self, connection: Connection, batch: Sequence[Outbound]) -> bool:
        row = _MESSAGE.replace("{now}", self.now)
        self._insert_rows(connection, _MESSAGE_HEAD, row, "", (message_row(out) for out in batch))
        return False

    def _insert_rows(
        self, connection: Connection, head: str, row: str, tail: str, rows: Iterable[dict[str, Any]]
    ) -> None:
        """Write rows with few statements of bounded size; the driver's own bulk form knows no expressions."""
        driver: Any = connection.connection.dbapi_connection
        cursor = driver.cursor()
        head = head.format_map(self._names)
        parts: list[str] = []
        size = 0
        for values in rows:
            part = cursor.mogrify(row, values)
            if parts and size + len(part) > _STATEMENT_BYTES:
                cursor.execute(head + ",".join(parts) + tail)
                parts, size = [], 0
            parts.append(part)
            size += len(part)
        if parts:
            cursor.execute(head + ",".join(parts) + tail)
        cursor.close()

    def _take(self, connection: Connection, me: int, ids: Sequence[int]) -> Sequence[Taken]:
        self.do(
            connection,
            "UPDATE {messages} SET state = 2, owner = :me, deliveries = deliveries + 1 WHERE id {in_ids}",
            me=me,
            ids=ids,
        )
        rows = self.do(
            connection, "SELECT id, queue, payload, deliveries, grp, size FROM {messages} WHERE id {in_ids}", ids=ids
        )
        return [Taken._make(row) for row in rows.rows]

    def acknowledge(self, connection: Connection, me: int, ids: Sequence[int]) -> set[int]:
        if self.mariadb:
            return super().acknowledge(connection, me, ids)
        with transaction(connection):
            held = self._held(connection, me, ids)
            if held:
                self.do(connection, "DELETE FROM {messages} WHERE id {in_ids}", ids=held)
        return set(held)

    def release(self, connection: Connection, me: int, ids: Sequence[int], delay: float, *, counted: bool) -> set[int]:
        with transaction(connection):
            held = self._held(connection, me, ids)
            if held:
                self.do(connection, self._release, **self._release_values(me, held, delay, counted=counted))
        return set(held)

    def _held(self, connection: Connection, me: int, ids: Sequence[int]) -> list[int]:
        """Lock those of these messages that this consumer holds: neither server returns rows from every statement."""
        rows = self.do(
            connection, "SELECT id FROM {messages} WHERE id {in_ids} AND owner = :me FOR UPDATE", ids=ids, me=me
        )
        return rows.column()

    # ----------------------------------------------------------------------------------------------------- results

    def _upsert(self, connection: Connection, wave: Sequence[RecordRow]) -> set[int]:
        writer = secrets.randbits(62)
        row = _RECORD.replace("{now}", self.now).replace("{writer}", str(writer))
        tail = _ON_DUPLICATE.replace("{now}", self.now)
        self._insert_rows(connection, _RECORD_HEAD, row, tail, (record_values(r.record) for r in wave))
        stored = set(
            self.do(
                connection,
                "SELECT id FROM {results} WHERE id {in_names} AND writer = :writer",
                names=[r.record.id for r in wave],
                writer=writer,
            ).column()
        )
        return {r.place for r in wave if r.record.id in stored}

    _sweeps = (
        "DELETE FROM {results} WHERE expires <= {now} LIMIT 1000",
        "DELETE FROM {entries} WHERE expires <= {now} LIMIT 1000",
    )

    # ------------------------------------------------------------------------------------------------ coordination

    def _lock_entries(self, connection: Connection, names: Sequence[str]) -> Answer:
        self._insert_rows(
            connection,
            "INSERT INTO {entries} (name, value, expires) VALUES ",
            "(%(name)s, NULL, 0)",
            " ON DUPLICATE KEY UPDATE name = VALUES(name)",
            ({"name": name} for name in names),
        )
        return self.do(
            connection,
            "SELECT name, value, {now}, expires FROM {entries} WHERE name {in_names} FOR UPDATE",
            names=names,
        )

    _put_time = (
        "INSERT INTO {times} (name, member, due) VALUES (:name, :member, :due) "
        "ON DUPLICATE KEY UPDATE due = VALUES(due)"
    )

    def remove_times(self, connection: Connection, index: str, members: Sequence[str]) -> list[str]:
        if self.mariadb:
            return super().remove_times(connection, index, members)
        with transaction(connection):
            rows = self.do(
                connection,
                "SELECT member FROM {times} WHERE name = :name AND member {in_names} FOR UPDATE",
                name=index,
                names=members,
            )
            found = rows.column()
            if found:
                self.do(
                    connection, "DELETE FROM {times} WHERE name = :name AND member {in_names}", name=index, names=found
                )
        return found


_RECORD_HEAD = (
    "INSERT INTO {results} "
    "(id, state, terminal, attempt, epoch, expires, ttl, writer, reply, payload, follow_ups) VALUES "
)
# Assignments happen from left to right and see each other: the writer decides, the others follow it.
_ON_DUPLICATE = (
    " ON DUPLICATE KEY UPDATE writer = IF(expires <= {now} OR VALUES(epoch) > epoch OR (VALUES(epoch) = epoch "
)
_ON_DUPLICATE += (
    "AND (VALUES(attempt) > attempt OR (VALUES(attempt) = attempt AND NOT terminal))), VALUES(writer), writer), "
)
_ON_DUPLICATE += ", ".join(
    f"{name} = IF(writer = VALUES(writer), VALUES({name}), {name})"
    for name in ("state", "terminal", "attempt", "epoch", "expires", "ttl", "reply", "payload", "follow_ups")
)
