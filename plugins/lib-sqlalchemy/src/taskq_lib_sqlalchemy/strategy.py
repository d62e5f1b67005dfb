"""What transport and store ask of a database, and how a database without better means does it.

The base class serves SQLite and MySQL: select what to take, decide here, change it, all in one short transaction.
PostgreSQL does most of it in single statements. Times are seconds on the server's clock; SQLite's is this machine's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from taskq.errors import TaskQError
from taskq.spi import Durability, Outbound, Record
from taskq_lib_sqlalchemy.database import Answer, Database, execute, execute_many, transaction
from taskq_lib_sqlalchemy.errors import Problem
from taskq_lib_sqlalchemy.records import RecordRow, waves
from taskq_lib_sqlalchemy.schema import Component, ensure

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


class Taken(NamedTuple):
    """A claimed message."""

    id: int
    queue: str
    payload: bytes
    deliveries: int
    group: str | None
    size: int


class Claim(NamedTuple):
    """What a claim brought.

    ``alive``: the consumer is still registered. ``blocked``: a message was there that the byte budget did not allow.
    ``due_in``: seconds until the next delayed message of any queue, None when there is none or it was not looked up.
    """

    rows: Sequence[Taken] = ()
    alive: bool = True
    blocked: bool = False
    due_in: float | None = None


class Probe(NamedTuple):
    """A look without touching: ``expiry_in`` is the time to the first end of a lease; ``ready`` whether to claim."""

    alive: bool
    due_in: float | None
    expiry_in: float | None
    ready: bool


class Ending(NamedTuple):
    """One delivery's end in a fused commit: the message's id, its record, what to send."""

    id: int
    record: Record | None
    follow_ups: Sequence[Outbound]


class EntryChange(NamedTuple):
    """A coordination entry's new value (None: gone); ``mode`` is KEEP_TTL, NO_TTL or NEW_TTL."""

    name: str
    value: bytes | None
    mode: int
    ttl: float = 0.0


KEEP_TTL, NO_TTL, NEW_TTL = 0, 1, 2


class Strategy:
    """The statements of one database's dialect. Stateless after construction: any thread, any connection of it."""

    parameter: ClassVar[str] = r"%(\1)s"
    """How the driver writes the parameter that our templates write ``:name``."""
    now: ClassVar[str]
    in_ids: ClassVar[str]
    in_names: ClassVar[str]
    skip_locked: ClassVar[str] = ""
    share_lock: ClassVar[str] = ""
    probes: ClassVar[bool] = True
    """A claim costs more than a look, so look first."""
    looks_first: ClassVar[bool] = False
    """Even when there is likely something: a claim would wait for a writer whose messages are not committed yet."""
    pushes: ClassVar[bool] = False
    """``tell`` works, consumers set ``ring``, and a channel per queue can be listened to."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.tables = database.tables()
        self._names = {
            **self.tables.names(),
            "now": self.now,
            "in_ids": self.in_ids,
            "in_names": self.in_names,
            "skip_locked": self.skip_locked,
            "share_lock": self.share_lock,
            "prefix": self.tables.prefix,
        }
        self._statements: dict[str, tuple[str, bool]] = {}

    # ------------------------------------------------------------------------------------------------- statements

    def sql(self, template: str) -> tuple[str, bool]:
        """Return a template's statement in the driver's form, and whether it wants ``:now``."""
        try:
            return self._statements[template]
        except KeyError:
            text = template.format_map(self._names)
            needs_now = ":now" in text
            if self.parameter != ":":
                text = _PARAMETER.sub(self.parameter, text)
            self._statements[template] = (text, needs_now)
            return text, needs_now

    def do(self, connection: Connection, template: str, **parameters: Any) -> Answer:
        """Run one statement."""
        text, needs_now = self.sql(template)
        if needs_now:
            parameters["now"] = self.database.clock.now()
        return execute(connection, text, parameters)

    def do_many(self, connection: Connection, template: str, rows: Iterable[dict[str, Any]]) -> None:
        """Run one statement for each row of parameters."""
        text, needs_now = self.sql(template)
        extra = {"now": self.database.clock.now()} if needs_now else {}
        execute_many(connection, text, [{**row, **extra} for row in rows])

    def listed(self, values: Iterable[Any]) -> Any:
        """Return values as the parameter of ``{in_ids}`` or ``{in_names}``."""
        return list(values)

    # ------------------------------------------------------------------------------------------------- the server

    def check_server(self, connection: Connection) -> None:
        """Refuse a server that is too old.

        Raises:
            NotSupported: naming the version found and the least one.
        """
        raise NotImplementedError

    def durability(self, connection: Connection) -> tuple[Durability, str | None]:
        """Return what the server's settings make of a commit, and a sentence about it where it is not the usual."""
        raise NotImplementedError

    def max_payload(self, connection: Connection) -> int:
        """Return the largest payload in bytes."""
        return 500_000_000

    def server_time(self, connection: Connection) -> float:
        """Return the clock that all times are on."""
        return float(self.do(connection, "SELECT {now}").value())

    def channel(self, queue: str) -> str:
        """Return the name of a queue's notification channel, where there are any."""
        return queue

    # -------------------------------------------------------------------------------------------------- consumers

    def register(self, connection: Connection, lease: float, info: str) -> int:
        """Make a consumer's row; return its number, which is never used again."""
        result = self.do(
            connection,
            "INSERT INTO {consumers} (expires, ring, info) VALUES ({now} + :lease, FALSE, :info)",
            lease=lease,
            info=info[:250],
        )
        return int(result.lastrowid)

    def renew(self, connection: Connection, me: int, lease: float) -> bool:
        """Prolong a consumer's lease; False when it has been reaped."""
        result = self.do(
            connection, "UPDATE {consumers} SET expires = {now} + :lease WHERE id = :me", me=me, lease=lease
        )
        return bool(result.rowcount)

    def set_ring(self, connection: Connection, me: int, *, ring: bool) -> None:
        """Say whether senders have to notify for this consumer's sake."""

    def unregister(self, connection: Connection, me: int) -> None:
        """Remove a consumer that holds nothing."""
        self.do(connection, "DELETE FROM {consumers} WHERE id = :me", me=me)

    def alive(self, connection: Connection, me: int) -> bool:
        """Whether a consumer is registered; inside a transaction it stays so to the end."""
        return bool(self.do(connection, "SELECT 1 FROM {consumers} WHERE id = :me {share_lock}", me=me).rows)

    # ----------------------------------------------------------------------------------------------------- queues

    def add_queues(self, connection: Connection, names: Iterable[str]) -> set[str]:
        """Make queues known; return those that were not."""
        added = set()
        for name in set(names) - self.known_queues(connection, names):
            self.do(connection, self._add_queue, name=name)
            added.add(name)
        return added

    _add_queue = "INSERT INTO {queues} (name, created) VALUES (:name, {now}) ON CONFLICT (name) DO NOTHING"

    def known_queues(self, connection: Connection, names: Iterable[str]) -> set[str]:
        """Return those of these queues that exist."""
        return set(
            self.do(connection, "SELECT name FROM {queues} WHERE name {in_names}", names=self.listed(names)).column()
        )

    # --------------------------------------------------------------------------------------------------- messages

    def insert(self, connection: Connection, batch: Sequence[Outbound]) -> bool:
        """Write messages in the order given, as one statement where it can; True when a consumer waits to be told."""
        self.do_many(
            connection,
            "INSERT INTO {messages} "
            "(state, level, deliveries, size, owner, sent, due, queue, uid, grp, payload) VALUES "
            "(:state, :level, 0, :size, NULL, {now}, {now} + :delay, :queue, :uid, :grp, :payload)",
            map(message_row, batch),
        )
        return False

    def tell(self, connection: Connection, queues: Iterable[str], records: Iterable[Record] = ()) -> None:
        """Wake consumers that wait for these queues and callers that wait for these records, where the server can."""

    def claim(
        self, connection: Connection, me: int, plan: Sequence[tuple[str, int]], limit: int, budget: int, *, lone: bool
    ) -> Claim:
        """Take up to ``limit`` messages and ``budget`` bytes, of each queue of the plan up to its quota.

        ``lone``: the consumer holds nothing, so that a first message of any size is allowed.
        """
        with transaction(connection):
            if not self.alive(connection, me):
                return Claim(alive=False)
            picked: list[int] = []
            blocked = False
            for queue, quota in plan:
                rows = self.do(connection, self._pick, queue=queue, limit=min(quota, limit - len(picked))).rows
                for message_id, size in rows:
                    if size > budget and not (lone and not picked):
                        blocked = True
                        break
                    budget -= size
                    picked.append(message_id)
                if blocked or len(picked) >= limit:
                    break
            rows_taken = self._take(connection, me, picked) if picked else ()
        by_id = {row.id: row for row in rows_taken}
        return Claim([by_id[i] for i in picked], blocked=blocked)

    _pick = (
        "SELECT id, size FROM {messages} WHERE state = 0 AND queue = :queue "
        "ORDER BY level, id LIMIT :limit {skip_locked}"
    )

    def _take(self, connection: Connection, me: int, ids: Sequence[int]) -> Sequence[Taken]:
        raise NotImplementedError

    def probe(self, connection: Connection, me: int, queues: Sequence[str]) -> Probe:
        """Look, in one statement, for everything that would make a consumer act."""
        ready = " OR ".join(_EXISTS.replace("?", f":q{i}") for i in range(len(queues)))
        row = self.do(
            connection,
            _PROBE + (ready or "FALSE"),
            me=me,
            **{f"q{i}": queue for i, queue in enumerate(queues)},
        ).rows[0]
        return Probe(bool(row[0]), row[1], row[2], bool(row[3]))

    def acknowledge(self, connection: Connection, me: int, ids: Sequence[int]) -> set[int]:
        """Remove messages that this consumer holds; return the ids of those that it did hold."""
        result = self.do(
            connection,
            "DELETE FROM {messages} WHERE id {in_ids} AND owner = :me RETURNING id",
            ids=self.listed(ids),
            me=me,
        )
        return set(result.column())

    def release(self, connection: Connection, me: int, ids: Sequence[int], delay: float, *, counted: bool) -> set[int]:
        """Give held messages back to their queues; return the ids of those that it did hold."""
        result = self.do(
            connection, self._release + " RETURNING id", **self._release_values(me, ids, delay, counted=counted)
        )
        return set(result.column())

    _release = (
        "UPDATE {messages} SET state = :state, owner = NULL, deliveries = deliveries - :uncount, "
        "due = CASE WHEN :delay > 0 THEN {now} + :delay ELSE due END WHERE id {in_ids} AND owner = :me"
    )

    def _release_values(self, me: int, ids: Sequence[int], delay: float, *, counted: bool) -> dict[str, Any]:
        state = 1 if delay > 0 else 0
        return {
            "me": me,
            "ids": self.listed(ids),
            "state": state,
            "delay": float(delay),
            "uncount": 0 if counted else 1,
        }

    def release_strays(self, connection: Connection, me: int, known: Sequence[int]) -> None:
        """Give back, uncounted, what this consumer owns without knowing it: a claim's answer was lost on its way."""
        owned = self.do(connection, "SELECT id FROM {messages} WHERE owner = :me", me=me).column()
        strays = sorted(set(owned) - set(known))
        if strays:
            self.release(connection, me, strays, 0.0, counted=False)

    def purge_some(self, connection: Connection, queue: str) -> int:
        """Remove up to ten thousand messages of a queue that nobody holds; return how many."""
        return int(self.do(connection, self._purge, queue=queue).rowcount)

    _purge = (
        "DELETE FROM {messages} WHERE id IN (SELECT id FROM {messages} WHERE queue = :queue AND state IN (0, 1) "
        "ORDER BY id LIMIT 10000 {skip_locked})"
    )

    def promote(self, connection: Connection) -> bool:
        """Make delayed messages ready whose time has come, up to a thousand; True when there may be more."""
        with transaction(connection):
            found = self.do(
                connection,
                "SELECT id FROM {messages} WHERE state = 1 AND due <= {now} ORDER BY due LIMIT 1000 {skip_locked}",
            ).column()
            if found:
                self.do(
                    connection,
                    "UPDATE {messages} SET state = 0 WHERE id {in_ids} AND state = 1",
                    ids=self.listed(found),
                )
        return len(found) == 1000

    def reap(self, connection: Connection) -> int:
        """Give back what dead consumers held, and forget them; return how many consumers there were."""
        queues: set[str] = set()
        with transaction(connection):
            found = self.do(connection, "SELECT id FROM {consumers} WHERE expires < {now} {skip_locked}")
            dead = found.column()
            if dead:
                # First the consumer, then, in a later statement, its messages: a claim of its own either came before
                # and is seen, or waits for this transaction and finds itself dead.
                self.do(connection, "DELETE FROM {consumers} WHERE id {in_ids}", ids=self.listed(dead))
                queues = self._take_back(connection, dead)
        self.tell(connection, queues)
        return len(dead)

    def _take_back(self, connection: Connection, dead: Sequence[int]) -> set[str]:
        """Free what these consumers held; return the queues of it, where somebody can be told."""
        self.do(connection, "UPDATE {messages} SET state = 0, owner = NULL WHERE owner {in_ids}", ids=self.listed(dead))
        return set()

    def adopt_orphans(self, connection: Connection) -> None:
        """Give back what belongs to no consumer at all (somebody emptied the consumers' table)."""
        self.do(
            connection,
            "UPDATE {messages} SET state = 0, owner = NULL WHERE state = 2 AND owner IS NOT NULL "
            "AND NOT EXISTS (SELECT 1 FROM {consumers} WHERE {consumers}.id = {messages}.owner)",
        )

    # ----------------------------------------------------------------------------------------------------- results

    def upsert(self, connection: Connection, records: Sequence[Record]) -> set[int]:
        """Store records by the rule of ``ResultStore.put``; return the indexes of those that were stored."""
        stored: set[int] = set()
        for wave in waves(records):
            stored |= self._upsert(connection, wave)
        return stored

    def _upsert(self, connection: Connection, wave: Sequence[RecordRow]) -> set[int]:
        raise NotImplementedError

    def commit(self, connection: Connection, me: int, endings: Sequence[Ending]) -> set[int]:
        """Acknowledge, store and send in one transaction, nothing for messages not held; return the ids held."""
        with transaction(connection):
            held = self.acknowledge(connection, me, [ending.id for ending in endings])
            self.upsert(connection, [e.record for e in endings if e.record is not None and e.id in held])
            follow_ups = [out for e in endings if e.id in held for out in e.follow_ups]
            if follow_ups:
                self.insert(connection, follow_ups)
        return held

    def commit_release(
        self, connection: Connection, me: int, ending: Ending, delay: float, *, counted: bool
    ) -> set[int]:
        """As ``commit``, for one message that goes back to its queue."""
        with transaction(connection):
            held = self.release(connection, me, [ending.id], delay, counted=counted)
            if held and ending.record is not None:
                self.upsert(connection, [ending.record])
            if held and ending.follow_ups:
                self.insert(connection, ending.follow_ups)
        return held

    def read(self, connection: Connection, ids: Sequence[str]) -> list[Record]:
        """Return the records of these ids that are there and have not expired."""
        answer = self.do(
            connection,
            "SELECT id, state, payload, terminal, attempt, epoch, ttl, reply, follow_ups FROM {results} "
            "WHERE id {in_names} AND expires > {now}",
            names=self.listed(ids),
        )
        return [
            Record(task_id, state, payload, bool(terminal), *rest)
            for task_id, state, payload, terminal, *rest in answer.rows
        ]

    def forget(self, connection: Connection, ids: Sequence[str]) -> None:
        """Delete records."""
        self.do(connection, "DELETE FROM {results} WHERE id {in_names}", names=self.listed(ids))

    def sweep(self, connection: Connection) -> int:
        """Delete up to a thousand expired records and as many entries; return how many."""
        return sum(self.do(connection, template).rowcount for template in self._sweeps)

    _sweeps: ClassVar[tuple[str, ...]] = (
        "DELETE FROM {results} WHERE id IN (SELECT id FROM {results} WHERE expires <= {now} LIMIT 1000 {skip_locked})",
        (
            "DELETE FROM {entries} WHERE name IN "
            "(SELECT name FROM {entries} WHERE expires <= {now} LIMIT 1000 {skip_locked})"
        ),
    )

    # ------------------------------------------------------------------------------------------------ coordination

    def read_entries(self, connection: Connection, names: Sequence[str]) -> dict[str, bytes]:
        """Return the entries of these names that are there and have not expired."""
        rows = self.do(
            connection,
            "SELECT name, value FROM {entries} WHERE name {in_names} AND value IS NOT NULL "
            "AND (expires IS NULL OR expires > {now})",
            names=self.listed(names),
        )
        return dict(rows.rows)

    def lock_entries(self, connection: Connection, names: Sequence[str]) -> tuple[dict[str, bytes], float]:
        """Keep everybody else from these entries until the transaction's end; return them and the server's time.

        ``names`` are distinct and sorted. What is absent is locked too: as a row that has expired.
        """
        rows = self._lock_entries(connection, names).rows
        now = rows[0][2]
        return {n: value for n, value, _, end in rows if value is not None and (end is None or end > now)}, now

    def _lock_entries(self, connection: Connection, names: Sequence[str]) -> Answer:
        """Return (name, value, now, expires) of every name."""
        raise NotImplementedError

    def write_entries(self, connection: Connection, entries: Sequence[EntryChange]) -> None:
        """Change locked entries."""
        self.do_many(
            connection,
            "UPDATE {entries} SET value = :value, "
            "expires = CASE :mode WHEN 0 THEN expires WHEN 1 THEN NULL ELSE {now} + :ttl END WHERE name = :name",
            (entry._asdict() for entry in entries),
        )

    def put_times(self, connection: Connection, index: str, entries: Mapping[str, float]) -> None:
        """Set members' due times."""
        rows = [{"name": index, "member": member, "due": float(due)} for member, due in sorted(entries.items())]
        with transaction(connection):
            self.do_many(connection, self._put_time, rows)

    _put_time = (
        "INSERT INTO {times} (name, member, due) VALUES (:name, :member, :due) "
        "ON CONFLICT (name, member) DO UPDATE SET due = excluded.due"
    )

    def due_times(self, connection: Connection, index: str, now: float, limit: int) -> list[tuple[str, float]]:
        """Return members due at ``now``, earliest first."""
        rows = self.do(
            connection,
            "SELECT member, due FROM {times} WHERE name = :name AND due <= :at ORDER BY due, member LIMIT :limit",
            name=index,
            at=now,
            limit=limit,
        )
        return [(member, due) for member, due in rows.rows]

    def remove_times(self, connection: Connection, index: str, members: Sequence[str]) -> list[str]:
        """Remove members; return those that were there."""
        result = self.do(
            connection,
            "DELETE FROM {times} WHERE name = :name AND member {in_names} RETURNING member",
            name=index,
            names=self.listed(members),
        )
        return result.column()

    # ------------------------------------------------------------------------------------------------------ errors

    def too_old(self, found: str, least: str) -> TaskQError:
        """Make the error for a server that lacks what is needed."""
        return self.database.errors.make(
            Problem.SCHEMA, f"{self.database.current.text} is {found}; taskq needs at least {least}: upgrade the server"
        )


_PARAMETER = re.compile(r":([a-z]\w*)")
_EXISTS = "EXISTS (SELECT 1 FROM {messages} WHERE state = 0 AND queue = ?)"
_PROBE = (
    "SELECT (SELECT count(*) FROM {consumers} WHERE id = :me) AS alive, "
    "(SELECT min(due) FROM {messages} WHERE state = 1) - {now} AS due_in, "
    "(SELECT min(expires) FROM {consumers} WHERE id <> :me) - {now} AS expiry_in, "
)


def message_row(out: Outbound) -> dict[str, Any]:
    """Return an outbound message as named parameters."""
    return {
        "state": 1 if out.delay > 0 else 0,
        "level": 9 - out.priority,
        "size": len(out.payload),
        "delay": float(out.delay) if out.delay > 0 else 0.0,
        "queue": out.queue,
        "uid": out.id,
        "grp": out.group,
        "payload": out.payload,
    }


def open_tables(database: Database, component: Component) -> tuple[Strategy, int]:
    """Connect, check the server, prepare a component's tables; return the statements and the tables' instance number.

    Raises:
        The errors of the database's family for a server that cannot be reached, is too old, or has other tables.
    """
    database.closed = False
    database.run(lambda connection: None, "connecting")  # the dialect learns which server it is
    strategy = _strategy_for(database)
    database.run(strategy.check_server, "looking at the server")
    return strategy, ensure(database, component)


def _strategy_for(database: Database) -> Strategy:
    if database.dialect == "postgresql":
        from taskq_lib_sqlalchemy.postgresql import PostgreSQL

        return PostgreSQL(database)
    if database.dialect == "mysql":
        from taskq_lib_sqlalchemy.mysql import MySQL

        return MySQL(database)
    from taskq_lib_sqlalchemy.sqlite import SQLite

    return SQLite(database)
