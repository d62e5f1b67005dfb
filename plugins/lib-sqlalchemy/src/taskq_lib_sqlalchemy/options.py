"""Options about the database, the same for transport and store. Imports no client library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from taskq.spi import option


@dataclass(frozen=True, kw_only=True)
class DatabaseOptions:
    """How to reach the database and where its tables are."""

    table_prefix: str = option("taskq_", help="what the names of all tables begin with: lower-case letters, digits, _")
    schema: str | None = option(
        None, help="PostgreSQL: schema that holds the tables; None for the first of search_path"
    )
    create_tables: bool = option(True, help="create missing tables and migrate older ones; False: they must be right")
    connect_timeout: float = option(
        5.0, minimum=0.1, unit="s", help="how long each server may take to answer at connect"
    )
    command_timeout: float = option(30.0, minimum=0.1, unit="s", help="how long any statement may take")
    lock_timeout: float = option(10.0, minimum=0.1, unit="s", help="how long a statement may wait for others' locks")
    pool_size: int = option(
        5, minimum=1, help="connections kept open for calls from any thread (twice as many at most)"
    )
    tls: Literal["prefer", "off", "require", "verify"] = option(
        "prefer",
        choices=("prefer", "off", "require", "verify"),
        help="PostgreSQL, MySQL: encryption; verify also checks the server's certificate and name",
    )
    tls_ca: str | None = option(None, help="file with the certificates that `verify` trusts; None for the system's")
    tls_cert: str | None = option(None, help="file with the client's certificate")
    tls_key: str | None = option(None, help="file with the client certificate's key")
    synchronous: Literal["full", "normal"] = option(
        "full",
        choices=("full", "normal"),
        help="SQLite: full survives power loss; normal is quicker, may lose the last moments, never corrupts",
    )
    prepare: bool = option(True, help="PostgreSQL: prepared statements; False behind a pooler that cannot carry them")
