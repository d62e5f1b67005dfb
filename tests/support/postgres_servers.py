"""A PostgreSQL server of a test's own, to be killed and started again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from types import TracebackType
from typing import Self

from tests.support.servers import START_TIMEOUT, PostgreSQL


class OwnPostgreSQL:
    """It keeps port and data when it is killed and started again; safe against power loss, as in production."""

    def __init__(self) -> None:
        self._kind = PostgreSQL(durable=True)
        self.port = self._kind.port
        self._process: subprocess.Popen[bytes] | None = None
        if account := self._kind.run_as():
            shutil.chown(self._kind.folder, account)
        self._kind.prepare()

    @property
    def running(self) -> bool:
        return self._process is not None

    def url(self, user: str = "taskq") -> str:
        return self._kind.url().replace("taskq@", f"{user}@")

    def require_password(self, password: str) -> None:
        """From the next start on."""
        import psycopg
        from psycopg import sql

        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(sql.SQL("ALTER USER taskq PASSWORD {}").format(sql.Literal(password)))
        rules = self._kind.folder / "db/pg_hba.conf"
        rules.write_text("host all all 127.0.0.1/32 scram-sha-256\n")

    def start(self) -> None:
        """Start it and wait until it takes queries."""
        deadline = time.monotonic() + START_TIMEOUT
        account = self._kind.run_as()
        while True:
            with (self._kind.folder / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    self._kind.command(), cwd=self._kind.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    user=account, group=account, extra_groups=[] if account else None,
                )  # fmt: skip
            while self._process.poll() is None:
                if self._kind.answers():
                    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                        return
                assert time.monotonic() < deadline, "the server does not start"
                time.sleep(0.02)
            # the children of the one that was killed have not all ended yet
            assert time.monotonic() < deadline, (self._kind.folder / "log").read_text()[-1000:]
            time.sleep(0.1)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it and wait for its end; the data stay."""
        if self._process is not None:
            children = _children(self._process.pid)
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None
            for child in children if number == signal.SIGKILL else ():
                with contextlib.suppress(OSError):
                    os.kill(child, number)
            with contextlib.suppress(OSError):
                (self._kind.folder / "db/postmaster.pid").unlink()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self._kind.folder, ignore_errors=True)


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]
    return []
