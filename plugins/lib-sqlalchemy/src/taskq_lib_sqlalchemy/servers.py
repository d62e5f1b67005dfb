"""From taskq's URLs to driver connections: which driver, with what arguments, and which server of several."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from taskq.errors import ConfigError, UrlError
from taskq.spi import Url
from taskq_lib_sqlalchemy.options import DatabaseOptions

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect

DRIVERS = {
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mysql+pymysql",
    "sqlite+sqlalchemy": "sqlite+pysqlite",
}
PORTS = {"postgresql": 5432, "mysql": 3306}


class Server:
    """One place that a URL names: how to connect to it, and what to call it in messages (never with its password)."""

    def __init__(self, url: Url, options: DatabaseOptions) -> None:
        try:
            driver = DRIVERS[url.scheme]
        except KeyError:
            raise ConfigError(f"{url}: the SQL plugins know the schemes {', '.join(DRIVERS)}") from None
        self.dialect = driver.partition("+")[0]
        self.driver = driver
        self.text = str(url.without_query())
        if self.dialect == "sqlite":
            self.database = _sqlite_path(url)
            self.url = sa.URL.create(driver, database=self.database, query=dict(url.query))
        else:
            self.database = url.path.strip("/")
            if not self.database:
                raise ConfigError(f"{self.text}: name the database, as {url.scheme}://user@host/taskq")
            host = url.host
            query = dict(url.query)
            if host is not None and host.startswith("/") and self.dialect == "mysql":
                query["unix_socket"] = host
                host = None
            self.url = sa.URL.create(driver, url.username, url.password, host, url.port, self.database, query)
        self.place = (self.dialect, url.host or "", url.port or PORTS.get(self.dialect, 0), self.database)
        self.arguments = {
            "postgresql": _postgresql_arguments,
            "mysql": _mysql_arguments,
            "sqlite": _sqlite_arguments,
        }[self.dialect](options)

    def connector(self, dialect: Dialect) -> Callable[[], Any]:
        """Return a function that opens one driver connection to this server."""
        positional, keywords = dialect.create_connect_args(self.url)
        keywords = {**keywords, **self.arguments}
        if self.dialect == "postgresql":
            from taskq_lib_sqlalchemy.timed import TimedConnection

            return lambda: TimedConnection.connect(*positional, **keywords)
        return lambda: dialect.connect(*positional, **keywords)

    def how_to_create(self) -> str:
        """Say how to make the database that is not there."""
        if self.dialect == "postgresql":
            return f'create it: createdb {self.database}, or CREATE DATABASE "{self.database}" in psql'
        return f"create it: CREATE DATABASE `{self.database}` CHARACTER SET utf8mb4"


_FORMS = (
    "write sqlite+sqlalchemy:///var/lib/queue.db for the absolute path /var/lib/queue.db, "
    "sqlite+sqlalchemy:///queue.db for queue.db in the current directory"
)


def _sqlite_path(url: Url) -> str:
    """Return the absolute path of the file, by the same reading as the ``sqlite`` transport's."""
    if url.username is not None or url.password is not None or url.port is not None:
        raise UrlError(f"cannot read {url} as a file's URL: a file has no user, password or port; {_FORMS}")
    if url.host:
        path = url.host + url.path
    elif url.path.startswith("//"):  # as SQLAlchemy writes an absolute path
        path = "/" + url.path.lstrip("/")
    elif url.path.count("/") == 1:
        path = url.path[1:]
    else:
        path = url.path
    if path.lstrip("/") in {"", ":memory:"}:
        raise UrlError(f"{url} names no file (one in memory would be of one connection only); {_FORMS}")
    if path.endswith("/"):
        raise UrlError(f"{url} names a directory, not a file; {_FORMS}")
    return os.path.abspath(path)


def _postgresql_arguments(options: DatabaseOptions) -> dict[str, Any]:
    timeout_ms = int(options.command_timeout * 1000)
    arguments: dict[str, Any] = {
        "connect_timeout": max(1, round(options.connect_timeout)),
        "command_timeout": options.command_timeout,
        "target_session_attrs": "read-write",  # a standby of a fail-over list is passed over
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": timeout_ms,
        "sslmode": {"off": "disable", "prefer": "prefer", "require": "require", "verify": "verify-full"}[options.tls],
    }
    if options.tls == "verify":
        arguments["sslrootcert"] = options.tls_ca or "system"
    elif options.tls_ca is not None:
        arguments["sslrootcert"] = options.tls_ca
    if options.tls_cert is not None:
        arguments["sslcert"] = options.tls_cert
    if options.tls_key is not None:
        arguments["sslkey"] = options.tls_key
    if not options.prepare:
        arguments["prepare_threshold"] = None
    return arguments


def _mysql_arguments(options: DatabaseOptions) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "connect_timeout": max(1, round(options.connect_timeout)),
        "read_timeout": options.command_timeout,
        "write_timeout": options.command_timeout,
        "charset": "utf8mb4",
        "autocommit": True,
    }
    if options.tls == "off":
        arguments["ssl_disabled"] = True
    elif options.tls in {"require", "verify"} or options.tls_ca or options.tls_cert:
        import ssl

        context = ssl.create_default_context(cafile=options.tls_ca)
        if options.tls != "verify":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_REQUIRED if options.tls_ca else ssl.CERT_NONE
        if options.tls_cert is not None:
            context.load_cert_chain(options.tls_cert, options.tls_key)
        arguments["ssl"] = context
    return arguments


def _sqlite_arguments(options: DatabaseOptions) -> dict[str, Any]:
    return {
        "timeout": options.lock_timeout,
        "isolation_level": None,
        "check_same_thread": False,
        "cached_statements": 256,
    }
