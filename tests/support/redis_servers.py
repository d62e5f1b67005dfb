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

SLOTS = 16384


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


NODES_BESIDE_THE_PROXY = {
    "test_a_stalled_server_hangs_nobody": "the proxy stands before one node only; test_cluster.py kills nodes"
}
"""Tests of the kits that a cluster must skip."""


class OnCluster(OnValkey):
    """The same, on a cluster of three nodes."""

    scheme = "redis+cluster"

    @pytest.fixture
    def url(self, redis_cluster: OwnCluster) -> str:
        redis_cluster.flush()
        return redis_cluster.url()

    @pytest.fixture(autouse=True)
    def _the_cluster(self, redis_cluster: OwnCluster) -> None:
        type(self).cluster = redis_cluster

    cluster: ClassVar[OwnCluster]

    def server_keys(self, url: str) -> set[str] | None:
        return self.cluster.all_keys()


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

    @property
    def running(self) -> bool:
        return self._process is not None

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


class OwnCluster:
    """Servers that form a cluster: masters that share the slots evenly, then ``replicas`` of the first of them."""

    def __init__(
        self, program: str, *arguments: str, masters: int = 3, replicas: int = 0, patience_ms: int = 1000
    ) -> None:
        """``patience_ms``: how long a node may be silent until the others call it dead."""
        self._arguments = (
            "--cluster-enabled", "yes", "--cluster-node-timeout", str(patience_ms),
            "--cluster-replica-validity-factor", "0", "--cluster-allow-replica-migration", "no",
            "--cluster-require-full-coverage", "no",
            "--repl-diskless-sync-delay", "0", *arguments,
        )  # fmt: skip
        # the port of the bus, 10,000 above the other by default, need not exist
        self.servers = [
            OwnServer(program, "--cluster-port", str(free_port()), *self._arguments) for _ in range(masters + replicas)
        ]
        self.masters = masters

    def url(self, scheme: str = "redis+cluster") -> str:
        """The URL of the first node, from which the others are found."""
        return self.servers[0].url(scheme=scheme)

    def ids(self) -> list[str]:
        return [self._do(server, "CLUSTER", "MYID").decode() for server in self.servers]

    def form(self) -> None:
        """Make the running servers a cluster, and wait until every node sees it whole."""
        for n, server in enumerate(self.servers[: self.masters]):
            first, end = SLOTS * n // self.masters, SLOTS * (n + 1) // self.masters
            self._do(server, "CLUSTER", "ADDSLOTSRANGE", first, end - 1)
            self._do(server, "CLUSTER", "SET-CONFIG-EPOCH", n + 1)
        for server in self.servers[1:]:
            bus = self.servers[0].arguments[1]
            self._do(server, "CLUSTER", "MEET", "127.0.0.1", self.servers[0].port, bus)
        self.settled()
        first_id = self.ids()[0]
        for server in self.servers[self.masters :]:
            self._eventually(lambda server=server: self._replicates(server, first_id))
        self.settled()

    def _replicates(self, server: OwnServer, master: str) -> bool:
        import redis

        with contextlib.suppress(redis.exceptions.ResponseError):  # it does not know that node yet
            self._do(server, "CLUSTER", "REPLICATE", master)
            return True
        return False

    def settled(self) -> None:
        """Wait until every running node sees all slots served and all nodes."""
        for server in self.servers:
            if server.running:
                self._eventually(lambda server=server: self._whole(server))

    def _whole(self, server: OwnServer) -> bool:
        facts = dict(line.split(":") for line in self._do(server, "CLUSTER", "INFO").decode().split())
        alive = sum(s.running for s in self.servers)
        return (
            facts["cluster_state"] == "ok"
            and facts["cluster_slots_ok"] == str(SLOTS)
            and int(facts["cluster_known_nodes"]) >= alive
        )

    def owner(self, key: str) -> int:
        """The number of the server that has a key's slot."""
        from redis.crc import key_slot

        return key_slot(key.encode()) * self.masters // SLOTS

    def all_keys(self) -> set[str]:
        """All keys on all masters."""
        found: set[str] = set()
        for server in self.servers:
            if server.running:
                with server.client() as client:
                    if client.role()[0] in (b"master", "master"):
                        found |= {key.decode() for key in client.keys("*")}
        return found

    def flush(self) -> None:
        for server in self.servers[: self.masters]:
            self._do(server, "FLUSHALL")

    def begin_move(self, slot: int, source: OwnServer, target: OwnServer) -> None:
        """Say to both that the slot is moved: from now on its keys may be on either."""
        ids = dict(zip(self.servers, self.ids(), strict=True))
        self._do(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
        self._do(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])

    def move_keys(self, slot: int, source: OwnServer, target: OwnServer, limit: int = 1000) -> int:
        """Move so many keys of the slot; return how many there were."""
        names = self._do(source, "CLUSTER", "GETKEYSINSLOT", slot, limit)
        for name in names:
            self._do(source, "MIGRATE", "127.0.0.1", target.port, name, 0, 5000)
        return len(names)

    def end_move(self, slot: int, target: OwnServer) -> None:
        """Move the rest, then say to all that the slot has moved."""
        ids = dict(zip(self.servers, self.ids(), strict=True))
        for server in (target, *(s for s in self.servers if s is not target)):
            self._do(server, "CLUSTER", "SETSLOT", slot, "NODE", ids[target])

    def _do(self, server: OwnServer, *command: Any) -> Any:
        with server.client() as client:
            client.response_callbacks.clear()  # the words as they are
            return client.execute_command(*command)

    def _eventually(self, look: Any) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not look():
            assert time.monotonic() < deadline, "the cluster does not come together"
            time.sleep(0.02)

    def __enter__(self) -> Self:
        try:
            for server in self.servers:
                server.start()
            self.form()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def close(self) -> None:
        self.__exit__(None, None, None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self.servers:
            server.__exit__(None, None, None)
