"""PostgreSQL: every step is one statement, so one round trip and one commit; LISTEN/NOTIFY wakes who waits.

``NOTIFY`` holds a lock over the whole server until its transaction is on disk, so commits that notify queue up behind
each other. Hence notifications are statements of their own, which write nothing and so wait for no disk; and they are
made only when a consumer says (``ring``) that it waits, which none does under load.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskq.spi import Durability, Outbound, Record
from taskq_lib_sqlalchemy.database import Answer
from taskq_lib_sqlalchemy.records import RecordRow, pushes, waves
from taskq_lib_sqlalchemy.strategy import Claim, Ending, EntryChange, Strategy, Taken, message_row

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


class PostgreSQL(Strategy):
    """Batches travel as arrays."""

    now = "CAST(extract(epoch FROM statement_timestamp()) AS double precision)"
    in_ids = "= ANY(CAST(:ids AS bigint[]))"
    in_names = "= ANY(CAST(:names AS text[]))"
    skip_locked = "FOR UPDATE SKIP LOCKED"
    probes = False
    pushes = True

    def channel(self, queue: str) -> str:
        """Return the name of a queue's notification channel: unique to these tables, within 63 bytes."""
        place = f"{self.tables.schema or ''}/{self.tables.prefix}/{queue}"
        return "taskq_q_" + hashlib.sha256(place.encode()).hexdigest()[:32]

    # ------------------------------------------------------------------------------------------------- the server

    def check_server(self, connection: Connection) -> None:
        number = int(self.do(connection, "SHOW server_version_num").value())
        if number < 120000:
            raise self.too_old(f"PostgreSQL {number // 10000}", "PostgreSQL 12")

    def durability(self, connection: Connection) -> tuple[Durability, str | None]:
        answer = self.do(
            connection,
            "SELECT name, setting FROM pg_settings "
            "WHERE name IN ('fsync', 'synchronous_commit', 'synchronous_standby_names')",
        )
        settings = dict(answer.rows)
        if settings.get("fsync") == "off":
            return Durability.SERVER, "the server runs with fsync off: power loss may take or damage everything"
        if settings.get("synchronous_commit") == "off":
            return Durability.SERVER, "synchronous_commit is off: a crash of the server may take the last moments"
        if settings.get("synchronous_standby_names") and settings.get("synchronous_commit") != "local":
            return Durability.REPLICATED, "synchronous_standby_names is set: a commit waits for the standby"
        return Durability.DISK, None

    # -------------------------------------------------------------------------------------------------- consumers

    def register(self, connection: Connection, lease: float, info: str) -> int:
        result = self.do(
            connection,
            "INSERT INTO {consumers} (expires, ring, info) VALUES ({now} + :lease, FALSE, :info) RETURNING id",
            lease=lease,
            info=info[:250],
        )
        return int(result.value())

    def set_ring(self, connection: Connection, me: int, *, ring: bool) -> None:
        self.do(connection, "UPDATE {consumers} SET ring = :ring WHERE id = :me", me=me, ring=ring)

    # --------------------------------------------------------------------------------------------------- messages

    def insert(self, connection: Connection, batch: Sequence[Outbound]) -> bool:
        if len(batch) == 1:  # arrays of one cost the driver more than the insertion
            return bool(self.do(connection, _INSERT_ONE, **message_row(batch[0])).value())
        return bool(self.do(connection, _INSERT, **_message_columns(batch)).value())

    def tell(self, connection: Connection, queues: Iterable[str], records: Iterable[Record] = ()) -> None:
        told = [(self.channel(queue), "") for queue in queues]
        told.extend(pushes(records))
        if told:
            self.do(
                connection,
                "SELECT pg_notify(c, p) FROM unnest(CAST(:channels AS text[]), CAST(:texts AS text[])) AS t(c, p)",
                channels=[channel for channel, _ in told],
                texts=[text for _, text in told],
            )

    def claim(
        self, connection: Connection, me: int, plan: Sequence[tuple[str, int]], limit: int, budget: int, *, lone: bool
    ) -> Claim:
        rows = self.do(
            connection,
            _CLAIM,
            me=me,
            queues=[queue for queue, _ in plan],
            quotas=[min(quota, limit) for _, quota in plan],
            limit=limit,
            budget=budget,
            lone=lone,
        ).rows
        alive, picked, due_in = rows[0][:3]
        taken = [Taken._make(row[3:]) for row in rows if row[3] is not None]
        return Claim(taken, bool(alive), picked > len(taken), due_in)

    def release(self, connection: Connection, me: int, ids: Sequence[int], delay: float, *, counted: bool) -> set[int]:
        rows = self.do(
            connection, self._release + " RETURNING id, queue", **self._release_values(me, ids, delay, counted=counted)
        ).rows
        self.tell(connection, {queue for _, queue in rows})
        return {message_id for message_id, _ in rows}

    def promote(self, connection: Connection) -> bool:
        queues = self.do(
            connection,
            "UPDATE {messages} SET state = 0 WHERE id = ANY(ARRAY(SELECT id FROM {messages} WHERE state = 1 "
            "AND due <= {now} ORDER BY due LIMIT 1000 FOR UPDATE SKIP LOCKED)) RETURNING queue",
        )
        found = queues.column()
        self.tell(connection, set(found))
        return len(found) == 1000

    def _take_back(self, connection: Connection, dead: Sequence[int]) -> set[str]:
        rows = self.do(
            connection,
            "UPDATE {messages} SET state = 0, owner = NULL WHERE owner {in_ids} RETURNING queue",
            ids=self.listed(dead),
        )
        return set(rows.column())

    # ----------------------------------------------------------------------------------------------------- results

    def _upsert(self, connection: Connection, wave: Sequence[RecordRow]) -> set[int]:
        rows = self.do(connection, _upsert(owned=False), **_record_columns([row.record for row in wave]))
        stored = set(rows.column())
        return {row.place for row in wave if row.record.id in stored}

    def commit(self, connection: Connection, me: int, endings: Sequence[Ending]) -> set[int]:
        with_record = [ending for ending in endings if ending.record is not None]
        parts = list(waves([ending.record for ending in with_record if ending.record is not None]))
        if len(parts) > 1:  # an id twice in one batch: rare, and one statement cannot
            return super().commit(connection, me, endings)
        sends = [(ending.id, out) for ending in endings for out in ending.follow_ups]
        statement = _GONE
        parameters: dict[str, Any] = {"me": me, "ids": [ending.id for ending in endings]}
        if parts:
            statement += f", stored AS ({_upsert(owned=True)})"
            parameters |= _record_columns([row.record for row in parts[0]])
            parameters["record_owners"] = [with_record[row.place].id for row in parts[0]]
        if sends:
            statement += f", written AS ({_insert(owned=True)})"
            parameters |= _message_columns([out for _, out in sends])
            parameters["owners"] = [origin for origin, _ in sends]
        statement += " SELECT id FROM gone"
        return set(self.do(connection, statement, **parameters).column())

    # ------------------------------------------------------------------------------------------------ coordination

    def _lock_entries(self, connection: Connection, names: Sequence[str]) -> Answer:
        return self.do(
            connection,
            "INSERT INTO {entries} AS e (name, value, expires) "
            "SELECT name, NULL, 0 FROM unnest(CAST(:names AS text[])) AS n(name) ORDER BY name "
            "ON CONFLICT (name) DO UPDATE SET name = excluded.name "
            "RETURNING e.name, e.value, {now}, e.expires",
            names=names,
        )

    def write_entries(self, connection: Connection, entries: Sequence[EntryChange]) -> None:
        self.do(
            connection,
            "UPDATE {entries} AS e SET value = n.value, "
            "expires = CASE n.mode WHEN 0 THEN e.expires WHEN 1 THEN NULL ELSE {now} + n.ttl END "
            "FROM unnest(CAST(:names AS text[]), CAST(:contents AS bytea[]), CAST(:modes AS integer[]), "
            "CAST(:ttls AS double precision[])) AS n(name, value, mode, ttl) WHERE e.name = n.name",
            names=[entry.name for entry in entries],
            contents=[entry.value for entry in entries],
            modes=[entry.mode for entry in entries],
            ttls=[float(entry.ttl) for entry in entries],
        )

    def put_times(self, connection: Connection, index: str, entries: Mapping[str, float]) -> None:
        members = sorted(entries)
        self.do(
            connection,
            "INSERT INTO {times} (name, member, due) SELECT :name, member, due "
            "FROM unnest(CAST(:members AS text[]), CAST(:dues AS double precision[])) AS n(member, due) "
            "ON CONFLICT (name, member) DO UPDATE SET due = excluded.due",
            name=index,
            members=members,
            dues=[float(entries[member]) for member in members],
        )


def _message_columns(batch: Sequence[Outbound]) -> dict[str, list[Any]]:
    return {
        "queues": [out.queue for out in batch],
        "levels": [9 - out.priority for out in batch],
        "delays": [float(out.delay) if out.delay > 0 else 0.0 for out in batch],
        "uids": [out.id for out in batch],
        "groups": [out.group for out in batch],
        "payloads": [out.payload for out in batch],
    }


_GONE = "WITH gone AS (DELETE FROM {messages} WHERE id {in_ids} AND owner = :me RETURNING id)"


def _insert(*, owned: bool) -> str:
    """Return the insertion of a batch; ``owned``: only of messages whose origin is in ``gone``."""
    return f"""
        INSERT INTO {{messages}} (state, level, deliveries, size, owner, sent, due, queue, uid, grp, payload)
        SELECT CASE WHEN f.delay > 0 THEN 1 ELSE 0 END, f.level, 0, octet_length(f.payload), NULL, {{now}},
            {{now}} + f.delay, f.queue, f.uid, f.grp, f.payload
        FROM unnest(CAST(:queues AS text[]), CAST(:levels AS smallint[]), CAST(:delays AS double precision[]),
            CAST(:uids AS text[]), CAST(:groups AS text[]), CAST(:payloads AS bytea[])
            {", CAST(:owners AS bigint[])" if owned else ""}) WITH ORDINALITY
            AS f(queue, level, delay, uid, grp, payload{", owner" if owned else ""}, n)
        {"WHERE EXISTS (SELECT FROM gone WHERE gone.id = f.owner)" if owned else ""}
        ORDER BY f.n"""  # noqa: S608  nothing but our own constants


_INSERT_ONE = """
WITH written AS (
    INSERT INTO {messages} (state, level, deliveries, size, owner, sent, due, queue, uid, grp, payload)
    VALUES (:state, :level, 0, :size, NULL, {now}, {now} + CAST(:delay AS double precision),
        :queue, :uid, :grp, :payload)
) SELECT EXISTS (SELECT FROM {consumers} WHERE ring)
"""
_INSERT = f"WITH written AS ({_insert(owned=False)}) SELECT EXISTS (SELECT FROM {{consumers}} WHERE ring)"  # noqa: S608

# Locks are taken row by row as the innermost scan is drained, and it stops at the limit; the nested loop keeps the
# queues' order. The consumer's row is locked against the reaper, so that nothing is claimed for the dead.
_CLAIM = """
WITH me AS (SELECT id FROM {consumers} WHERE id = :me FOR KEY SHARE),
picked AS MATERIALIZED (
    SELECT m.id, m.size, row_number() OVER () AS place
    FROM (
        SELECT m.id, m.size
        FROM unnest(CAST(:queues AS text[]), CAST(:quotas AS integer[])) AS q(name, quota),
        LATERAL (
            SELECT id, size FROM {messages} WHERE queue = q.name AND state = 0
            ORDER BY level, id LIMIT q.quota FOR UPDATE SKIP LOCKED
        ) AS m
        WHERE EXISTS (SELECT FROM me)
        LIMIT :limit
    ) AS m
),
fitting AS MATERIALIZED (
    SELECT id, place FROM (SELECT id, place, sum(size) OVER (ORDER BY place) AS total FROM picked) AS p
    WHERE total <= :budget OR (place = 1 AND CAST(:lone AS boolean))
),
taken AS (
    UPDATE {messages} AS m SET state = 2, owner = :me, deliveries = deliveries + 1
    WHERE id = ANY(ARRAY(SELECT id FROM fitting)) AND (SELECT count(*) FROM picked) > 0
    RETURNING m.id, m.queue, m.payload, m.deliveries, m.grp, m.size
)
SELECT (SELECT count(*) FROM me), (SELECT count(*) FROM picked),
    (SELECT min(due) FROM {messages} WHERE state = 1) - {now}, t.id, t.queue, t.payload, t.deliveries, t.grp, t.size
FROM (SELECT 1) AS always LEFT JOIN (taken AS t JOIN fitting AS f USING (id)) ON TRUE
ORDER BY f.place
"""


def _record_columns(records: Sequence[Record]) -> dict[str, list[Any]]:
    return {
        "record_ids": [record.id for record in records],
        "states": [record.state for record in records],
        "terminals": [record.terminal for record in records],
        "attempts": [record.attempt for record in records],
        "epochs": [record.epoch for record in records],
        "ttls": [float(record.ttl) for record in records],
        "replies": [record.reply for record in records],
        "record_payloads": [record.payload for record in records],
        "follow_ups": [record.follow_ups for record in records],
    }


def _upsert(*, owned: bool) -> str:
    """Return the upsert of records; ``owned``: only of those whose message is in ``gone``."""
    return f"""
        INSERT INTO {{results}} AS r
            (id, state, terminal, attempt, epoch, expires, ttl, writer, reply, payload, follow_ups)
        SELECT n.id, n.state, n.terminal, n.attempt, n.epoch,
            {{now}} + n.ttl, n.ttl, 0, n.reply, n.payload, n.follow_ups
        FROM unnest(CAST(:record_ids AS text[]), CAST(:states AS text[]), CAST(:terminals AS boolean[]),
            CAST(:attempts AS integer[]), CAST(:epochs AS integer[]), CAST(:ttls AS double precision[]),
            CAST(:replies AS text[]), CAST(:record_payloads AS bytea[]), CAST(:follow_ups AS bytea[])
            {", CAST(:record_owners AS bigint[])" if owned else ""})
            AS n(id, state, terminal, attempt, epoch, ttl, reply, payload, follow_ups{", owner" if owned else ""})
        {"WHERE EXISTS (SELECT FROM gone WHERE gone.id = n.owner)" if owned else ""}
        ON CONFLICT (id) DO UPDATE SET state = excluded.state, terminal = excluded.terminal, attempt = excluded.attempt,
            epoch = excluded.epoch, expires = excluded.expires, ttl = excluded.ttl, reply = excluded.reply,
            payload = excluded.payload, follow_ups = excluded.follow_ups
        WHERE r.expires <= {{now}} OR (excluded.epoch, excluded.attempt) > (r.epoch, r.attempt)
            OR ((excluded.epoch, excluded.attempt) = (r.epoch, r.attempt) AND NOT r.terminal)
        RETURNING id"""  # noqa: S608  nothing but our own constants
