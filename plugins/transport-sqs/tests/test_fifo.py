"""FIFO queues: one message of a group at a time, its successors in order whatever happens; groups of fair queues."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from taskq import TaskQ
from taskq.dead import DeadLetters
from taskq.errors import NotSupported
from taskq.message import RELEASE, Outbound, QueueSpec, QueueStats, Settlement
from taskq_transport_sqs.consumer import SqsConsumer
from taskq_transport_sqs.transport import SqsTransport
from tests.support.sqs_meddler import Meddler, fail_entry
from tests.support.sqs_transport import opened, through
from tests.support.steps import PATIENCE, ack, collect, consumer_of, messages, nothing, payloads


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
            (delivery,) = collect(consumer, 1, limit=10)
            nothing(consumer, 0.0)
            seen.append(delivery.payload.decode())
            assert delivery.group == "g"
            ack(consumer, [delivery])
        assert seen == [*"12345"]
        nothing(consumer, 0.0)


def test_a_released_message_takes_its_successors_along(sqs_url: str) -> None:
    with fifo(sqs_url) as (transport, consumer):
        transport.send(messages(*"1234", group="g"))
        (first,) = collect(consumer, 1, limit=10)
        assert not consumer.settle([Settlement(first.receipt, RELEASE)])
        other = consumer_of(transport)
        (again,) = collect(other, 1, limit=10)  # all of the group is back, or the server would keep it locked
        assert again.payload == b"1"
        assert again.deliveries == 2
        ack(other, [again])
        assert payloads(collect(other, 1, limit=10)) == ["2"]
        other.close()
        assert payloads(collect(consumer, 1, limit=10)) == ["2"]


def test_a_delayed_release_holds_the_group(sqs_url: str) -> None:
    with fifo(sqs_url) as (transport, consumer):
        transport.send(messages(*"12", group="g"))
        (first,) = collect(consumer, 1, limit=10)
        began = time.monotonic()
        assert not consumer.settle([Settlement(first.receipt, RELEASE, delay=0.9)])
        assert payloads(collect(consumer, 1, limit=10)) == ["1"]
        assert time.monotonic() - began > 0.9


def test_successors_are_renewed_with_the_first(sqs_url: str) -> None:
    with fifo(sqs_url, lease_s=2) as (transport, consumer):
        transport.send(messages(*"123", group="g"))
        (first,) = collect(consumer, 1, limit=10)
        other = consumer_of(transport)
        until = time.monotonic() + 5.0
        while time.monotonic() < until:
            assert not consumer.extend([first.receipt])
            nothing(other, 0.4)
        for expected in "123":
            ack(consumer, [first])
            if expected != "3":
                (first,) = collect(consumer, 1, limit=10)
                assert first.payload.decode() == chr(ord(expected) + 1)
                assert first.deliveries == 1


def test_a_lost_lease_of_the_first_keeps_the_order(sqs_url: str) -> None:
    with fifo(sqs_url, lease_s=1) as (transport, consumer):
        transport.send(messages(*"123", group="g"))
        (first,) = collect(consumer, 1, limit=10)
        other = consumer_of(transport)
        seen = []
        for _ in range(3):
            (delivery,) = collect(other, 1, limit=10)
            seen.append(delivery.payload.decode())
            ack(other, [delivery])
        assert seen == [*"123"]
        assert [loss.receipt for loss in consumer.settle([Settlement(first.receipt)])] == [first.receipt]


def test_nothing_overtakes_a_successor_that_was_lost(sqs_url: str, meddler: Meddler) -> None:
    """The server refuses to renew the second of three that are held, and has it again; the third waits for it."""
    with fifo(through(sqs_url, meddler.port), lease_s=2) as (transport, consumer):
        transport.send(messages(*"123", group="g"))
        (first,) = collect(consumer, 1, limit=10)
        meddler.rule = fail_entry(1, "MessageNotInflight", sender=True)
        assert not consumer.extend([first.receipt])
        ack(consumer, [first])
        seen = []
        for _ in range(2):
            (delivery,) = collect(consumer, 1, limit=10)
            seen.append(delivery.payload)
            ack(consumer, [delivery])
        assert seen == [b"2", b"3"]


def test_all_that_sqs_moved_to_the_dead_letters_is_listed(sqs_url: str) -> None:
    """They keep the group that they had, but wait for each other no more."""
    with fifo(sqs_url, max_receives=1) as (transport, consumer):
        transport.send(messages(*"1234", group="g"))
        deadline = time.monotonic() + PATIENCE
        while (transport.stats(["q.dead"]).get("q.dead") or QueueStats()).ready != 4:
            assert time.monotonic() < deadline
            for delivery in consumer.fetch(10, 0.1).deliveries:
                consumer.settle([Settlement(delivery.receipt, RELEASE, counted=True)])
        assert len(DeadLetters(transport).list("q")) == 4
        assert len(DeadLetters(transport).list("q")) == 4, "the first look took some of them"


def test_a_queue_that_is_not_ordered_as_declared_is_refused(sqs_url: str) -> None:
    """Also where nothing is asked when it is declared."""
    with opened(sqs_url) as transport:
        transport.declare([QueueSpec(name="q")])
    with opened(sqs_url) as transport:
        transport.declare([QueueSpec(name="q", ordered=True)], mode="none")
        with pytest.raises(NotSupported, match="standard queue"):
            transport.send(messages("a", group="g"))
        with pytest.raises(NotSupported, match="standard queue"):
            consumer_of(transport)


def test_a_repeated_send_is_dropped_and_a_new_attempt_is_not(sqs_url: str) -> None:
    with fifo(sqs_url) as (transport, consumer):
        for message_id in ("same", "same", "same.1"):
            assert not transport.send([Outbound(id=message_id, queue="q", payload=message_id.encode(), group="g")])
        seen = []
        for _ in range(2):
            (delivery,) = collect(consumer, 1, limit=10)
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
        assert payloads(collect(consumer, 1, limit=10)) == ["now"]


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
        assert collect(consumer, 1, limit=10)[0].group == "Łódź 50%"
        (failure,) = transport.send(messages("b", group="x" * 200))
        assert not failure.retryable


def test_groups_on_a_standard_queue_make_it_fair(sqs_url: str) -> None:
    with opened(sqs_url) as transport:
        assert not transport.send(messages(*"ab", group="tenant-1"))
        consumer = consumer_of(transport)
        found = collect(consumer, 2)  # held at once: no order is kept
        assert {d.group for d in found} <= {"tenant-1", None}
        ack(consumer, found)


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
