"""Waiting that a thread, a signal handler or the server can end."""

from __future__ import annotations

import os
import select
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from taskq_lib_sqlalchemy.database import Link

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


class Bell:
    """A pipe to oneself. ``ring`` is safe anywhere and sticky until ``silence``."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def ring(self) -> None:
        """End the running wait, or else the next."""
        try:
            os.write(self._write, b"!")
        except OSError:  # full: it rings already
            pass

    def wait(self, timeout: float, fd: int | None = None) -> None:
        """Return when rung, when ``fd`` is readable, or after ``timeout`` seconds; the bell is silent then."""
        poller = select.poll()
        poller.register(self._read, select.POLLIN)
        if fd is not None:
            poller.register(fd, select.POLLIN)
        poller.poll(max(0, int(timeout * 1000 + 0.999)))
        self.silence()

    def silence(self) -> None:
        """Forget rings."""
        try:
            while os.read(self._read, 512):
                pass
        except OSError:
            return

    def __del__(self) -> None:
        # Not before: somebody may still ring, and the number of a closed pipe may be another file's by then.
        for fd in (self._read, self._write):
            os.close(fd)


class Ears:
    """Notifications of PostgreSQL on one connection of its own thread, which may run statements too."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self._wanted: set[str] = set()
        self._listening: set[str] = set()
        self._connection: Any = None

    def listen(self, channels: Iterable[str]) -> None:
        """Listen to exactly these channels, from the next ``refresh`` on."""
        self._wanted = set(channels)

    def refresh(self) -> bool:
        """Make the server know what is listened to; True when that has changed (so that something may be missed).

        Raises: as ``Link.run``.
        """
        self.link.connection()
        driver = self.link.driver()
        if driver is not self._connection:
            self._connection, self._listening = driver, set()
        if self._listening == self._wanted:
            return False
        commands = [f'UNLISTEN "{name}"' for name in sorted(self._listening - self._wanted)]
        commands += [f'LISTEN "{name}"' for name in sorted(self._wanted - self._listening)]

        def work(connection: Connection) -> None:
            connection.exec_driver_sql("; ".join(commands))

        self.link.run(work, "listening for notifications")
        self._listening = set(self._wanted)
        return True

    def heard(self) -> list[tuple[str, str]]:
        """Return (channel, payload) of what has come in, without waiting."""

        def work(connection: Connection) -> list[tuple[str, str]]:
            driver: Any = connection.connection.dbapi_connection
            return [(note.channel, note.payload) for note in driver.notifies(timeout=0)]

        return self.link.run(work, "reading notifications") if self.link.connected else []

    def fileno(self) -> int:
        """Return the connection's socket."""
        return int(self.link.driver().pgconn.socket)
