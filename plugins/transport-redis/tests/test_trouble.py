"""Servers that load, forget scripts, turn read-only or fail over while a client is connected."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from taskq.errors import ConnectionFailed, TransportError
from taskq.message import Settlement
from taskq.spi import Duplicates
from tests.support.redis_servers import OwnServer
from tests.support.redis_transport import opened
from tests.support.steps import PATIENCE, ack, collect, consumer_of, messages, persistently

AT_ONCE = ("--repl-diskless-sync-delay", "0")


def test_a_server_that_loads_its_data_is_waited_for(redis_program: str) -> None:
    """After a restart with much to load the server answers LOADING; that is an error to repeat after, and says so."""
    slowly = ("--key-load-delay", "200")
    with (
        OwnServer(redis_program, "--appendonly", "yes", "--appendfsync", "always", *slowly) as server,
        opened(server.url()) as transport,
        server.client() as client,
    ):
        assert not transport.send(messages(*(f"{i:04}" for i in range(1500))))
        with client.pipeline(transaction=False) as much:
            for i in range(15_000):
                much.set("another program's", i)
            much.execute()
        consumer = consumer_of(transport)
        held = collect(consumer, 20)
        server.kill()
        server.start()
        said: list[str] = []

        def until_it_answers() -> None:
            try:
                assert not transport.send(messages("after"))
            except TransportError as error:
                said.append(f"{error} {error.retryable}")
                raise

        with pytest.raises(ConnectionFailed):
            until_it_answers()
        with pytest.raises(ConnectionFailed), opened(server.url()):
            pass  # one that connects only now
        persistently(until_it_answers)
        assert any("loading" in text.lower() or "starting" in text for text in said), said
        assert all(text.endswith("True") for text in said), said
        ack(consumer, held)  # held still
        assert len({d.payload for d in collect(consumer, 1481)}) == 1481


def test_scripts_are_flushed_while_work_goes_on(redis_url: str) -> None:
    """Whatever script the server forgets at whatever moment, nothing is lost, done twice or said to have failed."""
    import redis

    stop = threading.Event()

    def flush() -> None:
        with redis.Redis.from_url(redis_url) as client:
            while not stop.is_set():
                client.script_flush()
                client.execute_command("FUNCTION", "FLUSH")

    with opened(redis_url) as transport:
        consumer = consumer_of(transport)
        flusher = threading.Thread(target=flush)
        flusher.start()
        try:
            got: list[bytes] = []
            for round_ in range(40):
                batch = messages(*(f"{round_}-{i}" for i in range(25)))
                assert not transport.send(batch[:24])
                assert not transport.send(batch[24:])
                found = [*consumer.fetch(10, 1.0, ahead=10).deliveries]
                while len(found) < 25:
                    found += consumer.fetch(10, 1.0, ahead=5).deliveries
                assert not consumer.settle([Settlement(d.receipt) for d in found])
                assert not consumer.extend()
                got += [d.payload for d in found]
        finally:
            stop.set()
            flusher.join()
        assert len(got) == len(set(got)) == 1000
        assert transport.stats(["q"]) == {}


def test_a_master_turns_read_only_while_connected(redis_program: str) -> None:
    """Its operator made it a replica. Nothing is accepted meanwhile, and nothing is lost."""
    with OwnServer(redis_program) as server, opened(server.url()) as transport, server.client() as client:
        transport.send(messages("a", "b"))
        consumer = consumer_of(transport)
        held = collect(consumer, 1)
        client.replicaof("127.0.0.1", "1")  # where nobody is: it keeps its data
        for call in (
            lambda: transport.send(messages("refused")),
            lambda: consumer.settle([Settlement(held[0].receipt)]),
            lambda: consumer.extend(),
            lambda: consumer.fetch(1, 0.0),
        ):
            with pytest.raises(ConnectionFailed, match=r"(?i)read.?only|replica") as caught:
                call()
            assert caught.value.retryable
        client.replicaof("NO", "ONE")
        ack(consumer, held)
        assert [d.payload for d in collect(consumer, 1)] == [b"b"]
        assert not transport.send(messages("accepted"))
        assert [d.payload for d in collect(consumer, 1)] == [b"accepted"]


@contextmanager
def watched(program: str, *arguments: str) -> Iterator[tuple[OwnServer, OwnServer, str]]:
    """A master, its replica, and the URL of the sentinel that watches them."""
    with OwnServer(program, *AT_ONCE, *arguments) as master, OwnServer(program, *AT_ONCE, *arguments) as replica:
        with replica.client() as client:
            client.replicaof("127.0.0.1", str(master.port))
        with OwnServer(program) as sentinel:  # only for a free port and a folder
            sentinel.kill()
            config = sentinel.folder / "sentinel.conf"
            config.write_text(
                f"sentinel monitor mine 127.0.0.1 {master.port} 1\n"
                "sentinel down-after-milliseconds mine 300\n"
                "sentinel failover-timeout mine 3000\n"
            )
            command = [program, str(config), "--sentinel", "--port", str(sentinel.port), "--bind", "127.0.0.1"]
            with (sentinel.folder / "log").open("ab") as log:
                sentinel._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    with sentinel.client() as client:
                        if client.sentinel_slaves("mine"):
                            break
                except OSError:
                    pass
                except Exception as error:
                    if "Connection" not in type(error).__name__:
                        raise
                assert time.monotonic() < deadline, "the sentinel does not see the replica"
                time.sleep(0.05)
            yield master, replica, f"redis+sentinel://127.0.0.1:{sentinel.port}/0"


@pytest.mark.timeout(90)
def test_sentinel_fails_over(redis_program: str) -> None:
    """The master dies; with wait_replicas nothing that counted as sent is lost, and who held something holds it."""
    with (
        watched(redis_program) as (master, replica, url),
        opened(url, sentinel_service="mine", wait_replicas=1, timeout=2.0, connect_timeout=1.0) as transport,
    ):
        assert transport.capabilities.duplicates is Duplicates.POSSIBLE
        deadline = time.monotonic() + PATIENCE
        while transport.send(messages("probe", queue="other")):
            assert time.monotonic() < deadline, "no replica"
        consumer = consumer_of(transport)
        assert not transport.send(messages(*(f"{i:02}" for i in range(50))))
        held = collect(consumer, 10)
        assert not transport.send(messages("last"))  # it waits for the claim too, which came before
        master.kill()
        with pytest.raises(TransportError):
            transport.send(messages("nobody is there"))
        ack(consumer, held)
        rest = collect(consumer, 41)
        assert sorted(d.payload for d in rest) == [*(b"%02d" % i for i in range(10, 50)), b"last"]
        ack(consumer, rest)
        with replica.client() as client:
            assert client.role()[0] == b"master"
