"""What is special about a cluster: slots that move, masters that die, round trips, and how queues share the nodes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from redis.crc import key_slot

from taskq import Signature, TaskQ
from taskq.errors import AuthenticationFailed, NotSupported, TransportError
from taskq.message import RELEASE, Delivery, Outbound, QueueSpec, Settlement, Subscription
from taskq.spi import TransportConfig, parse_urls
from taskq_lib_redis.connection import RedisLink
from taskq_transport_redis.cluster import space_of
from taskq_transport_redis.options import RedisOptions
from taskq_transport_redis.transport import RedisTransport
from tests.support.redis_servers import OwnCluster, OwnServer
from tests.support.redis_transport import opened
from tests.support.steps import PATIENCE, ack, collect, consumer_of, messages, persistently


@pytest.fixture
def cluster(redis_cluster: OwnCluster) -> OwnCluster:
    redis_cluster.flush()
    return redis_cluster


def queues_on_each(cluster: OwnCluster, per_node: int = 1) -> list[str]:
    """Names of queues, so many for each node."""
    found: dict[int, list[str]] = {n: [] for n in range(cluster.masters)}
    for i in range(10_000):
        names = found[cluster.owner(space_of("taskq:", f"q{i}"))]
        if len(names) < per_node:
            names.append(f"q{i}")
    return [name for names in found.values() for name in names]


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count writes to servers: each is a round trip."""
    writes: list[int] = []
    send = RedisLink._send

    def count(link: RedisLink, packed: Any, n: int) -> None:
        writes.append(n)
        send(link, packed, n)

    with monkeypatch.context() as patch:
        patch.setattr(RedisLink, "_send", count)
        yield writes


# --------------------------------------------------------------------------------------------------------- all nodes


def test_queues_live_on_all_nodes_and_leave_no_key(cluster: OwnCluster) -> None:
    names = queues_on_each(cluster, 2)
    with opened(cluster.url()) as transport:
        batch = [m for name in names for m in messages(f"{name}-1", f"{name}-2", queue=name)]
        assert not transport.send(batch)
        assert not transport.send([m for name in names for m in messages(f"{name}-3", queue=name, delay=0.05)])
        for server in cluster.servers:
            with server.client() as client:
                assert client.dbsize(), "a node without a queue"
        consumer = consumer_of(transport, *names)
        held = collect(consumer, 3 * len(names))
        assert {d.payload.decode() for d in held} == {f"{name}-{i}" for name in names for i in (1, 2, 3)}
        assert {s.in_flight for s in transport.stats(names).values()} == {3}
        consumer.settle([Settlement(d.receipt, RELEASE) for d in held[:3]])
        assert not consumer.extend()
        ack(consumer, held[3:])
        ack(consumer, collect(consumer, 3))
        assert not consumer.fetch(1, 0.0).deliveries
        consumer.close()
    assert cluster.all_keys() == set()


@pytest.mark.parametrize("name", ["a}b", "{a}", "}", "{}", "a%7Db", "ü", "x" * 200])
def test_any_name_of_a_queue_keeps_to_one_slot(cluster: OwnCluster, name: str) -> None:
    with opened(cluster.url()) as transport:
        transport.declare([QueueSpec(name=name)])
        assert not transport.send(messages("a", "b", queue=name))
        consumer = consumer_of(transport, name)
        held = collect(consumer, 2)
        assert len({key_slot(key.encode()) for key in cluster.all_keys()}) == 1
        ack(consumer, held)
    assert space_of("taskq:", "a}b") != space_of("taskq:", "a%7Db")


def test_an_idle_fetch_costs_no_round_trips(cluster: OwnCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent queues are listened to: one write to each node per poll_interval, whatever their number."""
    names = [f"q{i:03}" for i in range(200)]
    with opened(cluster.url(), poll_interval=30.0) as transport:
        consumer = consumer_of(transport, *names)
        assert not consumer.fetch(10, 0.0).deliveries  # each was looked at
        with counted(monkeypatch) as writes:
            assert not consumer.fetch(10, 0.3).deliveries
            assert writes == []
            timer = threading.Timer(0.1, lambda: transport.send(messages("rung", queue="q123")))
            timer.start()
            (rung,) = consumer.fetch(10, PATIENCE).deliveries
            timer.join()
        assert rung.queue == "q123"
        assert len(writes) <= 3, "the sender's, and a claim"
        ack(consumer, [rung])
    with opened(cluster.url(), poll_interval=0.01) as transport:
        consumer = consumer_of(transport, *names)
        consumer.fetch(10, 0.0)
        time.sleep(0.02)
        with counted(monkeypatch) as writes:
            consumer.fetch(10, 0.0)
        assert len(writes) == 3, "one look at each node"
        assert sum(writes) == 200


def test_a_missed_bell_is_made_up_for(cluster: OwnCluster) -> None:
    with opened(cluster.url(), poll_interval=0.1) as transport:
        consumer = consumer_of(transport)
        assert not consumer.fetch(1, 0.0).deliveries
        with cluster.servers[cluster.owner(space_of("taskq:", "q"))].client() as client:
            client.rpush("taskq:{q}:q:q:5", b"\0\5quiet")  # by another program, which rings no bell
        assert [d.payload for d in consumer.fetch(1, PATIENCE).deliveries] == [b"quiet"]


def test_strict_and_weighted_order(cluster: OwnCluster) -> None:
    names = queues_on_each(cluster)
    with opened(cluster.url()) as transport:
        for name in names:
            transport.send(messages(*(f"{i}" for i in range(50)), queue=name))
        strict = consumer_of(transport, *names, order="strict")
        held = [d for _ in range(100) for d in strict.fetch(1, 1.0).deliveries]
        assert [d.queue for d in held] == [names[0]] * 50 + [names[1]] * 50
        strict.close()
        weighted = transport.consumer()
        weighted.credit(10_000, 1 << 30)
        weighted.subscribe([Subscription(names[0], 8), Subscription(names[1], 1)], order="weighted")
        first = [d.queue for _ in range(45) for d in weighted.fetch(1, 1.0).deliveries]
        assert first.count(names[0]) > 2 * first.count(names[1])


def test_the_credit_is_of_all_queues_together(cluster: OwnCluster) -> None:
    names = queues_on_each(cluster)
    with opened(cluster.url()) as transport:
        for name in names:
            transport.send(messages("aaaa", "bbbb", "cccc", queue=name))
        consumer = consumer_of(transport, *names)
        consumer.credit(4, 1 << 30)
        assert len(collect(consumer, 4)) == 4
        assert not consumer.fetch(10, 0.05).deliveries
        other = consumer_of(transport, *names)
        other.credit(100, 6)  # the second fits no more
        first = collect(other, 1)
        assert not other.fetch(10, 0.05).deliveries
        ack(other, first)
        ack(other, collect(other, 1))


# ----------------------------------------------------------------------------------------------------- moving a slot


def test_a_slot_is_moved_under_load(cluster: OwnCluster) -> None:
    """Key by key, while messages are sent, claimed and settled: nothing is lost, nothing comes twice."""
    space = space_of("taskq:", "moving")
    slot = key_slot(space.encode())
    source = cluster.servers[cluster.owner(space)]
    target = next(s for s in cluster.servers if s is not source)
    with opened(cluster.url(), timeout=10.0) as transport:
        consumer = consumer_of(transport, "moving")
        stop = threading.Event()
        sent: list[str] = []
        failures: list[object] = []

        def send() -> None:
            while not stop.is_set():
                batch = [f"{len(sent) + i}" for i in range(5)]
                try:
                    failures.extend(transport.send(messages(*batch, queue="moving")))
                except TransportError as error:
                    failures.append(error)
                sent.extend(batch)
                time.sleep(0.002)

        got: list[Delivery] = []

        def work() -> None:
            while not (stop.is_set() and len(got) >= len(sent)):
                deliveries = persistently(lambda: consumer.fetch(7, 0.05)).deliveries
                persistently(lambda: consumer.extend())
                ack(consumer, deliveries)
                got.extend(deliveries)

        threads = [threading.Thread(target=send), threading.Thread(target=work)]
        for thread in threads:
            thread.start()
        try:
            while len(got) < 50:
                time.sleep(0.01)
            for back, forth in ((source, target), (target, source)):
                cluster.begin_move(slot, back, forth)
                time.sleep(0.1)
                while cluster.move_keys(slot, back, forth, 1):
                    time.sleep(0.03)
                cluster.end_move(slot, forth)
                with forth.client() as client:
                    assert client.execute_command("CLUSTER", "COUNTKEYSINSLOT", slot)
        finally:
            stop.set()
            for thread in threads:
                thread.join(PATIENCE)
        assert not failures
        assert sorted(int(d.payload) for d in got) == list(range(len(sent)))
        assert {d.deliveries for d in got} == {1}
        assert not consumer.fetch(1, 0.0).deliveries  # the last claim may have left it open whether there is more
        consumer.close()
    cluster.settled()
    assert {key for key in cluster.all_keys() if not key.endswith("b:moving")} == set()


def test_a_bell_follows_its_slot(cluster: OwnCluster) -> None:
    space = space_of("taskq:", "follow")
    slot = key_slot(space.encode())
    source = cluster.servers[cluster.owner(space)]
    target = next(s for s in cluster.servers if s is not source)
    with opened(cluster.url(), poll_interval=30.0) as transport:
        consumer = consumer_of(transport, "follow")
        assert not consumer.fetch(1, 0.0).deliveries
        cluster.begin_move(slot, source, target)
        cluster.end_move(slot, target)
        try:
            threading.Timer(0.3, lambda: transport.send(messages("a", queue="follow"))).start()
            ack(consumer, collect(consumer, 1))
        finally:
            cluster.begin_move(slot, target, source)
            while cluster.move_keys(slot, target, source):
                continue
            cluster.end_move(slot, source)


# ---------------------------------------------------------------------------------------------------- a master dies


@pytest.mark.timeout(120)
def test_a_master_dies_and_its_replica_takes_over(redis_program: str) -> None:
    """The others' queues go on meanwhile; what the dead one had replicated is worked off, and the bell rings again."""
    with OwnCluster(redis_program, replicas=1) as cluster:
        names = queues_on_each(cluster)
        dying, living = names[0], names[1]
        assert cluster.owner(space_of("taskq:", dying)) == 0
        with opened(cluster.url(), timeout=2.0, connect_timeout=1.0, wait_replicas=0) as transport:
            consumer = consumer_of(transport, *names)
            assert not transport.send([m for n in names for m in messages(f"{n}-1", f"{n}-2", queue=n)])
            held = collect(consumer, 6)
            ack(consumer, [d for d in held if d.payload.endswith(b"-1")])
            with cluster.servers[0].client() as client:
                client.set(f"{space_of('taskq:', dying)}last", "")  # WAIT is for what this connection has written
                assert client.wait(1, 5000) == 1
            cluster.servers[0].kill()
            # a queue elsewhere
            assert not transport.send(messages("meanwhile", queue=living))
            assert [d.payload for d in collect(consumer, 1)] == [b"meanwhile"]

            deadline = time.monotonic() + PATIENCE
            while persistently(lambda: transport.send(messages("after", queue=dying))):
                assert time.monotonic() < deadline
            assert {d.payload for d in collect(consumer, 1)} == {b"after"}
            ack(consumer, [d for d in held if d.payload.endswith(b"-2") and d.queue == dying])
            with opened(cluster.servers[1].url(scheme="redis+cluster")) as other:
                assert other.stats([dying])[dying].in_flight == 1


def test_replicas_are_waited_for_on_each_node(redis_program: str) -> None:
    with OwnCluster(redis_program, masters=2, replicas=1) as cluster:
        names = queues_on_each(cluster)
        with opened(cluster.url(), wait_replicas=1, timeout=0.6) as transport:
            batch = [m for name in names for m in messages(name, queue=name)]
            deadline = time.monotonic() + PATIENCE
            while len(failures := transport.send(batch)) != 1:  # the replica may still be filled
                assert time.monotonic() < deadline
            (failure,) = failures  # the second node has no replica
            assert batch[failure.index].queue == names[1]
            assert failure.maybe_sent
            assert "0 of 1 replicas" in failure.reason


# ------------------------------------------------------------------------------------------------------ wrong schemes


def test_a_cluster_and_a_single_server_are_told_apart(cluster: OwnCluster, redis_url: str) -> None:
    def single(url: str) -> None:
        transport = RedisTransport(TransportConfig(urls=parse_urls(url), options=RedisOptions()))
        transport.open()

    with pytest.raises(NotSupported, match=r"redis\+cluster://"):
        single(cluster.servers[0].url())
    alone = redis_url.replace("redis://", "redis+cluster://").rpartition("/")[0]
    with pytest.raises(AuthenticationFailed, match=r"is no cluster; write redis://"), opened(alone):
        pass
    with pytest.raises(AuthenticationFailed, match="database 0 only"), opened(f"{cluster.url()}1"):
        pass


def test_the_first_node_may_be_away(cluster: OwnCluster) -> None:
    with OwnServer(cluster.servers[0].program) as dead:
        dead.kill()
        with opened(f"{dead.url(scheme='redis+cluster')};{cluster.url()}") as transport:
            assert not transport.send(messages("a"))


def test_a_worker_with_results_retries_and_dead_letters(cluster: OwnCluster) -> None:
    """All of a task's life, where storing the outcome and acknowledging are two steps."""
    app = TaskQ("cluster", broker=cluster.url(), result_store=cluster.url(), isolated=True, retry_backoff=0.01)
    tried: list[int] = []

    @app.task(name="double", queue="numbers")
    def double(i: int) -> int:
        return 2 * i

    @app.task(name="flaky", queue="others", max_retries=3)
    def flaky(i: int) -> int:
        tried.append(i)
        if len(tried) < 3:
            raise ValueError("not yet")
        return i

    worker = app.worker(queues=["numbers", "others"], pool="threads").start()
    try:
        results = app.send_many([Signature(app=app, task="double", args=(i,)) for i in range(100)])
        assert [r.get(timeout=PATIENCE) for r in results] == [2 * i for i in range(100)]
        assert flaky.delay(7).get(timeout=PATIENCE) == 7
        assert len(tried) == 3
        app.transport.send([Outbound("x", "numbers", b"\xc1 foreign")])
        transport: Any = app.transport
        deadline = time.monotonic() + PATIENCE
        while not any(stats.ready for stats in transport.stats(["numbers.dead"]).values()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        worker.stop()
        worker.join(PATIENCE)
        app.close()
    left = {key for key in cluster.all_keys() if ":r:" not in key and not key.endswith(":queues")}
    assert left == {key for key in left if "{numbers.dead}" in key or "}:b:" in key}
