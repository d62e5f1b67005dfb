"""What is special about Redis: keys, crashes of the server, full memory, rights, foreign data, many queues."""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import redis

from taskq.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    NotSupported,
    StorageFull,
    TransportError,
)
from taskq.message import RELEASE, Delivery, QueueSpec, Settlement, Subscription
from taskq.spi import Duplicates, Durability, parse_urls
from taskq.testing import TcpProxy
from taskq_lib_redis.connection import RedisLink
from taskq_transport_redis import scripts
from tests.support.redis_servers import OwnServer, keys
from tests.support.redis_transport import opened
from tests.support.servers import SERVERS
from tests.support.steps import PATIENCE, ack, collect, consumer_of, messages, persistently

# ------------------------------------------------------------------------------------------------ nothing left behind


def test_no_key_is_left_after_work(redis_url: str) -> None:
    with opened(redis_url) as transport:
        transport.send(messages("a", "b", "c"))
        transport.send(messages("later", delay=0.05))
        consumer = consumer_of(transport)
        held = collect(consumer, 4)
        ack(consumer, held[:2])
        consumer.settle([Settlement(d.receipt, RELEASE, delay=0.02) for d in held[2:]])
        ack(consumer, collect(consumer, 2))
        consumer.wake()
        consumer.fetch(1, 0.0)
        assert not consumer.fetch(1, 0.0).deliveries
        consumer.close()
    assert keys(redis_url) == set()


def test_no_key_is_left_by_many_queues(redis_url: str) -> None:
    names = [f"q{i}" for i in range(40)]
    with opened(redis_url) as transport:
        for name in names:
            transport.send(messages("a", queue=name))
        consumer = consumer_of(transport, *names)
        ack(consumer, collect(consumer, 40))
        assert not consumer.fetch(1, 0.0).deliveries
        consumer.close()
        # a bell that nobody heard ends by itself
        left = keys(redis_url)
        with redis.Redis.from_url(redis_url) as client:
            assert all(key.startswith("taskq:b:") and client.pttl(key) > 0 for key in left)


_HOLD = """
import sys, time
from taskq.message import Subscription
from taskq.spi import TransportConfig, parse_urls
from taskq_transport_redis.options import RedisOptions
from taskq_transport_redis.transport import RedisTransport
transport = RedisTransport(TransportConfig(urls=parse_urls(sys.argv[1]), options=RedisOptions(), lease_s=0.5))
transport.open()
consumer = transport.consumer()
consumer.subscribe([Subscription("q")])
print(len(consumer.fetch(10, 5.0, ahead=10).deliveries), flush=True)
time.sleep(60)
"""


def test_no_key_is_left_after_a_kill(redis_url: str) -> None:
    with opened(redis_url) as transport:
        transport.send(messages(*(f"{i:02}" for i in range(20))))
        with subprocess.Popen([sys.executable, "-c", _HOLD, redis_url], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"10\n"
            process.kill()
        consumer = consumer_of(transport)
        found: list[Delivery] = []
        deadline = time.monotonic() + PATIENCE
        while len(found) < 20:  # what it had read ahead too
            assert time.monotonic() < deadline
            transport.maintain(0.1)
            found += consumer.fetch(100, 0.05).deliveries
        assert {d.deliveries for d in found} <= {1, 2}
        assert sorted(d.payload for d in found) == [b"%02d" % i for i in range(20)]
        ack(consumer, found)
        assert not consumer.fetch(1, 0.0).deliveries
        consumer.close()
    assert keys(redis_url) == set()


def test_what_is_read_ahead_counts_and_goes_back(redis_url: str) -> None:
    with opened(redis_url) as transport:
        transport.send(messages(*(f"{i}" for i in range(8))))
        first = consumer_of(transport, credit=6)
        assert [d.payload for d in first.fetch(4, 0.0, ahead=4).deliveries] == [b"0", b"1", b"2", b"3"]
        other = consumer_of(transport)
        assert [d.payload for d in collect(other, 2)] == [b"6", b"7"]
        assert [d.payload for d in first.fetch(1, 0.0).deliveries] == [b"4"], "more than the limit of this call"
        first.close()
        back = collect(other, 6)
        assert [(d.payload, d.deliveries) for d in back] == [(b"%d" % i, 1) for i in range(6)]


def test_what_was_read_ahead_of_a_queue_goes_back_when_it_is_left(redis_url: str) -> None:
    with opened(redis_url) as transport:
        transport.send(messages("1", "2", "3"))
        consumer = consumer_of(transport)
        assert len(consumer.fetch(1, 0.0, ahead=2).deliveries) == 1
        consumer.subscribe([Subscription("other")])
        assert not consumer.fetch(10, 0.0).deliveries
        other = consumer_of(transport)
        assert [(d.payload, d.deliveries) for d in collect(other, 2)] == [(b"2", 1), (b"3", 1)]


def test_what_was_read_ahead_goes_back_when_the_credit_is_lowered(redis_url: str) -> None:
    with opened(redis_url) as transport:
        transport.send(messages("1", "2", "3", "4"))
        consumer = consumer_of(transport)
        assert len(consumer.fetch(2, 0.0, ahead=2).deliveries) == 2
        consumer.credit(3, 1 << 30)
        assert [d.payload for d in consumer.fetch(10, 0.0).deliveries] == [b"3"]
        assert [(d.payload, d.deliveries) for d in collect(consumer_of(transport), 1)] == [(b"4", 1)]


# ----------------------------------------------------------------------------------------------------- broken claims


def test_a_claim_whose_answer_is_lost_gives_back_what_it_took(redis_url: str) -> None:
    """The server has given messages to a consumer that never heard of it, and whose lease goes on."""
    parsed = parse_urls(redis_url)[0]
    assert parsed.host
    assert parsed.port
    with TcpProxy(parsed.host, parsed.port) as proxy, opened(redis_url) as sender:
        with opened(f"redis://127.0.0.1:{proxy.port}{parsed.path}", timeout=1.0) as transport:
            consumer = consumer_of(transport)
            sender.send(messages("held"))
            (held,) = collect(consumer, 1)
            sender.send(messages("a", "b", "c"))
            proxy.swallow("down")
            with pytest.raises(TransportError) as caught:
                consumer.fetch(10, 0.0)
            assert caught.value.retryable
            assert sender.stats(["q"])["q"].in_flight == 4
            proxy.cut()
            proxy.heal()
            found = collect(consumer, 3)
            assert [(d.payload, d.deliveries) for d in found] == [(b"a", 1), (b"b", 1), (b"c", 1)]
            ack(consumer, [held, *found])  # what it knew of was never lost
            consumer.close()
        assert sender.stats(["q"]) == {}


def test_a_claim_that_arrives_late_is_refused(redis_url: str) -> None:
    with opened(redis_url) as transport:
        consumer = consumer_of(transport)
        consumer.fetch(1, 0.0)
        late = consumer._claim_arguments(consumer.id, 10)
        consumer._spoil(consumer._next - 10)
        transport.send(messages("a"))
        (delivery,) = collect(consumer, 1)
        transport.send(messages("b"))
        with redis.Redis.from_url(redis_url) as client, pytest.raises(redis.exceptions.ResponseError, match="LOST"):
            client.eval(scripts.CLAIM.text, 0, *late)
        ack(consumer, [delivery, *collect(consumer, 1)])


def test_a_forgotten_consumer_enters_anew(redis_url: str) -> None:
    """The server lost its data: what was held is reported, and work goes on."""
    with opened(redis_url) as transport, redis.Redis.from_url(redis_url) as client:
        transport.send(messages("a", "b"))
        consumer = consumer_of(transport)
        (a,) = consumer.fetch(1, 0.0, ahead=1).deliveries
        client.flushdb()
        transport.send(messages("c"))
        (b,) = consumer.fetch(1, 0.0).deliveries  # it was here already
        assert [loss.receipt for loss in consumer.settle([Settlement(b.receipt)])][:1] == [b.receipt]
        fetched = consumer.fetch(1, 1.0)
        assert [d.payload for d in fetched.deliveries] == [b"c"]
        assert [loss.receipt for loss in consumer.settle([Settlement(a.receipt)])] == [a.receipt]
        ack(consumer, fetched.deliveries)


def test_scripts_are_loaded_again(redis_url: str) -> None:
    with opened(redis_url) as transport, redis.Redis.from_url(redis_url) as client:
        transport.send(messages(*(f"{i}" for i in range(2500)), priority=3))
        consumer = consumer_of(transport)
        found = list(consumer.fetch(500, 0.0, ahead=500).deliveries)
        client.script_flush()
        transport.send(messages("again", "and again"))
        client.script_flush()
        found += consumer.fetch(500, 0.0, ahead=500).deliveries
        client.script_flush()
        assert not consumer.settle([Settlement(d.receipt) for d in found])
        client.script_flush()
        assert not consumer.extend()
        found = collect(consumer, 2502 - len(found))
        ack(consumer, found)
        assert not consumer.fetch(1, 0.0).deliveries


# ------------------------------------------------------------------------------------------------ the server in trouble


def test_accepted_messages_survive_the_servers_death(redis_program: str) -> None:
    """kill -9 with appendfsync always: nothing accepted is lost, what was held is held still."""
    with (
        OwnServer(redis_program, "--appendonly", "yes", "--appendfsync", "always") as server,
        opened(server.url()) as transport,
    ):
        assert transport.capabilities.durability is Durability.DISK
        transport.send(messages(*(f"{i:03}" for i in range(100))))
        transport.send(messages("later", delay=0.3))
        consumer = consumer_of(transport)
        held = collect(consumer, 30)
        ack(consumer, held[:10])
        server.kill()
        with pytest.raises(TransportError) as caught:
            consumer.settle([Settlement(held[10].receipt)])
        assert caught.value.retryable
        with pytest.raises(ConnectionFailed, match=str(server.port)):
            transport.send(messages("while it is away"))
        server.start()
        assert not persistently(lambda: consumer.settle([Settlement(d.receipt) for d in held[10:]]))
        rest = collect(consumer, 71)
        assert sorted(d.payload for d in rest) == [*(b"%03d" % i for i in range(30, 100)), b"later"]
        assert {d.deliveries for d in rest} == {1}
        ack(consumer, rest)


def test_durability_is_what_the_server_does(redis_program: str) -> None:
    with OwnServer(redis_program, "--appendonly", "yes") as server, opened(server.url()) as transport:
        assert transport.capabilities.durability is Durability.SERVER


def test_a_server_that_evicts_queues_is_refused(redis_program: str) -> None:
    with OwnServer(redis_program, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru") as server:
        with pytest.raises(NotSupported, match="noeviction"), opened(server.url()):
            pass
        with server.client() as client:
            client.config_set("maxmemory-policy", "volatile-lru")
        with opened(server.url()) as transport:
            assert transport.capabilities.duplicates is Duplicates.AFTER_LOST_LEASE
        with opened(f"{server.url()};{server.url(database=1)}") as transport:
            assert transport.capabilities.duplicates is Duplicates.POSSIBLE


def test_a_waiting_fetch_survives_a_restart(redis_program: str) -> None:
    with OwnServer(redis_program) as server, opened(server.url()) as transport:
        consumer = consumer_of(transport)
        assert not consumer.fetch(1, 0.0).deliveries
        timer = threading.Timer(0.2, server.kill)
        timer.start()
        with pytest.raises(TransportError) as caught:
            consumer.fetch(1, 10.0)
        assert caught.value.retryable
        timer.join()
        server.start()
        transport.send(messages("a"))
        assert [d.payload for d in collect(consumer, 1)] == [b"a"]


def test_a_frozen_server_is_noticed(redis_program: str) -> None:
    with OwnServer(redis_program) as server, opened(server.url(), timeout=0.5, connect_timeout=0.5) as transport:
        consumer = consumer_of(transport)
        consumer.fetch(1, 0.0)
        assert server._process is not None
        server._process.send_signal(signal.SIGSTOP)
        started = time.monotonic()
        (failure,) = transport.send(messages("maybe"))
        assert failure.maybe_sent
        with pytest.raises(TransportError):
            consumer.fetch(1, 0.2)
        assert time.monotonic() - started < PATIENCE
        server._process.send_signal(signal.SIGCONT)
        assert not persistently(lambda: transport.send(messages("certainly")))
        assert b"certainly" in {d.payload for d in (*collect(consumer, 1), *consumer.fetch(1, 0.1).deliveries)}


def test_full_memory_refuses_messages_and_lets_work_end(redis_program: str) -> None:
    with OwnServer(redis_program) as server, opened(server.url()) as transport, server.client() as client:
        transport.send(messages(*(f"{i}" for i in range(20))))
        consumer = consumer_of(transport)
        held = collect(consumer, 10)
        client.config_set("maxmemory", "1")
        with pytest.raises(StorageFull) as caught:
            transport.send(messages("one too many"))
        assert caught.value.retryable
        failures = transport.send(messages("two", "three"))
        assert [(f.index, f.maybe_sent, f.retryable) for f in failures] == [(0, False, True), (1, False, True)]
        assert not consumer.extend()
        consumer.settle([Settlement(d.receipt, RELEASE) for d in held[:1]])
        ack(consumer, held[1:])
        rest = collect(consumer, 11)
        fresh = consumer_of(transport)
        transport.maintain(0.1)
        fresh.close()
        ack(consumer, rest)
        client.config_set("maxmemory", "0")
        assert not transport.send(messages("now"))
        ack(consumer, collect(consumer, 1))


def test_a_replica_says_so_and_the_next_server_is_tried(redis_program: str) -> None:
    with OwnServer(redis_program) as replica, OwnServer(redis_program, "--repl-diskless-sync-delay", "0") as master:
        with replica.client() as client:
            client.replicaof("127.0.0.1", str(master.port))
        with opened(f"{replica.url()};{master.url()}") as transport:
            assert not persistently(lambda: transport.send(messages("a")))
            consumer = consumer_of(transport)
            (delivery,) = collect(consumer, 1)
            # the master dies, the replica takes over
            deadline = time.monotonic() + PATIENCE
            with replica.client() as client:
                while not client.hlen(f"taskq:i:{consumer.id}:0"):
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
                master.kill()
                client.replicaof("NO", "ONE")
            assert not persistently(lambda: consumer.settle([Settlement(delivery.receipt)]))
            assert not transport.send(messages("b"))
            assert [d.payload for d in collect(consumer, 1)] == [b"b"]


def test_waiting_for_replicas(redis_program: str) -> None:
    at_once = ("--repl-diskless-sync-delay", "0")
    with (
        OwnServer(redis_program, *at_once) as master,
        OwnServer(redis_program) as replica,
        opened(master.url(), wait_replicas=1, timeout=0.4) as transport,
    ):
        (failure,) = transport.send(messages("alone"))
        assert failure.maybe_sent
        assert "0 of 1 replicas" in failure.reason
        with replica.client() as client:
            client.replicaof("127.0.0.1", str(master.port))
        deadline = time.monotonic() + PATIENCE
        while transport.send(messages("together")):
            assert time.monotonic() < deadline


def test_the_second_url_is_used_when_the_first_is_dead(redis_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        dead = probe.getsockname()[1]
    with opened(f"redis://127.0.0.1:{dead}/0;{redis_url}") as transport:
        assert not transport.send(messages("a"))
        assert [d.payload for d in collect(consumer_of(transport), 1)] == [b"a"]
    with pytest.raises(ConnectionFailed, match=str(dead)), opened(f"redis://127.0.0.1:{dead}/0"):
        pass


def test_a_sentinel_names_the_master(redis_program: str) -> None:
    with OwnServer(redis_program) as master:
        with OwnServer(redis_program) as sentinel:  # only for a free port and a folder
            sentinel.kill()
            config = sentinel.folder / "sentinel.conf"
            config.write_text(f"sentinel monitor mine 127.0.0.1 {master.port} 1\n")
            sentinel.arguments = ()
            command = [redis_program, str(config), "--sentinel", "--port", str(sentinel.port), "--bind", "127.0.0.1"]
            with (sentinel.folder / "log").open("ab") as log:
                sentinel._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            url = f"redis+sentinel://127.0.0.1:{sentinel.port}/0"
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    with opened(url, sentinel_service="mine") as transport:
                        assert not transport.send(messages("a"))
                    break
                except ConnectionFailed:
                    assert time.monotonic() < deadline, (sentinel.folder / "log").read_text()
                    time.sleep(0.05)
            with pytest.raises(ConnectionFailed, match="'theirs'"), opened(url, sentinel_service="theirs"):
                pass
        with opened(master.url()) as transport:
            assert [d.payload for d in collect(consumer_of(transport), 1)] == [b"a"]


@pytest.mark.server
def test_tls(server_url: Any) -> None:
    server_url("redis")
    program = str(SERVERS["redis"].program())
    with OwnServer(program) as server:  # a first start makes the folder
        server.kill()
        certificate = server.folder / "cert.pem"
        key = server.folder / "key.pem"
        command = (
            f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {certificate} -days 2 -subj /CN=localhost"
        )
        made = subprocess.run([*command.split(), "-addext", "subjectAltName=IP:127.0.0.1"], capture_output=True)
        if made.returncode:
            pytest.skip("no openssl to make a certificate with")
        port = server.port
        files = (
            "--tls-cert-file",
            str(certificate),
            "--tls-key-file",
            str(key),
            "--tls-ca-cert-file",
            str(certificate),
        )
        server.arguments = ("--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no", *files)
        server.start()
        url = server.url(scheme="rediss")
        with opened(url, tls_ca_file=str(certificate)) as transport:
            assert not transport.send(messages("a"))
            consumer = consumer_of(transport)
            ack(consumer, collect(consumer, 1))
            threading.Timer(0.1, lambda: transport.send(messages("b"))).start()
            ack(consumer, collect(consumer, 1))
        with pytest.raises(ConnectionFailed, match=r"(?i)certificate"), opened(url):
            pass
        with opened(url, tls_verify=False) as transport:
            assert not transport.send(messages("c"))


# ------------------------------------------------------------------------------------------------------------ rights


def test_wrong_credentials(redis_program: str) -> None:
    with OwnServer(redis_program, "--requirepass", "right-secret") as server:
        for user in (":wrong-secret", "", "nobody:wrong-secret"):
            with pytest.raises(AuthenticationFailed) as caught, opened(server.url(user)):
                pass
            assert not caught.value.retryable
            assert "secret" not in str(caught.value)
        with opened(server.url(":right-secret")) as transport:
            assert not transport.send(messages("a"))


def test_a_user_without_rights(redis_program: str) -> None:
    with OwnServer(redis_program) as server, server.client() as client:
        client.execute_command("ACL", "SETUSER", "poor", "on", ">pw", "~other:*", "+@all")
        with pytest.raises(AuthenticationFailed, match="README"), opened(server.url("poor:pw")):
            pass
        client.execute_command(
            "ACL", "SETUSER", "reader", "on", ">pw", "~taskq:*", "&*", "+@read", "+eval", "+evalsha", "+time"
        )
        with opened(server.url("reader:pw")) as transport, pytest.raises(AuthenticationFailed, match="README"):
            transport.consumer()


def test_the_rights_that_the_readme_lists_suffice(redis_program: str) -> None:
    with OwnServer(redis_program) as server, server.client() as client:
        rights = "~taskq:* &taskq:* -@all +@read +@write +@connection +@scripting +@pubsub +time"
        client.execute_command("ACL", "SETUSER", "worker", "on", ">pw", *rights.split())
        with opened(server.url("worker:pw")) as transport:
            transport.declare([QueueSpec(name="q")])
            transport.send(messages("a", "b"))
            transport.send(messages("c", delay=0.05))
            consumer = consumer_of(transport)
            held = collect(consumer, 3)
            consumer.settle([Settlement(held[0].receipt, RELEASE)])
            ack(consumer, held[1:])
            consumer.wake()
            consumer.extend()
            ack(consumer, collect(consumer, 1))
            transport.maintain(0.1)
            assert len(transport.peek("q")) == 0
            transport.purge(["q"])
            consumer.close()


# ------------------------------------------------------------------------------------------------------ foreign data


def test_foreign_messages_are_payloads(redis_url: str) -> None:
    """Another program put things there: they are delivered as they are, survive a hand-back, and hurt nobody."""
    foreign = [b"", b"x", b"hello", b"\xff\xff\xff", b"\0\x09of another priority"]
    with opened(redis_url, lease_s=1.5) as transport, redis.Redis.from_url(redis_url) as client:
        client.rpush("taskq:q:q:5", *foreign)
        client.zadd("taskq:d:q", {b"short": 0, b"": 1, b"rather a long one": 2})
        assert len(transport.peek("q", limit=100)) == 8
        assert transport.stats(["q"])["q"].ready == 8
        consumer = consumer_of(transport)
        found = collect(consumer, 8)
        assert {d.payload for d in found} == {*foreign, b"short", b"rather a long one"}
        consumer.settle([Settlement(d.receipt, RELEASE) for d in found])
        collect(consumer, 8)
        other = consumer_of(transport)
        time.sleep(1.6)
        while transport.maintain(0.1) == 0:
            continue
        again = collect(other, 8)
        assert sorted(d.payload for d in again) == sorted(d.payload for d in found)
        assert {d.deliveries for d in again} == {2}
        ack(other, again)


def test_keys_of_another_type_are_passed_over(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with opened(redis_url) as transport, redis.Redis.from_url(redis_url) as client:
        for key in ("taskq:q:q:5", "taskq:d:q", "taskq:b:q", "taskq:q:other:5"):
            client.set(key, "in the way")
        transport.send(messages("high", priority=9))
        consumer = consumer_of(transport)
        with caplog.at_level(logging.WARNING):
            (delivery,) = collect(consumer, 1)
            consumer.fetch(1, 0.05)
        assert "another type" in caplog.text
        assert len(caplog.records) <= 4, "said again and again"
        (failure,) = transport.send(messages("in vain"))
        assert "WRONGTYPE" in failure.reason
        assert not failure.maybe_sent
        ack(consumer, [delivery])
        transport.stats(["q", "other"])
        assert transport.purge(["q"]) == {"q": 0}
        transport.send(messages("now"))
        (held,) = collect(consumer, 1)
        # handing back where it is not possible keeps the message
        client.set("taskq:q:q:5", "in the way again")
        with pytest.raises(TransportError, match="WRONGTYPE"):
            consumer.settle([Settlement(held.receipt, RELEASE)])
        consumer.close()
        assert transport.stats(["q"])["q"].in_flight == 1
        client.delete("taskq:q:q:5")
        client.zadd("taskq:c", {client.zrange("taskq:c", 0, 0)[0]: 1})
        transport.maintain(0.1)
        assert [d.payload for d in collect(consumer_of(transport), 1)] == [b"now"]


def test_ordered_queues_and_groups_are_refused(redis_url: str) -> None:
    with opened(redis_url) as transport:
        with pytest.raises(NotSupported, match="ordered"):
            transport.declare([QueueSpec(name="q", ordered=True)])
        failures = transport.send([*messages("a"), *messages("b", group="g")])
        assert [(f.index, f.retryable, f.maybe_sent) for f in failures] == [(1, False, False)]


def test_options_that_would_do_nothing_are_refused(redis_url: str) -> None:
    for options in ({"sentinel_service": "mine"}, {"tls_ca_file": "/x"}, {"tls_verify": False}):
        with pytest.raises(NotSupported), opened(redis_url, **options):
            pass
    with pytest.raises(NotSupported, match="sentinel_service"), opened("redis+sentinel://localhost:1/0"):
        pass
    with pytest.raises(AuthenticationFailed, match="number of the database"), opened("redis://localhost:1/name"):
        pass


# ------------------------------------------------------------------------------------------------------- many queues


@pytest.mark.parametrize("order", ["fair", "strict", "weighted"])
def test_a_thousand_queues_cost_no_more_round_trips(
    redis_url: str, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"q{i:04}" for i in range(1000)]
    with opened(redis_url) as transport:
        transport.send([m for n in ("q0999", "q0500", "q0001") for m in messages(f"{n}-a", f"{n}-b", queue=n)])
        transport.send(messages("later", queue="q0002", delay=600))
        consumer = consumer_of(transport, *names, order=order)
        assert not consumer.fetch(0, 0.0).deliveries  # the server knows the queues
        counts: list[int] = []
        send = RedisLink._send
        monkeypatch.setattr(RedisLink, "_send", lambda link, packed, n: (counts.append(n), send(link, packed, n)))
        found = [d.payload.decode() for d in consumer.fetch(100, 0.0).deliveries]
        monkeypatch.undo()
        assert counts == [1]
        assert len(found) == 6
        if order == "strict":
            assert found == [f"{n}-{x}" for n in ("q0001", "q0500", "q0999") for x in "ab"]
        started = threading.Timer(0.1, lambda: transport.send(messages("rung", queue="q0777")))
        started.start()
        (rung,) = consumer.fetch(10, 10.0).deliveries
        started.join()
        assert rung.payload == b"rung"
        consumer.subscribe([Subscription(n) for n in names[:20]])
        transport.send(messages("unwanted", queue="q0777"))
        transport.send(messages("wanted", queue="q0019"))
        assert [d.payload for d in consumer.fetch(10, 1.0).deliveries] == [b"wanted"]


def test_fair_order_among_many_queues(redis_url: str) -> None:
    names = [f"q{i:02}" for i in range(40)]
    with opened(redis_url) as transport:
        for name in names:
            transport.send(messages("x", "x", "x", queue=name))
        consumer = consumer_of(transport, *names)
        seen = []
        for _ in range(40):
            (delivery,) = consumer.fetch(1, 1.0).deliveries
            seen.append(delivery.queue)
            ack(consumer, [delivery])
        assert len(set(seen)) == 40, "a queue was passed over while another was served twice"


# ------------------------------------------------------------------------------------------------------------- waking


def test_a_bell_is_not_taken_by_a_consumer_without_room(redis_url: str) -> None:
    """Who may take nothing must not hear the bell in the place of one who may."""
    with opened(redis_url, poll_interval=30.0) as transport:
        transport.send(messages("held"))
        full = consumer_of(transport, credit=1)
        collect(full, 1)
        free = consumer_of(transport)
        threads = [threading.Thread(target=full.fetch, args=(1, 1.5))]
        threads[0].start()
        time.sleep(0.1)
        sender = threading.Timer(0.2, lambda: transport.send(messages("a")))
        sender.start()
        started = time.monotonic()
        assert [d.payload for d in free.fetch(1, 10.0).deliveries] == [b"a"]
        assert time.monotonic() - started < 5.0
        threads[0].join()
        sender.join()


def test_a_delayed_message_wakes_who_waits_already(redis_url: str) -> None:
    with opened(redis_url, poll_interval=30.0) as transport:
        consumer = consumer_of(transport)
        sender = threading.Timer(0.1, lambda: transport.send(messages("a", delay=0.2)))
        sender.start()
        started = time.monotonic()
        assert [d.payload for d in consumer.fetch(1, 10.0).deliveries] == [b"a"]
        assert 0.2 < time.monotonic() - started < 5.0
        sender.join()
