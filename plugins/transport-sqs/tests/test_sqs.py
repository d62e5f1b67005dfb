"""What is special about SQS: FIFO groups, partial failures, rights, foreign messages, a server that dies."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from taskq import TaskQ
from taskq.dead import DeadLetters
from taskq.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    NotSupported,
    QueueMissing,
    TransportError,
)
from taskq.message import ACK, RELEASE, Delivery, Outbound, QueueSpec, Settlement, Subscription
from taskq.spi import Durability, Ordering, Support, TransportConfig, Url, parse_urls
from taskq_transport_sqs.consumer import SqsConsumer
from taskq_transport_sqs.options import MAX_PAYLOAD_BYTES, SqsOptions, capabilities
from taskq_transport_sqs.transport import SqsTransport
from tests.support.servers import START_TIMEOUT, ElasticMQ
from tests.support.sqs_queues import sqs_client


def _load_meddler() -> Any:
    spec = importlib.util.spec_from_file_location("taskq_sqs_meddler", Path(__file__).with_name("meddler.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


meddling = _load_meddler()
PATIENCE = 20.0
T = TypeVar("T")


@contextmanager
def opened(url: str, *, lease_s: float = 30.0, **options: Any) -> Iterator[SqsTransport]:
    (parsed,) = parse_urls(url)
    options = {"timeout": 3.0, "connect_timeout": 3.0, **dict(parsed.query), **options}
    config = TransportConfig(urls=(parsed.without_query(),), options=SqsOptions(**options), lease_s=lease_s)
    transport = SqsTransport(config)
    try:
        transport.open()
        yield transport
    finally:
        transport.close(timeout=2.0)


def through(url: str, port: int) -> str:
    (parsed,) = parse_urls(url)
    return Url(parsed.scheme, "key", "hush-hush", "127.0.0.1", port, "", parsed.query).raw()


@pytest.fixture
def meddler(sqs_url: str) -> Iterator[Any]:
    (url,) = parse_urls(sqs_url)
    if url.port is None:
        pytest.skip("only an emulator can be stood in front of")
    with meddling.Meddler(url.host, url.port) as found:
        yield found


def messages(*payloads: str, queue: str = "q", **fields: Any) -> list[Outbound]:
    return [Outbound(id=p, queue=queue, payload=p.encode(), **fields) for p in payloads]


def consumer_of(transport: SqsTransport, *queues: str, credit: int = 1000, order: Any = "fair") -> SqsConsumer:
    consumer = transport.consumer()
    consumer.credit(credit, 1 << 30)
    consumer.subscribe([Subscription(q) for q in queues or ("q",)], order=order)
    return consumer


def persistently(call: Callable[[], T]) -> T:
    """Do as the kernel does: a retryable error is a reason to try again."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return call()
        except TransportError as error:
            if not error.retryable or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def collect(consumer: SqsConsumer, n: int) -> list[Delivery]:
    found: list[Delivery] = []
    deadline = time.monotonic() + PATIENCE
    while len(found) < n:
        assert time.monotonic() < deadline, f"{len(found)} of {n} came"
        limit = n - len(found)
        found += persistently(lambda limit=limit: consumer.fetch(limit, 0.1)).deliveries  # type: ignore[misc]
    return found


def nothing(consumer: SqsConsumer, seconds: float = 0.2) -> None:
    assert not consumer.fetch(10, seconds).deliveries


def payloads(deliveries: Sequence[Delivery]) -> list[str]:
    return [d.payload.decode() for d in deliveries]


def ack(consumer: SqsConsumer, deliveries: Sequence[Delivery]) -> None:
    assert not consumer.settle([Settlement(d.receipt, ACK) for d in deliveries])


def url_of(transport: SqsTransport, queue: str = "q") -> str:
    return transport.queues.find(queue).url


def raw(sqs_url: str) -> Any:
    return sqs_client(sqs_url.partition("?")[0])


# ------------------------------------------------------------------------------------------- what the kit leaves out


def test_delays_are_whole_seconds_and_never_early(sqs_url: str) -> None:
    with opened(sqs_url) as transport:
        began = time.monotonic()
        assert not transport.send([*messages("2", delay=1.5), *messages("1", delay=0.4), *messages("0")])
        consumer = consumer_of(transport)
        assert payloads(collect(consumer, 1)) == ["0"]
        assert payloads(collect(consumer, 1)) == ["1"]
        assert time.monotonic() - began > 0.4
        assert payloads(collect(consumer, 1)) == ["2"]
        assert time.monotonic() - began > 1.5


def test_closing_hands_back_what_is_not_settled(sqs_url: str) -> None:
    with opened(sqs_url) as transport:
        transport.send(messages(*"abcdef"))
        consumer = consumer_of(transport)
        held = collect(consumer, 4)
        ack(consumer, held[1:2])
        consumer.close()
        back = collect(consumer_of(transport), 5)
        assert sorted(payloads(back)) == sorted({*"abcdef"} - {held[1].payload.decode()})


def test_what_a_woken_poll_brings_stays_for_the_next_fetch(sqs_url: str) -> None:
    with opened(sqs_url) as transport:
        consumer = consumer_of(transport)
        waker = threading.Timer(0.3, consumer.wake)
        waker.start()
        assert not consumer.fetch(1, 10.0).deliveries
        waker.join()
        transport.send(messages("a"))
        assert payloads(consumer.fetch(1, 5.0).deliveries) == ["a"]


def test_polls_under_way_are_within_the_credit(sqs_url: str) -> None:
    with opened(sqs_url) as transport:
        consumer = consumer_of(transport, credit=3)
        consumer.wake()
        transport.send(messages(*(f"{i}" for i in range(30))))
        held: list[Delivery] = []
        while len(held) < 3:
            held += consumer.fetch(100, 1.0, ahead=100).deliveries
        nothing(consumer)
        stats = transport.stats(["q"])["q"]
        assert stats.in_flight is not None
        assert stats.in_flight <= 3


def test_what_nobody_fetches_is_handed_back(sqs_url: str) -> None:
    """Two queues are polled for one message; the second must not wait behind a slow task while others are idle."""
    with opened(sqs_url, lease_s=3) as transport:
        transport.declare([QueueSpec(name="a"), QueueSpec(name="b")])
        transport.send([*messages("1", queue="a"), *messages("2", queue="b")])
        busy = consumer_of(transport, "a", "b")
        (held,) = collect(busy, 1)
        idle = consumer_of(transport, "a", "b")
        deadline = time.monotonic() + PATIENCE
        other: list[Delivery] = []
        while not other:
            assert time.monotonic() < deadline
            assert not busy.extend([held.receipt])
            other += idle.fetch(1, 0.3).deliveries
        assert {held.payload, other[0].payload} == {b"1", b"2"}
        ack(busy, [held])


def test_stats_and_declared_promises(sqs_url: str) -> None:
    with opened(sqs_url) as transport:
        facts = transport.declare([QueueSpec(name="s"), QueueSpec(name="f", ordered=True)])
        assert facts["s"].capabilities is None
        assert transport.capabilities.ordering is Ordering.NONE
        fifo = facts["f"].capabilities
        assert (fifo.ordering, fifo.delay) == (Ordering.GROUP, Support.NO)
        assert facts["s"].created
        assert not transport.declare([QueueSpec(name="s")])["s"].created
    assert capabilities(SqsOptions()).durability is Durability.REPLICATED
    if parse_urls(sqs_url)[0].port is not None:
        assert transport.capabilities.durability is Durability.SERVER  # an emulator is one process


# --------------------------------------------------------------------------------------------------------------- FIFO


@contextmanager
def fifo(sqs_url: str, **options: Any) -> Iterator[tuple[SqsTransport, SqsConsumer]]:
    with opened(sqs_url, **options) as transport:
        transport.declare([QueueSpec(name="q", ordered=True)])
        yield transport, consumer_of(transport)


def test_successors_follow_one_by_one(sqs_url: str) -> None:
    with fifo(sqs_url) as (transport, consumer):
        transport.send(messages(*"12345", group="g"))
        seen = []
        for _ in range(5):
            (delivery,) = collect(consumer, 1)
            nothing(consumer, 0.0)
            seen.append(delivery.payload.decode())
            assert delivery.group == "g"
            ack(consumer, [delivery])
        assert seen == [*"12345"]
        nothing(consumer, 0.0)


def test_a_released_message_takes_its_successors_along(sqs_url: str) -> None:
    with fifo(sqs_url) as (transport, consumer):
        transport.send(messages(*"1234", group="g"))
        (first,) = collect(consumer, 1)
        assert not consumer.settle([Settlement(first.receipt, RELEASE)])
        other = consumer_of(transport)
        (again,) = collect(other, 1)  # all of the group is back, or the server would keep it locked
        assert again.payload == b"1"
        assert again.deliveries == 2
        ack(other, [again])
        assert payloads(collect(other, 1)) == ["2"]
        other.close()
        assert payloads(collect(consumer, 1)) == ["2"]


def test_a_delayed_release_holds_the_group(sqs_url: str) -> None:
    with fifo(sqs_url) as (transport, consumer):
        transport.send(messages(*"12", group="g"))
        (first,) = collect(consumer, 1)
        began = time.monotonic()
        assert not consumer.settle([Settlement(first.receipt, RELEASE, delay=0.9)])
        assert payloads(collect(consumer, 1)) == ["1"]
        assert time.monotonic() - began > 0.9


def test_successors_are_renewed_with_the_first(sqs_url: str) -> None:
    with fifo(sqs_url, lease_s=2) as (transport, consumer):
        transport.send(messages(*"123", group="g"))
        (first,) = collect(consumer, 1)
        other = consumer_of(transport)
        until = time.monotonic() + 5.0
        while time.monotonic() < until:
            assert not consumer.extend([first.receipt])
            nothing(other, 0.4)
        for expected in "123":
            ack(consumer, [first])
            if expected != "3":
                (first,) = collect(consumer, 1)
                assert first.payload.decode() == chr(ord(expected) + 1)
                assert first.deliveries == 1


def test_a_lost_lease_of_the_first_keeps_the_order(sqs_url: str) -> None:
    with fifo(sqs_url, lease_s=1) as (transport, consumer):
        transport.send(messages(*"123", group="g"))
        (first,) = collect(consumer, 1)
        other = consumer_of(transport)
        seen = []
        for _ in range(3):
            (delivery,) = collect(other, 1)
            seen.append(delivery.payload.decode())
            ack(other, [delivery])
        assert seen == [*"123"]
        assert [loss.receipt for loss in consumer.settle([Settlement(first.receipt)])] == [first.receipt]


def test_a_repeated_send_is_dropped_and_a_new_attempt_is_not(sqs_url: str) -> None:
    with fifo(sqs_url) as (transport, consumer):
        for message_id in ("same", "same", "same.1"):
            assert not transport.send([Outbound(id=message_id, queue="q", payload=message_id.encode(), group="g")])
        seen = []
        for _ in range(2):
            (delivery,) = collect(consumer, 1)
            seen.append(delivery.payload)
            ack(consumer, [delivery])
        assert seen == [b"same", b"same.1"]
        nothing(consumer)


def test_messages_without_a_group_wait_for_nobody(sqs_url: str) -> None:
    with fifo(sqs_url) as (transport, consumer):
        transport.send(messages(*"abc"))
        found = collect(consumer, 3)
        assert {d.group for d in found} == {None}


def test_countdown_on_an_ordered_queue_is_refused(sqs_url: str) -> None:
    with fifo(sqs_url) as (transport, consumer):
        (failure,) = transport.send([*messages("later", delay=5), *messages("now")])
        assert (failure.index, failure.retryable, failure.maybe_sent) == (0, False, False)
        assert "countdown" in failure.reason
        assert payloads(collect(consumer, 1)) == ["now"]


def test_ordered_and_standard_do_not_mix(sqs_url: str) -> None:
    with opened(sqs_url) as transport:
        transport.declare([QueueSpec(name="s"), QueueSpec(name="f", ordered=True)])
        with pytest.raises(NotSupported, match="standard queue"):
            transport.declare([QueueSpec(name="s", ordered=True)])
    with opened(sqs_url) as other:  # another process finds the kind by itself
        assert other.queues.find("f").fifo
        assert not other.queues.find("s").fifo
        assert other.queues.find("f.dead").fifo
        assert not other.queues.find("s.dead").fifo


def test_group_names_of_any_kind(sqs_url: str) -> None:
    with fifo(sqs_url) as (transport, consumer):
        assert not transport.send(messages("a", group="Łódź 50%"))
        assert collect(consumer, 1)[0].group == "Łódź 50%"
        (failure,) = transport.send(messages("b", group="x" * 200))
        assert not failure.retryable


def test_groups_on_a_standard_queue_make_it_fair(sqs_url: str) -> None:
    with opened(sqs_url) as transport:
        assert not transport.send(messages(*"ab", group="tenant-1"))
        consumer = consumer_of(transport)
        found = collect(consumer, 2)  # held at once: no order is kept
        assert {d.group for d in found} <= {"tenant-1", None}
        ack(consumer, found)


# ---------------------------------------------------------------------------------------------------- queues, rights


@pytest.mark.parametrize("ordered", [False, True])
def test_sqs_moves_what_is_received_too_often(sqs_url: str, ordered: bool) -> None:
    with opened(sqs_url, lease_s=1, max_receives=2) as transport:
        transport.declare([QueueSpec(name="q", ordered=ordered)])
        transport.send(messages("killer", group="g" if ordered else None))
        consumer = consumer_of(transport)
        dead = consumer_of(transport, "q.dead")
        for _ in range(2):
            (delivery,) = collect(consumer, 1)
            assert not consumer.settle([Settlement(delivery.receipt, RELEASE, counted=True)])
        deadline = time.monotonic() + PATIENCE
        found: list[Delivery] = []
        while not found:
            assert time.monotonic() < deadline
            nothing(consumer, 0.05)
            found += dead.fetch(1, 0.1).deliveries
        assert payloads(found) == ["killer"]
        assert transport.queues.find("q.dead").fifo is ordered


@pytest.mark.parametrize(
    "options",
    [{"retention": 5}, {"retention": "long"}, {"max_receives": 0}, {"high_throughput": "yes"}, {"colour": "red"}],
)
def test_queue_options_are_checked(sqs_url: str, options: dict[str, Any]) -> None:
    with opened(sqs_url) as transport, pytest.raises(NotSupported, match=next(iter(options))):
        transport.declare([QueueSpec(name="q", options=options)])


def test_an_option_that_an_existing_queue_has_not_is_refused(sqs_url: str) -> None:
    with opened(sqs_url) as transport:
        transport.declare([QueueSpec(name="q", options={"visibility_timeout": 40})])
        transport.declare([QueueSpec(name="q", options={"visibility_timeout": 40})])
        with pytest.raises(NotSupported, match="visibility_timeout 40, not 50"):
            transport.declare([QueueSpec(name="q", options={"visibility_timeout": 50})])


def test_queues_made_by_others_need_no_right_to_make_or_list_any(sqs_url: str, meddler: Any) -> None:
    prefix = dict(parse_urls(sqs_url)[0].query)["queue_prefix"]
    raw(sqs_url).create_queue(QueueName=f"{prefix}made")
    forbidden = {"CreateQueue", "ListQueues", "SetQueueAttributes", "DeleteQueue", "PurgeQueue"}
    meddler.rule = lambda operation, body, ask: (
        (403, meddling.refusal("AccessDeniedException")) if operation in forbidden else ask()
    )
    for mode in ("none", "verify"):
        with opened(through(sqs_url, meddler.port)) as transport:
            transport.declare([QueueSpec(name="made")], mode=mode)
            assert not transport.send(messages("a", queue="made"))
            consumer = consumer_of(transport, "made")
            ack(consumer, collect(consumer, 1))
            del meddler.calls[:]
            transport.declare([QueueSpec(name="not-made")], mode="none")
            with pytest.raises(QueueMissing, match="not-made"):
                transport.send(messages("a", queue="not-made"))
            with pytest.raises(QueueMissing):
                transport.declare([QueueSpec(name="not-made")], mode="verify")
            with pytest.raises(QueueMissing):
                consumer_of(transport, "not-made")
            assert "CreateQueue" not in meddler.calls
            with pytest.raises(AuthenticationFailed, match=r"AccessDenied.*rights"):
                transport.declare([QueueSpec(name="not-made")], mode="create")


def test_no_queue_is_made_where_the_option_says_so(sqs_url: str) -> None:
    with opened(sqs_url, create_queues=False) as transport:
        for call in (
            lambda: transport.send(messages("a")),
            lambda: consumer_of(transport),
            lambda: transport.declare([QueueSpec(name="q")]),
        ):
            with pytest.raises(QueueMissing, match="create"):
                call()
        assert transport.stats(["q"]) == {}


def test_a_queue_that_is_deleted_comes_back_empty(sqs_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with opened(sqs_url) as transport:
        transport.send(messages("a", "gone"))
        consumer = consumer_of(transport)
        (held,) = collect(consumer, 1)
        raw(sqs_url).delete_queue(QueueUrl=url_of(transport))
        assert [loss.receipt for loss in consumer.settle([Settlement(held.receipt)])] == [held.receipt]
        assert not transport.send(messages("b"))
        assert payloads(collect(consumer, 1)) == ["b"]


def test_a_queue_that_is_deleted_and_may_not_be_made_is_an_error(sqs_url: str) -> None:
    with opened(sqs_url) as maker:
        maker.declare([QueueSpec(name="q")])
        with opened(sqs_url, create_queues=False) as transport:
            consumer = consumer_of(transport)
            nothing(consumer, 0.0)
            raw(sqs_url).delete_queue(QueueUrl=url_of(maker))
            with pytest.raises(QueueMissing):
                consumer.fetch(1, 0.3)
            with pytest.raises(QueueMissing):
                transport.send(messages("a"))


# --------------------------------------------------------------------------------------------- failures of the server


def fail_entry(number: int, code: str, *, sender: bool, times: int = 1) -> Any:
    """Return a rule: one entry of a batch call fails, and is not done."""
    left = [times]

    def rule(operation: str, body: dict[str, Any], ask: Callable[[], Any]) -> Any:
        if not operation.endswith("Batch") or not left[0] or len(body["Entries"]) <= number:
            return ask()
        left[0] -= 1
        entry = body["Entries"][number]
        failed = {"Id": entry["Id"], "Code": code, "SenderFault": sender, "Message": "because"}
        done = [{"Id": e["Id"]} for e in body["Entries"] if e is not entry]
        return 200, {"Successful": done, "Failed": [failed]}

    return rule


def test_an_entry_that_is_refused_fails_alone(sqs_url: str, meddler: Any) -> None:
    with opened(through(sqs_url, meddler.port)) as transport:
        transport.declare([QueueSpec(name="q")])
        meddler.rule = fail_entry(1, "InvalidMessageContents", sender=True)
        (failure,) = transport.send(messages(*"abc"))
        assert (failure.index, failure.retryable, failure.maybe_sent) == (1, False, False)
        assert "InvalidMessageContents" in failure.reason


def test_an_entry_that_the_server_failed_is_sent_again(sqs_url: str, meddler: Any) -> None:
    with opened(through(sqs_url, meddler.port)) as transport:
        transport.declare([QueueSpec(name="q")])
        sent: list[list[str]] = []
        inner = fail_entry(0, "InternalError", sender=False)

        def rule(operation: str, body: dict[str, Any], ask: Callable[[], Any]) -> Any:
            if operation == "SendMessageBatch":
                sent.append([e["Id"] for e in body["Entries"]])
            return inner(operation, body, ask)

        meddler.rule = rule
        assert not transport.send(messages(*"abc"))
        assert sent == [["0", "1", "2"], ["0"]]
        meddler.rule = fail_entry(0, "InternalError", sender=False, times=100)
        (failure,) = transport.send(messages(*"abc"))
        assert (failure.index, failure.retryable, failure.maybe_sent) == (0, True, False)


def test_a_failed_message_is_not_overtaken_in_its_group(sqs_url: str, meddler: Any) -> None:
    with opened(through(sqs_url, meddler.port)) as transport:
        transport.declare([QueueSpec(name="q", ordered=True)])
        meddler.rule = fail_entry(0, "InvalidMessageContents", sender=True)
        batch = [*messages("a1", "a2", group="a"), *messages("b1", group="b")]
        failures = transport.send(batch)
        assert [f.index for f in failures] == [0, 1]
        assert failures[1].retryable
        meddler.rule = lambda operation, body, ask: ask()
        assert payloads(consumer_of(transport).fetch(10, 0.5).deliveries) == ["b1"]


def test_a_deletion_that_the_server_failed_is_repeated(sqs_url: str, meddler: Any) -> None:
    with opened(through(sqs_url, meddler.port)) as transport:
        transport.send(messages(*"abc"))
        consumer = consumer_of(transport)
        held = collect(consumer, 3)
        settlements = [Settlement(d.receipt) for d in held]

        def failing(operation: str, body: dict[str, Any], ask: Callable[[], Any]) -> Any:
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


def test_a_receipt_that_the_server_refuses_is_lost_alone(sqs_url: str, meddler: Any) -> None:
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


def test_throttling_passes(sqs_url: str, meddler: Any) -> None:
    with opened(through(sqs_url, meddler.port)) as transport:
        transport.declare([QueueSpec(name="q")])
        left = [2]

        def rule(operation: str, body: dict[str, Any], ask: Callable[[], Any]) -> Any:
            if operation == "SendMessageBatch" and left[0]:
                left[0] -= 1
                return 400, meddling.refusal("RequestThrottled")
            return ask()

        meddler.rule = rule
        assert not transport.send(messages("a"))
        left[0] = 1000
        with pytest.raises(TransportError, match="RequestThrottled") as caught:
            transport.send(messages("b"))
        assert caught.value.retryable
        assert left[0] > 990, "retries must be bounded"


def test_a_failure_after_the_fact_is_maybe_sent(sqs_url: str, meddler: Any) -> None:
    with opened(through(sqs_url, meddler.port)) as transport:
        transport.declare([QueueSpec(name="q")])

        def rule(operation: str, body: dict[str, Any], ask: Callable[[], Any]) -> Any:
            answer = ask()
            return (500, meddling.refusal("InternalFailure")) if operation == "SendMessageBatch" else answer

        meddler.rule = rule
        (failure,) = transport.send(messages("a"))
        assert failure.maybe_sent
        assert failure.retryable
        assert payloads(collect(consumer_of(transport), 1)) == ["a"]


@pytest.mark.parametrize("code", ["InvalidClientTokenId", "SignatureDoesNotMatch", "ExpiredToken"])
def test_wrong_credentials_end_at_once(sqs_url: str, meddler: Any, code: str) -> None:
    with opened(through(sqs_url, meddler.port)) as transport:
        consumer = consumer_of(transport)
        meddler.rule = lambda operation, body, ask: (403, meddling.refusal(code))
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


def test_a_server_that_is_away_is_said_to_be(sqs_url: str, meddler: Any) -> None:
    with opened(through(sqs_url, meddler.port)) as transport:
        transport.declare([QueueSpec(name="q")])
        meddler.__exit__()
        transport.client.close()  # pooled connections may live on
        with pytest.raises(ConnectionFailed, match=f"{meddler.port}") as caught:
            transport.send(messages("a"))
        assert caught.value.retryable


# ------------------------------------------------------------------------------------------------------------ payloads


def test_too_large_is_refused_before_anything_is_sent(sqs_url: str, meddler: Any) -> None:
    with opened(through(sqs_url, meddler.port)) as transport:
        transport.declare([QueueSpec(name="q")])
        del meddler.calls[:]
        (failure,) = transport.send([Outbound(id="x", queue="q", payload=b"x" * (MAX_PAYLOAD_BYTES + 1))])
        assert not failure.retryable
        assert "786,433" in failure.reason
        assert meddler.calls == []


def test_large_messages_go_out_in_batches_that_fit(sqs_url: str, meddler: Any) -> None:
    with opened(through(sqs_url, meddler.port)) as transport:
        transport.declare([QueueSpec(name="q")])
        del meddler.calls[:]
        assert not transport.send([Outbound(id=f"{i}", queue="q", payload=b"x" * 300_000) for i in range(5)])
        assert meddler.calls == ["SendMessageBatch"] * 3


def test_foreign_messages_go_to_the_dead_letters(sqs_url: str) -> None:
    """A text that taskq did not write must neither loop nor stop the worker."""
    app = TaskQ("foreign", broker=sqs_url, isolated=True, ignore_result=True)
    ran: list[int] = []

    @app.task(name="note")
    def note(x: int) -> None:
        ran.append(x)

    note.delay(1)
    transport: Any = app.transport
    client = raw(sqs_url)
    for body in ('{"job": "not ours"}', "hello world", "bm90IG91cnM="):
        client.send_message(QueueUrl=url_of(transport, "default"), MessageBody=body)
    from taskq.worker import Worker

    with Worker(app, pool="solo", queues=["default"]):
        deadline = time.monotonic() + PATIENCE
        while not ran or (transport.stats(["default.dead"]).get("default.dead") or _NONE).ready != 3:
            assert time.monotonic() < deadline, transport.stats(["default", "default.dead"])
            time.sleep(0.05)
    letters = DeadLetters(transport).list("default")
    assert {letter.payload for letter in letters} == {b'{"job": "not ours"}', b"hello world", b"not ours"}
    app.close()


class _NONE:
    ready = 0


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
    with opened(own_server.server.url(), timeout=1.0) as transport:
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


def test_asking_for_the_spec_imports_no_boto() -> None:
    code = "import sys, taskq_transport_sqs.plugin; sys.exit('boto3' in sys.modules or 'botocore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ------------------------------------------------------------------------------------------------------ with a worker


def test_a_worker_keeps_the_order_of_each_group(sqs_url: str) -> None:
    from taskq.worker import Worker

    app = TaskQ("ordered", broker=sqs_url, isolated=True, ignore_result=True, queues={"o": {"ordered": True}})
    ran: list[str] = []

    @app.task(name="step", queue="o")
    def step(name: str) -> None:
        time.sleep(0.02)
        ran.append(name)

    for i in range(4):
        for group in "ab":
            step.apply_async((f"{group}{i}",), group=group)
    with pytest.raises(NotSupported, match="countdown"):
        step.apply_async(("later",), group="a", countdown=5)
    with Worker(app, pool="threads", concurrency=4, queues=["o"]):
        deadline = time.monotonic() + PATIENCE
        while len(ran) < 8:
            assert time.monotonic() < deadline, ran
            time.sleep(0.02)
    for group in "ab":
        assert [name for name in ran if name[0] == group] == [f"{group}{i}" for i in range(4)]
    app.close()
