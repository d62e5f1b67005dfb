"""A fresh database on a running server, dropped afterwards."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from urllib.parse import SplitResult, unquote, urlsplit


@contextlib.contextmanager
def fresh_database(server: str) -> Iterator[str]:
    """Make a database on the server of this URL, yield its own URL, drop it even when clients are still connected."""
    url = urlsplit(server)
    name = f"taskq_test_{uuid.uuid4().hex[:12]}"
    make, drop = {
        # template0: nobody can be connected to it, which would make the copy fail.
        "postgresql": (f'CREATE DATABASE "{name}" TEMPLATE template0', f'DROP DATABASE "{name}" WITH (FORCE)'),
        "mysql": (f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4", f"DROP DATABASE `{name}`"),
    }[url.scheme]
    execute(url, make)
    try:
        yield url._replace(path=f"/{name}").geturl()
    finally:
        execute(url, drop)


def execute(url: SplitResult, statement: str) -> None:
    """Run one administrative statement on a connection of its own."""
    if url.scheme == "postgresql":
        import psycopg

        with psycopg.connect(url.geturl(), autocommit=True, connect_timeout=10) as connection:
            connection.execute(statement)
        return
    import pymysql

    with (
        pymysql.connect(
            host=url.hostname,
            port=url.port or 3306,
            user=unquote(url.username or "root"),
            password=unquote(url.password or ""),
            connect_timeout=10,
        ) as client,
        client.cursor() as cursor,
    ):
        cursor.execute(statement)
