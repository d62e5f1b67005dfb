"""The brokers under test, one class each: how to start, kill and look into it.

Another broker is one more class here and its name in BROKERS; the tests pick what fits by its attributes.
"""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any, ClassVar

from taskq.spi import parse_urls
from tests.support.postgres_servers import OwnPostgreSQL
from tests.support.rabbitmq_servers import OwnRabbit
from tests.support.redis_servers import OwnServer
from tests.support.servers import SERVERS
from tests.support.zeromq_hubs import Hub, HubForge

_WORK = ("message", "messages", "ready", "held", "delayed", "behind", "consumer", "consumers")
"""Tables without rows when all work is done."""


class Broker:
    """A broker of one test's own."""

    name: ClassVar[str]
    server: ClassVar[str | None] = None
    """Name in tests.support.servers, None where there is no server."""
    impatient: ClassVar[str] = "?timeout=1&connect_timeout=1"
    """Query of the URL for short timeouts."""
    notices: ClassVar[bool] = True
    """Whether a client knows that an idle connection is gone before it writes to it."""
    passwords: ClassVar[bool] = True
    full: ClassVar[bool] = False
    """Whether `make test` runs the sizes of the issue; else they are smaller."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def url(self, port: int | None = None) -> str:
        """The broker's URL; by another port where a proxy stands before it."""
        raise NotImplementedError

    def wrong_password(self) -> str:
        """Ask for a password from now on, and return a URL with another, which contains ``not-the-secret``."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the server, with the data it had."""

    def kill(self) -> None:
        """kill -9."""

    def close(self) -> None:
        """Remove it."""

    def address(self) -> tuple[str, int]:
        """Host and port for a proxy."""
        url = parse_urls(self.url())[0]
        assert url.host
        assert url.port
        return url.host, url.port

    def left(self) -> set[str]:
        """What is left on the server of work that has ended, besides what the transport counts itself."""
        return set()


def rows_left(counts: dict[str, int]) -> set[str]:
    """Tables with rows that should have none."""
    return {f"{n} rows in {name}" for name, n in counts.items() if n and name.rpartition("_")[2] in _WORK}


class Sqlite(Broker):
    name = "sqlite"
    full = True

    def url(self, port: int | None = None) -> str:
        return f"sqlite:///{self.folder}/queue.db"

    def left(self) -> set[str]:
        with contextlib.closing(sqlite3.connect(self.folder / "queue.db")) as db:
            names = [
                n for (n,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'taskq%'")
            ]
            return rows_left({n: db.execute(f"SELECT count(*) FROM {n}").fetchone()[0] for n in names})


class Redis(Broker):
    name = "redis"
    server = "valkey"
    full = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        program = str(SERVERS["valkey"].program())
        self.own = OwnServer(program, "--appendonly", "yes", "--appendfsync", "always")

    def url(self, port: int | None = None) -> str:
        return f"redis://127.0.0.1:{port or self.own.port}/0"

    def wrong_password(self) -> str:
        with self.own.client() as client:
            client.config_set("requirepass", "right")
        return self.url().replace("//", "//:not-the-secret@")

    def start(self) -> None:
        self.own.start()

    def kill(self) -> None:
        self.own.kill()

    def close(self) -> None:
        self.own.__exit__(None, None, None)

    def left(self) -> set[str]:
        with self.own.client() as client:
            # what ends by itself (results, the kernel's counters, the bells of empty queues) is meant to stay
            names = {key.decode() for key in client.keys("*")} - {"taskq:queues"}
            return {n for n in names if client.pttl(n) < 0}


class PostgreSQL(Broker):
    name = "postgresql"
    notices = False
    impatient = "?command_timeout=1&lock_timeout=1&connect_timeout=2"
    server = "postgresql"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.own = OwnPostgreSQL()

    def url(self, port: int | None = None) -> str:
        return self.own.url().replace(f":{self.own.port}/", f":{port or self.own.port}/")

    def wrong_password(self) -> str:
        self.own.require_password("right")
        self.kill()
        self.start()
        return self.own.url("taskq:not-the-secret")

    def start(self) -> None:
        self.own.start()

    def kill(self) -> None:
        self.own.kill()

    def close(self) -> None:
        self.own.__exit__(None, None, None)

    def left(self) -> set[str]:
        import psycopg

        with psycopg.connect(self.own.url()) as db:
            names = [n for (n,) in db.execute("SELECT tablename FROM pg_tables WHERE tablename LIKE 'taskq%'")]
            counts: dict[str, Any] = {}
            for n in names:
                row = db.execute(f"SELECT count(*) FROM {n}").fetchone()  # type: ignore[arg-type]
                counts[n] = row[0] if row else 0
            return rows_left(counts)


class RabbitMQ(Broker):
    name = "amqp"
    notices = False
    server = "rabbitmq"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.own = OwnRabbit(durable=True)
        self._entered = False
        self._started = 0.0

    def url(self, port: int | None = None) -> str:
        return f"amqp://guest:guest@127.0.0.1:{port or self.own.port}//"

    def wrong_password(self) -> str:
        return self.url().replace("guest:guest", "guest:not-the-secret")

    def start(self) -> None:
        if self._entered:
            self.own.again()
        else:
            self.own.__enter__()
            self._entered = True
        self._started = time.monotonic()

    def kill(self) -> None:
        # RabbitMQ 3.10 does not recover a quorum queue that was made less than some two seconds ago
        time.sleep(max(0.0, self._started + 5.0 - time.monotonic()))
        self.own.end(signal.SIGKILL)

    def close(self) -> None:
        if self._entered:
            self.own.__exit__()


class ZeroMQ(Broker):
    """A hub with a journal."""

    name = "zeromq"
    notices = False
    passwords = False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.forge = HubForge()
        self.hub: Hub | None = None

    def url(self, port: int | None = None) -> str:
        assert self.hub is not None
        return self.hub.url if port is None else f"zeromq://127.0.0.1:{port}"

    def start(self) -> None:
        self.hub = self.hub.restart() if self.hub else self.forge.start(journal=str(self.folder / "hub.db"))

    def kill(self) -> None:
        assert self.hub is not None
        self.hub.kill()

    def close(self) -> None:
        self.forge.close()


BROKERS: dict[str, type[Broker]] = {kind.name: kind for kind in (Sqlite, Redis, PostgreSQL, RabbitMQ, ZeroMQ)}
SERVED = [name for name in BROKERS if name != "sqlite"]
"""Those that can be away while their clients live."""
