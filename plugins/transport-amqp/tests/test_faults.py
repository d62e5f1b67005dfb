"""Faults of the server itself, on a broker of this module's own."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from taskq.errors import AuthenticationFailed, ConnectionFailed, StorageFull, TransportError
from taskq.message import Delivery, Lost, Outbound, Settlement
from taskq.spi import Consumer, TransportConfig
from taskq.spi.url import parse_urls
from taskq_transport_amqp.options import AmqpOptions
from taskq_transport_amqp.transport import AmqpTransport
from tests.support.rabbitmq_servers import OwnRabbit
from tests.support.servers import free_port
from tests.support.steps import PATIENCE, consumer_of, send_at_last


class ShortTempered(OwnRabbit):
    """Takes messages back after five seconds."""

    settings = "consumer_timeout = 5000\n"
    advanced = "[{rabbit, [{channel_tick_interval, 500}]}]."  # how often it looks


@pytest.fixture(scope="module")
def broker(server_url: Callable[[str], str]) -> Iterator[ShortTempered]:
    server_url("rabbitmq")  # skips, or fails, where there is none
    with ShortTempered() as own:
        yield own


def transport(*urls: str, **options: object) -> AmqpTransport:
    options = {"timeout": 5.0, "connect_timeout": 5.0, **options}
    made = AmqpTransport(TransportConfig(urls=parse_urls(";".join(urls)), options=AmqpOptions(**options), lease_s=4.0))  # type: ignore[arg-type]
    made.open()
    return made


def gather(
    of: Consumer, n: int, seconds: float = PATIENCE, *, until_lost: bool = False
) -> tuple[list[Delivery], list[Lost]]:
    """Fetch until so many are there, as the kernel does: after an error again."""
    found: list[Delivery] = []
    lost: list[Lost] = []
    end = time.monotonic() + seconds
    while len(found) < n and not (lost and until_lost):
        assert time.monotonic() < end, f"{len(found)} of {n} messages came"
        try:
            fetched = of.fetch(n - len(found), 0.2)
        except TransportError as error:
            if not error.retryable:
                raise
            time.sleep(0.1)
            continue
        found += fetched.deliveries
        lost += fetched.lost
    return found, lost


def url_of(broker: OwnRabbit) -> str:
    return broker.url().partition("?")[0]


class Survivor:
    """A client and a worker of one kind of queue, and what they must find again after the server's death."""

    def __init__(self, url: str, kind: str) -> None:
        self.queue = f"survivor-{kind}"
        self.client = transport(url, queue_type=kind, timeout=PATIENCE)
        self.worker = consumer_of(self.client, self.queue)
        send_at_last(self.client, *(f"{i}" for i in range(20)), queue=self.queue)
        assert not self.client.send([Outbound("later", self.queue, b"later", delay=0.5)])
        self.held, _ = gather(self.worker, 8)
        assert not self.worker.settle([Settlement(d.receipt) for d in self.held[:3]])
        self.worker.flush(PATIENCE)
        self.lost: list[Lost] = []

    def check(self, *, cut: bool) -> None:
        """Ready, held and delayed messages are there again, and the consumer goes on.

        Of acknowledgements a power cut may undo the last: their messages come again, which is at least once.
        """
        done = {d.payload for d in self.held[:3]}
        wanted = {b"%d" % i for i in range(20)} - done | {b"later"}
        seen: list[Delivery] = []
        while wanted - {d.payload for d in seen}:
            found, lost = gather(self.worker, 1)
            seen += found
            self.lost += lost
            assert not self.worker.settle([Settlement(d.receipt) for d in found])
        assert {loss.receipt for loss in self.lost} >= {d.receipt for d in self.held[3:]}
        assert len(seen) == len({d.payload for d in seen}), "delivered and acknowledged twice"
        assert {d.payload for d in seen} <= wanted | done if cut else {d.payload for d in seen} == wanted
        again = {d.payload for d in self.held[3:]}
        assert all(d.deliveries > 1 for d in seen if d.payload in again)
        send_at_last(self.client, "after", queue=self.queue)
        while b"after" not in {d.payload for d in seen}:
            found, _ = gather(self.worker, 1)
            seen += found
            assert not self.worker.settle([Settlement(d.receipt) for d in found])
        self.worker.flush(PATIENCE)
        self.client.close()


@pytest.mark.timeout(180)
def test_what_was_accepted_survives_the_servers_death(server_url: Callable[[str], str]) -> None:
    """A restart in good order and a power cut; while the server is down, every call says so and may be repeated."""
    server_url("rabbitmq")  # skips, or fails, where there is none
    with OwnRabbit(durable=True) as broker:
        url = url_of(broker)
        for number in (signal.SIGTERM, signal.SIGKILL):
            survivors = [Survivor(url, "quorum"), Survivor(url, "classic")]
            broker.end(number)
            with pytest.raises(ConnectionFailed, match=str(broker.port)):
                transport(url)
            client, worker, queue = survivors[0].client, survivors[0].worker, survivors[0].queue
            _, survivors[0].lost = gather(worker, 1000, until_lost=True)  # before the server is back
            for call in (lambda c=client, q=queue: c.send([Outbound("x", q, b"x")]), lambda w=worker: w.fetch(1, 0.1)):
                with pytest.raises(ConnectionFailed) as caught:
                    call()
                assert caught.value.retryable
            broker.again()
            for survivor in survivors:
                survivor.check(cut=number is signal.SIGKILL)


@pytest.mark.timeout(120)
def test_a_message_held_too_long_is_lost_and_comes_again(broker: ShortTempered) -> None:
    """The server closes the channel after its consumer_timeout: every receipt is reported, the consumer goes on."""
    client = transport(url_of(broker), consumer_timeout=5.0)
    assert client.capabilities.max_hold_s == 5.0
    worker = consumer_of(client, "patience")
    send_at_last(client, "slow", "other", queue="patience")
    held, _ = gather(worker, 2)
    back, lost = gather(worker, 2)
    assert {loss.receipt for loss in lost} == {d.receipt for d in held}
    assert "timed out" in lost[0].reason
    assert {d.payload for d in back} == {b"slow", b"other"}
    assert all(d.deliveries == 2 for d in back)
    late = worker.settle([Settlement(d.receipt) for d in held])
    assert {loss.receipt for loss in late} == {d.receipt for d in held}
    assert not worker.settle([Settlement(d.receipt) for d in back])
    worker.flush(PATIENCE)
    client.close()


@pytest.mark.timeout(180)
def test_a_memory_alarm_blocks_senders_but_not_acknowledgements(broker: ShortTempered) -> None:
    steady = transport(url_of(broker), timeout=PATIENCE)
    worker = consumer_of(steady, "full")
    client = transport(url_of(broker), timeout=0.7)
    send_at_last(steady, *(f"{i}" for i in range(10)), queue="full")
    send_at_last(client, "before", queue="blocked")
    broker.control("set_vm_memory_high_watermark", "0.00001")
    try:
        taken = 0
        while not (failures := client.send([Outbound(f"{taken}", "blocked", b"%d" % taken)])):
            taken += 1  # the alarm has not reached this connection yet
            assert taken < 10_000
        assert [(f.maybe_sent, f.retryable) for f in failures] == [(True, True)]
        with pytest.raises(StorageFull, match="memory"):
            client.send([Outbound("refused", "blocked", b"refused")])
        held, _ = gather(worker, 5)  # not before: this server takes back what is held for five seconds
        assert not worker.settle([Settlement(d.receipt) for d in held])
        assert not worker.flush(PATIENCE)
        rest, _ = gather(worker, 5)
        assert not worker.settle([Settlement(d.receipt) for d in rest])
        assert not worker.flush(PATIENCE)
        assert len({d.payload for d in [*held, *rest]}) == 10
        assert steady.stats(["full"])["full"].ready == 0
    finally:
        broker.control("set_vm_memory_high_watermark", "0.4")
    send_at_last(client, "after", queue="blocked")
    wanted = {b"before", b"after", *(b"%d" % i for i in range(taken + 1))}
    found, _ = gather(consumer_of(steady, "blocked"), len(wanted))
    assert {d.payload for d in found} == wanted
    client.close()
    steady.close()


def test_the_next_url_is_tried(rabbitmq_url: str) -> None:
    dead = f"amqp://guest:guest@127.0.0.1:{free_port()}//"
    client = transport(dead, rabbitmq_url)
    send_at_last(client, "a", queue="fail-over")
    found, _ = gather(consumer_of(client, "fail-over"), 1)
    assert [d.payload for d in found] == [b"a"]
    client.close()


def test_heartbeats_go_on_while_nobody_calls(rabbitmq_url: str) -> None:
    """A worker's thread may be in a task for minutes: the connection stays, with what it holds and what it was sent."""
    client = transport(rabbitmq_url, heartbeat=1)
    worker = consumer_of(client, "quiet")
    send_at_last(client, "a", queue="quiet")
    held, _ = gather(worker, 1)
    time.sleep(2.8)  # the server gives up after two intervals of one second without a word
    assert not worker.settle([Settlement(held[0].receipt)])
    assert not worker.flush(PATIENCE)
    client.close()


class Encrypted(OwnRabbit):
    """Listens on its port with TLS alone; its certificate is its own authority."""

    def __init__(self) -> None:
        super().__init__()
        self.certificate = self.folder / "cert.pem"
        self.key = self.folder / "key.pem"
        lines = {
            "listeners.tcp": "none",
            "listeners.ssl.1": f"127.0.0.1:{self.port}",
            "ssl_options.certfile": self.certificate,
            "ssl_options.keyfile": self.key,
            "ssl_options.verify": "verify_none",
        }
        self.settings = "".join(f"{name} = {value}\n" for name, value in lines.items())  # type: ignore[misc]

    def prepare(self) -> None:
        super().prepare()
        subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
        files = ("-keyout", self.key, "-out", self.certificate)
        self.tool("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, "-days", "2", *subject)

    def environment(self) -> list[str]:
        return [entry for entry in super().environment() if "NODE_PORT" not in entry and "NODE_IP" not in entry]


@pytest.mark.timeout(180)
def test_tls(server_url: Callable[[str], str]) -> None:
    server_url("rabbitmq")  # skips, or fails, where there is none
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    with Encrypted() as broker:
        url = url_of(broker).replace("amqp://", "amqps://")
        client = transport(url, tls_ca_file=str(broker.certificate))
        taker = consumer_of(client, "secret")
        batch = [Outbound(f"{i}", "secret", b"x" * 50_000) for i in range(20)]
        assert not client.send(batch)
        found, _ = gather(taker, 20)
        assert not taker.settle([Settlement(d.receipt) for d in found])
        assert not taker.flush(5.0)
        client.close()
        with pytest.raises(AuthenticationFailed, match=r"not trusted.*tls_ca_file"):
            transport(url)
        transport(url, tls_verify=False).close()
        with pytest.raises(ConnectionFailed):
            transport(url_of(broker))
