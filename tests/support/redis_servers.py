"""Redis databases for tests, and servers of a test's own, to be killed, filled up and locked."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import pytest

from tests.support.servers import START_TIMEOUT, free_port


@contextlib.contextmanager
def empty_database(server: str) -> Iterator[str]:
    """Give an empty database of a server, one per test process, emptied again afterwards."""
    import redis

    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    url = f"{server.rpartition('/')[0]}/{1 + int(worker) % 15}"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield url
        client.flushdb()


def keys(url: str) -> set[str]:
    """All keys of a database."""
    import redis

    with redis.Redis.from_url(url) as client:
        return {key.decode() for key in client.keys("*")}


class OnValkey:
    """What the conformance kits need to know, for the transport and the store alike; mix it into a suite."""

    scheme = "redis"
    fault_options: ClassVar[dict[str, Any]] = {"timeout": 1.0, "connect_timeout": 1.0}

    @pytest.fixture
    def url(self, redis_url: str) -> str:
        return redis_url

    def server_keys(self, url: str) -> set[str] | None:
        return keys(url)


class OnRedis(OnValkey):
    """The same, on the oldest server that is tested."""

    @pytest.fixture
    def url(self, old_redis_url: str) -> str:
        return old_redis_url


class OwnServer:
    """A server of this test alone. It keeps port and data when it is killed and started again."""

    def __init__(self, program: str, *arguments: str) -> None:
        self.program = program
        self.arguments = arguments
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="taskq-own-redis-"))
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, user: str = "", database: int = 0, scheme: str = "redis") -> str:
        return f"{scheme}://{user + '@' if user else ''}127.0.0.1:{self.port}/{database}"

    def client(self, **options: Any) -> Any:
        """A client of the tests' own; close it, or use it as a context manager."""
        import redis

        return redis.Redis(port=self.port, **options)

    def start(self) -> None:
        """Start it and wait until its port is open."""
        import socket

        network = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder), "--save", ""]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.program, *network, *self.arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            assert self._process.poll() is None, (self.folder / "log").read_text()[-1000:]
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.01)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it and wait for its end; the data stay."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None

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
        shutil.rmtree(self.folder, ignore_errors=True)
