"""The tables, for every dialect, and the names that hand-written statements use for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from taskq.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect

READY, DELAYED, HELD = 0, 1, 2
"""A message's state: may be claimed; waits for its time; is held by ``owner``."""

_PREFIX = re.compile(r"[a-z_][a-z0-9_]{0,30}\Z")

# PostgreSQL: rows come, change once and go, so clean up after thousands of them, not after a share of a huge table.
_CHURN = {
    "autovacuum_vacuum_scale_factor": "0.01",
    "autovacuum_vacuum_threshold": "2000",
    "autovacuum_vacuum_insert_scale_factor": "0.2",
    "autovacuum_analyze_scale_factor": "0.05",
    "autovacuum_vacuum_cost_delay": "0",
}


class Tables:
    """Table definitions for one prefix and schema, in the dialect of one server."""

    def __init__(self, dialect: Dialect, *, prefix: str, schema: str | None) -> None:
        if not _PREFIX.match(prefix):
            raise ConfigError(f"table_prefix {prefix!r} is not 1 to 31 of a-z, 0-9, _ (not beginning with a digit)")
        if schema is not None and dialect.name != "postgresql":
            raise ConfigError(
                f"the option schema is PostgreSQL's; on {dialect.name} use table_prefix or another database"
            )
        self.metadata = sa.MetaData(schema=schema)
        self.prefix = prefix
        self.schema = schema
        self.dialect = dialect
        integer = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite's row id is an INTEGER
        text, blob = _text_type(dialect), sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql")
        long_text = sa.Text().with_variant(mysql.TEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql")
        seconds: sa.Double[float] = sa.Double()
        small = sa.SmallInteger()

        def column(name: str, kind: Any, *args: Any, null: bool = False, **kwargs: Any) -> sa.Column[Any]:
            return sa.Column(name, kind, *args, nullable=null, **kwargs)

        self.version = self._table(
            "version", column("component", text, primary_key=True), column("version", sa.BigInteger())
        )
        self.queues = self._table("queues", column("name", text, primary_key=True), column("created", seconds))
        self.consumers = self._table(
            "consumers",
            column("id", integer, primary_key=True, autoincrement=True),
            column("expires", seconds),  # the lease of all that it holds, on the server's clock
            column("ring", sa.Boolean()),  # wants to be told of new messages: senders notify only when somebody does
            column("info", text),
            sqlite_autoincrement=True,  # an id is a fencing token: never used twice
        )
        self.messages = self._table(
            "messages",
            column("id", integer, primary_key=True, autoincrement=True),
            column("state", small),
            column("level", small),  # 9 - priority: ascending on every server
            column("deliveries", sa.Integer()),
            column("size", sa.Integer()),
            column("owner", sa.BigInteger(), null=True),
            column("sent", seconds),
            column("due", seconds),
            column("queue", text),
            column("uid", long_text),
            column("grp", long_text, null=True),
            column("payload", blob),
            sqlite_autoincrement=True,  # settling by a stale id must never hit a newer message
        )
        m = self.messages.c
        if dialect.name == "mysql":  # no partial indexes
            self._index("ready", m.state, m.queue, m.level, m.id)
            self._index("delayed", m.state, m.due)
            self._index("held", m.owner)
        else:
            self._index("ready", m.queue, m.level, m.id, where=m.state == READY)
            self._index("delayed", m.due, where=m.state == DELAYED)
            self._index("held", m.owner, where=m.state == HELD)
        self.results = self._table(
            "results",
            column("id", text, primary_key=True),
            column("state", text),
            column("terminal", sa.Boolean()),
            column("attempt", sa.Integer()),
            column("epoch", sa.Integer()),
            column("expires", seconds),
            column("ttl", seconds),
            column("writer", sa.BigInteger()),  # marks what one upsert wrote, where the server cannot return it
            column("reply", long_text, null=True),
            column("payload", blob),
            column("follow_ups", blob, null=True),
            sqlite_with_rowid=False,
        )
        self._index("expiring", self.results.c.expires)
        self.entries = self._table(
            "entries",
            column("name", text, primary_key=True),
            column("value", blob, null=True),
            column("expires", seconds, null=True),
            sqlite_with_rowid=False,
        )
        self._index("entry_expiring", self.entries.c.expires)
        self.times = self._table(
            "times",
            column("name", text, primary_key=True),
            column("member", text, primary_key=True),
            column("due", seconds),
            sqlite_with_rowid=False,
        )
        self._index("times_due", self.times.c.name, self.times.c.due)

    def _table(self, name: str, *columns: Any, **options: Any) -> sa.Table:
        return sa.Table(
            self.prefix + name, self.metadata, *columns, mysql_engine="InnoDB", mysql_charset="utf8mb4", **options
        )

    def _index(self, name: str, *columns: Any, where: Any = None) -> None:
        partial = {} if where is None else {"postgresql_where": where, "sqlite_where": where}
        sa.Index(f"{self.prefix}{name}", *columns, **partial)

    def names(self) -> dict[str, str]:
        """Return the quoted, qualified names of all tables, by their bare names, for hand-written statements."""
        preparer = self.dialect.identifier_preparer
        return {
            table.name.removeprefix(self.prefix): preparer.format_table(table) for table in self.metadata.sorted_tables
        }

    def qualified(self, name: str) -> str:
        """Return a table's key in the metadata."""
        return f"{self.schema}.{self.prefix}{name}" if self.schema else self.prefix + name

    def storage_parameters(self, tables: Sequence[str]) -> list[str]:
        """Return statements that PostgreSQL's tables need beyond their definition."""
        if self.dialect.name != "postgresql":
            return []
        settings = ", ".join(f"{name} = {value}" for name, value in _CHURN.items())
        names = self.names()
        return [f"ALTER TABLE {names[table]} SET ({settings})" for table in tables]


def _text_type(dialect: Dialect) -> sa.types.TypeEngine[str]:
    """Return a type for names and ids that compares bytes: no case folding, no padding."""
    if dialect.name != "mysql":
        return sa.Text()
    collation = "utf8mb4_nopad_bin" if getattr(dialect, "is_mariadb", False) else "utf8mb4_0900_bin"
    return mysql.VARCHAR(255, charset="utf8mb4", collation=collation)
