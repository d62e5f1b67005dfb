"""What is special about SQS: whole seconds, long polls, queues made by others, sizes, foreign messages."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from taskq import TaskQ
from taskq.dead import DeadLetters
from taskq.errors import AuthenticationFailed, NotSupported, QueueMissing
from taskq.message import RELEASE, Delivery, Outbound, QueueSpec, Settlement
from taskq.spi import Durability, Ordering, Support, parse_urls
from taskq.worker import Worker
from taskq_transport_sqs.options import MAX_PAYLOAD_BYTES, SqsOptions, capabilities
from tests.support.processes import eventually
from tests.support.sqs_meddler import Answer, Meddler, refusal
from tests.support.sqs_transport import opened, raw, through, url_of
from tests.support.steps import PATIENCE, ack, collect, consumer_of, messages, nothing, payloads

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


def test_asking_for_the_spec_imports_no_boto() -> None:
    code = "import sys, taskq_transport_sqs.plugin; sys.exit('boto3' in sys.modules or 'botocore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------------------------------------------- queues, rights


def test_a_group_on_a_standard_queue_travels_along(sqs_url: str) -> None:
    """It makes the queue fair on Amazon's service; what is shared fairly there cannot be seen on an emulator."""
    with opened(sqs_url) as transport:
        assert transport.capabilities.fair_groups
        assert not transport.declare([QueueSpec(name="f", ordered=True)])["f"].capabilities.fair_groups
        transport.declare([QueueSpec(name="q")])
        transport.send(messages("a", group="customer 1"))
        (delivery,) = collect(consumer_of(transport), 1)
        assert delivery.group == "customer 1"


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


def test_queues_made_by_others_need_no_right_to_make_or_list_any(sqs_url: str, meddler: Meddler) -> None:
    prefix = dict(parse_urls(sqs_url)[0].query)["queue_prefix"]
    raw(sqs_url).create_queue(QueueName=f"{prefix}made")
    forbidden = {"CreateQueue", "ListQueues", "SetQueueAttributes", "DeleteQueue", "PurgeQueue"}
    meddler.rule = lambda operation, body, ask: (
        (403, refusal("AccessDeniedException")) if operation in forbidden else ask()
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


@pytest.mark.parametrize("ordered", [False, True])
def test_rights_on_one_queue_are_enough(sqs_url: str, meddler: Meddler, ordered: bool) -> None:
    """Whose rights name the queue alone is refused when asking for one of the other kind."""
    with opened(sqs_url) as transport:
        transport.declare([QueueSpec(name="made", ordered=ordered)])
    meddler.rule = lambda operation, body, ask: (
        (403, refusal("AccessDeniedException"))
        if operation == "GetQueueUrl" and body["QueueName"].endswith(".fifo") is not ordered
        else ask()
    )
    for mode in ("none", "verify", "create"):
        with opened(through(sqs_url, meddler.port)) as transport:
            transport.declare([QueueSpec(name="made", ordered=ordered)], mode=mode)
            assert not transport.send(messages(mode, queue="made"))
            consumer = consumer_of(transport, "made")
            ack(consumer, collect(consumer, 1))
            transport.declare([QueueSpec(name=f"made-{mode}", ordered=ordered)])


def test_looking_makes_nothing(sqs_url: str) -> None:
    """Not even the queue that SQS would move dead letters to."""
    with opened(sqs_url) as transport:
        transport.declare([QueueSpec(name="q")])
    with opened(sqs_url, max_receives=3) as transport:
        transport.declare([QueueSpec(name="q", options={"visibility_timeout": 30})], mode="verify")
        assert set(transport.stats(["q", "q.dead"])) == {"q"}


def test_a_queue_of_another_account_is_not_made_in_ones_own(sqs_url: str) -> None:
    with opened(sqs_url, account="123456789012") as transport:
        with pytest.raises(NotSupported, match="123456789012"):
            transport.declare([QueueSpec(name="q")])
        assert transport.stats(["q"]) == {}


def test_high_throughput_is_for_ordered_queues(sqs_url: str) -> None:
    with opened(sqs_url) as transport, pytest.raises(NotSupported, match="ordered queues"):
        transport.declare([QueueSpec(name="q", options={"high_throughput": True})])


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


def test_a_queue_that_is_made_again_has_its_options(sqs_url: str) -> None:
    with opened(sqs_url) as transport:
        transport.declare([QueueSpec(name="q", options={"visibility_timeout": 40})])
        transport.declare([QueueSpec(name="q")])  # as those do who know the name alone
        raw(sqs_url).delete_queue(QueueUrl=url_of(transport))
        assert not transport.send(messages("b"))
        found = raw(sqs_url).get_queue_attributes(QueueUrl=url_of(transport), AttributeNames=["All"])
        assert found["Attributes"]["VisibilityTimeout"] == "40"


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


# -------------------------------------------------------------------------------------------------------- long delays


def test_a_delay_beyond_the_servers_goes_in_legs(sqs_url: str, meddler: Meddler) -> None:
    """Each leg is as long as SQS allows; here they end at once, and a worker sends the message on."""
    legs: list[int] = []

    def rule(operation: str, body: dict[str, Any], ask: Callable[[], Answer]) -> Answer:
        if operation == "SendMessageBatch":
            legs.extend(entry.pop("DelaySeconds", 0) for entry in body["Entries"])
        return ask()

    meddler.rule = rule
    app = TaskQ("legs", broker=through(sqs_url, meddler.port), isolated=True, ignore_result=True)
    ran: list[int] = []

    @app.task(name="note")
    def note(x: int) -> None:
        ran.append(x)

    note.apply_async((1,), countdown=2000)
    with Worker(app, pool="solo", queues=["default"]):
        eventually(lambda: len(legs) >= 3)
    app.close()
    assert set(legs) == {900}
    assert not ran


# ------------------------------------------------------------------------------------------------------------ payloads


def test_too_large_is_refused_before_anything_is_sent(sqs_url: str, meddler: Meddler) -> None:
    with opened(through(sqs_url, meddler.port)) as transport:
        transport.declare([QueueSpec(name="q")])
        del meddler.calls[:]
        (failure,) = transport.send([Outbound(id="x", queue="q", payload=b"x" * (MAX_PAYLOAD_BYTES + 1))])
        assert not failure.retryable
        assert "786,433" in failure.reason
        assert meddler.calls == []


def test_large_messages_go_out_in_batches_that_fit(sqs_url: str, meddler: Meddler) -> None:
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
