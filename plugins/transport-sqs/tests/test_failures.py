"""Refusals, partial failures and the death of the server."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from taskq.errors import AuthenticationFailed, ConnectionFailed, TransportError
from taskq.message import QueueSpec, Settlement
from tests.support.servers import START_TIMEOUT, ElasticMQ
from tests.support.sqs_meddler import Answer, Meddler, fail_entry, refusal
from tests.support.sqs_transport import opened, through
from tests.support.steps import ack, collect, consumer_of, messages, payloads, persistently


def test_an_entry_that_is_refused_fails_alone(sqs_url: str, meddler: Meddler) -> None:
    with opened(through(sqs_url, meddler.port)) as transport:
        transport.declare([QueueSpec(name="q")])
        meddler.rule = fail_entry(1, "InvalidMessageContents", sender=True)
        (failure,) = transport.send(messages(*"abc"))
        assert (failure.index, failure.retryable, failure.maybe_sent) == (1, False, False)
        assert "InvalidMessageContents" in failure.reason


def test_an_entry_that_the_server_failed_is_sent_again(sqs_url: str, meddler: Meddler) -> None:
    with opened(through(sqs_url, meddler.port)) as transport:
        transport.declare([QueueSpec(name="q")])
        sent: list[list[str]] = []
        inner = fail_entry(0, "InternalError", sender=False)

        def rule(operation: str, body: dict[str, Any], ask: Callable[[], Answer]) -> Answer:
            if operation == "SendMessageBatch":
                sent.append([e["Id"] for e in body["Entries"]])
            return inner(operation, body, ask)

        meddler.rule = rule
        assert not transport.send(messages(*"abc"))
        assert sent == [["0", "1", "2"], ["0"]]
        meddler.rule = fail_entry(0, "InternalError", sender=False, times=100)
        (failure,) = transport.send(messages(*"abc"))
        assert (failure.index, failure.retryable, failure.maybe_sent) == (0, True, False)


def test_a_failed_message_is_not_overtaken_in_its_group(sqs_url: str, meddler: Meddler) -> None:
    with opened(through(sqs_url, meddler.port)) as transport:
        transport.declare([QueueSpec(name="q", ordered=True)])
        meddler.rule = fail_entry(0, "InvalidMessageContents", sender=True)
        batch = [*messages("a1", "a2", group="a"), *messages("b1", group="b")]
        failures = transport.send(batch)
        assert [f.index for f in failures] == [0, 1]
        assert failures[1].retryable
        meddler.rule = lambda operation, body, ask: ask()
        assert payloads(consumer_of(transport).fetch(10, 0.5).deliveries) == ["b1"]


def test_a_deletion_that_the_server_failed_is_repeated(sqs_url: str, meddler: Meddler) -> None:
    with opened(through(sqs_url, meddler.port)) as transport:
        transport.send(messages(*"abc"))
        consumer = consumer_of(transport)
        held = collect(consumer, 3)
        settlements = [Settlement(d.receipt) for d in held]

        def failing(operation: str, body: dict[str, Any], ask: Callable[[], Answer]) -> Answer:
            if operation != "DeleteMessageBatch":
                return ask()
            status, answer = ask()
            answer["Failed"] = [{"Id": body["Entries"][-1]["Id"], "Code": "InternalError", "SenderFault": False}]
            answer["Successful"] = answer["Successful"][:-1]
            return status, answer

        meddler.rule = failing
        with pytest.raises(TransportError, match="InternalError"):
            consumer.settle(settlements)
        meddler.rule = lambda operation, body, ask: ask()
        assert not consumer.settle(settlements), "the repeated call must not report as lost what the first one did"
        assert len(consumer.settle(settlements)) == 3
        assert transport.stats(["q"])["q"].in_flight == 0


def test_a_receipt_that_the_server_refuses_is_lost_alone(sqs_url: str, meddler: Meddler) -> None:
    with opened(through(sqs_url, meddler.port)) as transport:
        transport.send(messages(*"ab"))
        consumer = consumer_of(transport)
        held = collect(consumer, 2)
        meddler.rule = fail_entry(0, "ReceiptHandleIsInvalid", sender=True)
        assert [loss.receipt for loss in consumer.settle([Settlement(d.receipt) for d in held])] == [held[0].receipt]
        transport.send(messages("c"))
        held = collect(consumer, 1)
        meddler.rule = fail_entry(0, "InvalidParameterValue", sender=True)
        assert [loss.receipt for loss in consumer.extend([d.receipt for d in held])] == [held[0].receipt]


def test_throttling_passes(sqs_url: str, meddler: Meddler) -> None:
    with opened(through(sqs_url, meddler.port)) as transport:
        transport.declare([QueueSpec(name="q")])
        left = [2]

        def rule(operation: str, body: dict[str, Any], ask: Callable[[], Answer]) -> Answer:
            if operation == "SendMessageBatch" and left[0]:
                left[0] -= 1
                return 400, refusal("RequestThrottled")
            return ask()

        meddler.rule = rule
        assert not transport.send(messages("a"))
        left[0] = 1000
        with pytest.raises(TransportError, match="RequestThrottled") as caught:
            transport.send(messages("b"))
        assert caught.value.retryable
        assert left[0] > 990, "retries must be bounded"


def test_a_failure_after_the_fact_is_maybe_sent(sqs_url: str, meddler: Meddler) -> None:
    with opened(through(sqs_url, meddler.port)) as transport:
        transport.declare([QueueSpec(name="q")])

        def rule(operation: str, body: dict[str, Any], ask: Callable[[], Answer]) -> Answer:
            answer = ask()
            return (500, refusal("InternalFailure")) if operation == "SendMessageBatch" else answer

        meddler.rule = rule
        (failure,) = transport.send(messages("a"))
        assert failure.maybe_sent
        assert failure.retryable
        assert payloads(collect(consumer_of(transport), 1)) == ["a"]


@pytest.mark.parametrize("code", ["InvalidClientTokenId", "SignatureDoesNotMatch", "ExpiredToken"])
def test_wrong_credentials_end_at_once(sqs_url: str, meddler: Meddler, code: str) -> None:
    with opened(through(sqs_url, meddler.port)) as transport:
        consumer = consumer_of(transport)
        meddler.rule = lambda operation, body, ask: (403, refusal(code))
        del meddler.calls[:]
        with pytest.raises(AuthenticationFailed) as caught:
            transport.send(messages("a"))
        assert len(meddler.calls) == 1, "wrong credentials are not tried again"
        assert not caught.value.retryable
        with pytest.raises(AuthenticationFailed):
            consumer.fetch(1, 0.3)
        with pytest.raises(AuthenticationFailed, match=code) as caught, opened(through(sqs_url, meddler.port)):
            pass
        assert "hush-hush" not in f"{caught.value}"


def test_a_server_that_is_away_is_said_to_be(sqs_url: str, meddler: Meddler) -> None:
    with opened(through(sqs_url, meddler.port)) as transport:
        transport.declare([QueueSpec(name="q")])
        meddler.__exit__()
        transport.client.close()  # pooled connections may live on
        with pytest.raises(ConnectionFailed, match=f"{meddler.port}") as caught:
            transport.send(messages("a"))
        assert caught.value.retryable


# ------------------------------------------------------------------------------------------------- the server's death


class _OwnServer:
    """An ElasticMQ of this test alone, on a port that it keeps."""

    def __init__(self) -> None:
        self.server = ElasticMQ()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.server.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.server.folder
        )
        deadline = time.monotonic() + START_TIMEOUT
        while not self.server.answers():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def own_server(server_url: Any) -> Iterator[_OwnServer]:
    server_url("elasticmq")
    if ElasticMQ.program() is None or not ElasticMQ.jars().exists():
        pytest.skip("the server given is not one that can be started here")
    server = _OwnServer()
    server.start()
    yield server
    server.kill()
    server.server.stop()


def test_a_killed_server_is_found_again(own_server: _OwnServer) -> None:
    """ElasticMQ keeps all in memory, so messages die with it; what must not is the transport."""
    with opened(own_server.server.url()) as transport:
        transport.send(messages("lost"))
        consumer = consumer_of(transport)
        (held,) = collect(consumer, 1)
        own_server.kill()
        with pytest.raises(TransportError) as caught:
            persistently_failing(lambda: transport.send(messages("refused")))
        assert caught.value.retryable
        with pytest.raises(TransportError):
            consumer.fetch(1, 0.5)
        with pytest.raises(TransportError):
            consumer.settle([Settlement(held.receipt)])
        own_server.start()
        assert [loss.receipt for loss in persistently(lambda: consumer.settle([Settlement(held.receipt)]))]
        assert not persistently(lambda: transport.send(messages("after")))
        found = collect(consumer, 1)
        assert payloads(found) == ["after"]
        ack(consumer, found)


def persistently_failing(call: Callable[[], Any]) -> None:
    """Call until it raises: a connection that just died may leave it in doubt, which is no error but maybe_sent."""
    for _ in range(5):
        failures = call()
        assert failures
        assert failures[0].maybe_sent
    raise AssertionError("it never raised")


# ---------------------------------------------------------------------------------------------- not the right address


@contextmanager
def web_page(status: int) -> Iterator[int]:
    """A server that is not SQS; gives its port."""

    class Page(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(b"<html>please log in</html>")

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("status", [200, 404, 501])
def test_a_server_that_is_not_sqs_is_no_reason_to_wait(status: int) -> None:
    with (
        web_page(status) as port,
        pytest.raises(TransportError, match=f"{port}.*is not SQS") as caught,
        opened(f"sqs://127.0.0.1:{port}"),
    ):
        pass
    assert not caught.value.retryable


@pytest.mark.parametrize(("region", "exists"), [("eu-centrall-1", False), ("eu-central-1", True)])
def test_a_region_that_does_not_exist_is_no_reason_to_wait(
    region: str, exists: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a name service: a region that boto knows may be there later."""

    def unknown(*arguments: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SQS", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(TransportError, match=region) as caught, opened(f"sqs://{region}"):
        pass
    assert caught.value.retryable is exists
    assert isinstance(caught.value, ConnectionFailed) is exists
