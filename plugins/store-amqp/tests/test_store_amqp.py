"""What is special about results over AMQP: whose they are, and what becomes of those that nobody takes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pika
import pytest

from taskq.errors import ResultTooLarge, StoreError
from taskq.message import Record
from taskq.spi import ReadableBy, StoreConfig, parse_urls
from taskq_store_amqp.options import MAX_RECORD_BYTES, AmqpStoreOptions
from taskq_store_amqp.store import AmqpStore
from tests.support.rabbitmq_servers import names
from tests.support.steps import PATIENCE, opening

Make = Callable[..., AmqpStore]


@pytest.fixture
def make(rabbitmq_url: str) -> Iterator[Make]:
    with ExitStack() as stack:

        def one(**options: Any) -> AmqpStore:
            chosen = AmqpStoreOptions(timeout=PATIENCE, **options)
            config = StoreConfig(urls=parse_urls(rabbitmq_url), options=chosen)
            return stack.enter_context(opening(AmqpStore(config)))

        yield one


def record(name: str, to: AmqpStore | None, payload: bytes = b"done", **fields: Any) -> Record:
    return Record(name, "SUCCESS", payload, reply=to.reply_address() if to is not None else None, **fields)


def test_only_the_caller_can_read(make: Make) -> None:
    caller, other, worker = make(), make(), make()
    assert caller.capabilities.readable_by is ReadableBy.CALLER
    other.reply_address()
    assert not worker.put([record("t", caller)])
    assert [r.payload for r in caller.wait(["t"], PATIENCE)] == [b"done"]
    assert other.get(["t"]) == [None]
    assert worker.get(["t"]) == [None]
    assert [r and r.payload for r in caller.get(["t"])] == [b"done"], "a second look finds it, too"


def test_each_caller_gets_its_own_of_one_batch(make: Make) -> None:
    callers, worker = [make() for _ in range(3)], make()
    batch = [record(f"{n}-{i}", caller) for i in range(200) for n, caller in enumerate(callers)]
    assert not worker.put([*batch, record("nobody", None)])
    for n, caller in enumerate(callers):
        wanted = {f"{n}-{i}" for i in range(200)}
        end = time.monotonic() + PATIENCE
        while wanted and time.monotonic() < end:
            wanted -= {r.id for r in caller.wait(sorted(wanted), 1.0)}
        assert not wanted


def test_the_reply_queue_goes_with_its_process(make: Make, rabbitmq_url: str, server_url: Callable[[str], str]) -> None:
    """It is deleted by a clean end, expires after any other, and results for it are dropped without an error."""
    caller, worker = make(), make()
    address = caller.reply_address()
    late = record("late", caller)
    assert names(server_url("rabbitmq"), rabbitmq_url) == {address}
    caller.close()
    assert names(server_url("rabbitmq"), rabbitmq_url) == set()
    assert not worker.put([late])
    crashed = make(reply_expires=1.0)
    assert crashed.reply_address()
    assert crashed._replies is not None
    crashed._replies.link.failed("the process was killed")
    end = time.monotonic() + PATIENCE
    while names(server_url("rabbitmq"), rabbitmq_url):
        assert time.monotonic() < end, "the reply queue of a dead process has not expired"
        time.sleep(0.1)


def test_a_deleted_reply_queue_is_made_again(make: Make, rabbitmq_url: str) -> None:
    caller, worker = make(), make()
    address = caller.reply_address()
    assert address is not None
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        connection.channel().queue_delete(address)
    assert caller.wait(["x"], 0.2) == []
    assert caller.reply_address() == address
    assert not worker.put([record("t", caller)])
    assert [r.id for r in caller.wait(["t"], PATIENCE)] == ["t"]


def test_rubbish_in_the_reply_queue_does_no_harm(
    make: Make, rabbitmq_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caller, worker = make(), make()
    address = caller.reply_address()
    assert address is not None
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection, caplog.at_level(logging.WARNING):
        connection.channel().basic_publish("", address, b"\xffrubbish")
        assert not worker.put([record("t", caller)])
        assert [r.id for r in caller.wait(["t"], PATIENCE)] == ["t"]
        assert "is no result" in caplog.text


def test_what_nobody_asks_for_is_dropped_beyond_a_limit(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caller, worker = make(max_kept=10), make()
    with caplog.at_level(logging.WARNING):
        assert not worker.put([record(f"{i}", caller) for i in range(30)])
        assert [r.id for r in caller.wait(["29"], PATIENCE)] == ["29"]
    assert caller.get(["0"]) == [None]
    assert caplog.text.count("ignore_result") == 1


def test_a_better_record_replaces_a_worse_one_and_not_the_other_way(make: Make) -> None:
    caller, worker = make(), make()
    steps = [(0, False, b"started"), (1, True, b"end"), (0, True, b"late"), (1, True, b"again"), (1, False, b"no")]
    for attempt, terminal, payload in steps:
        assert not worker.put([record("t", caller, payload, attempt=attempt, terminal=terminal)])
    assert not worker.put([record("mark", caller)])
    assert caller.wait(["mark"], PATIENCE)
    assert [r and r.payload for r in caller.get(["t"])] == [b"end"]


def test_too_large_and_closed(make: Make) -> None:
    store = make()
    with pytest.raises(ResultTooLarge, match="store large results elsewhere"):
        store.put([record("t", store, b"x" * (MAX_RECORD_BYTES + 1))])
    store.close()
    with pytest.raises(StoreError, match="open") as caught:
        store.wait(["t"], 0.1)
    assert not caught.value.retryable
