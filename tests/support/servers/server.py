"""What all kinds of servers have in common: their folder, their port, their start and their end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import ClassVar

START_TIMEOUT = 120.0  # seconds; two cores that others use, too, have taken more than 60


class Missing(Exception):
    """The server cannot be started here; the text says why."""


class Server:
    """How to find, prepare and start one kind of server. An instance is one that runs, or is about to."""

    name: ClassVar[str]
    packages: ClassVar[str] = ""  # Debian's name for it
    advice: ClassVar[str] = ""  # how to get it elsewhere
    optional: ClassVar[bool] = False  # nothing needs it yet: no failure, no installation, no row in the table
    user: ClassVar[str | None] = None  # who runs it when we are root, for those that refuse to be root
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, *, durable: bool = False) -> None:
        self.durable = durable  # as safe against power loss as in production; off, the tests are faster
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"taskq-{self.name}-"))
        self.guard: subprocess.Popen[bytes] | None = None

    # -- what a subclass says -----------------------------------------------------------------------------------------

    @classmethod
    def program(cls) -> str | None:
        """Path of the server's executable, None when it is not installed."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Make the data folder; the rest happens in `command`."""

    def command(self) -> list[str]:
        """The server, in the foreground."""
        raise NotImplementedError

    def url(self) -> str:
        raise NotImplementedError

    def answers(self) -> bool:
        """Is it ready for clients? By default: does its port accept connections?"""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    # -- the same for all ---------------------------------------------------------------------------------------------

    @classmethod
    def variable(cls) -> str:
        return f"TASKQ_TEST_{cls.name.upper()}_URL"

    @classmethod
    def how_to_get(cls) -> str:
        ways = [f"apt-get install {cls.packages}" if cls.packages else "", cls.advice, f"set {cls.variable()}"]
        return ", or ".join(way for way in ways if way)

    def run_as(self) -> str | None:
        return self.user if os.geteuid() == 0 else None

    def tool(self, *command: str | Path) -> None:
        """Run a preparation step as the server's user."""
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=self.folder,
            user=self.run_as(),
            group=self.run_as(),
            extra_groups=[] if self.run_as() else None,
            check=False,
        )
        if done.returncode:
            raise Missing(f"{command[0]} failed: {' '.join(done.stdout.split())[-300:]}")

    def start(self) -> None:
        """Start it and wait until it answers."""
        try:
            if account := self.run_as():
                try:
                    shutil.chown(self.folder, account)
                except LookupError:
                    raise Missing(f"it refuses to run as root, and there is no user {account}") from None
            self.prepare()
            order = {
                "command": self.command(),
                "user": self.run_as(),
                "stop": self.stop_signal.name,
                "folder": str(self.folder),
            }
            self.guard = subprocess.Popen(
                [sys.executable, Path(__file__).with_name("guard.py"), json.dumps(order)],
                stdin=subprocess.PIPE,
                start_new_session=True,  # out of reach of the terminal's Ctrl-C
            )
            deadline = time.monotonic() + START_TIMEOUT
            while not self.answers():
                if self.guard.poll() is not None:
                    raise Missing("it ended by itself while starting; its log is above")
                if time.monotonic() > deadline:
                    raise Missing(f"it did not answer on port {self.port} within {START_TIMEOUT:.0f} s")
                time.sleep(0.05)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Order the guard to stop the server, and wait until it has."""
        if self.guard is not None:
            with contextlib.suppress(OSError):
                self.guard.stdin.close()  # type: ignore[union-attr]  # it was made with a pipe
            self.guard.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def which(program: str) -> str | None:
    """On the PATH, or where Debian puts daemons (not on every user's PATH)."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def say(text: str) -> None:
    print(f"servers: {text}", file=sys.stderr, flush=True)
