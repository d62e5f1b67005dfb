"""Dead letters: looked at, sent back, thrown away, without the application's code."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import pytest

from taskq import TaskQ, current_request, envelope
from taskq.dead import DeadLetters
from taskq.envelope import Header
from taskq.errors import TransportError
from taskq.message import Outbound, SendFailure


@pytest.fixture
def broken() -> list[bool]:
    """Whether tasks fail: take the entry out to repair them."""
    return [True]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskq.dead._EMPTY_WAIT", 0.05)


def failing(app: TaskQ, broken: list[bool]) -> Any:
    @app.task(name="work", max_retries=1, retry_backoff=0)
    def work(i: int) -> list[int]:
        if broken:
            raise ValueError(f"no good {i}")
        request = current_request()
        return [i, request.attempt, request.epoch]

    return work


def test_list_and_find(rig: Any, backend: str, broken: list[bool]) -> None:
    app = rig.app(backend)
    work = failing(app, broken)
    results = [work.apply_async((i,), task_id=f"task-{i}x") for i in range(3)]
    rig.drain(app)
    letters = DeadLetters(app.transport)
    found = letters.list("default")
    assert [letter.info.id for letter in found] == [r.id for r in results]
    assert [letter.info.reason for letter in found] == [f"ValueError: no good {i}" for i in range(3)]
    assert all((letter.queue, letter.info.attempts) == ("default", 1) for letter in found)
    assert len(letters.list("default", limit=2)) == 2
    assert letters.list("other") == []
    assert letters.find("default", "task-1x") == found[1]
    assert letters.find("default", "task-2") == found[2]
    assert letters.find("default", "task-") is None  # of several
    assert letters.find("default", "nope") is None
    assert rig.counts(app, "default.dead") == (3, 0, 0)  # looking takes nothing


def test_a_replay_is_a_new_run_whose_result_replaces_the_old(
    rig: Any, backend: str, pool: str, broken: list[bool]
) -> None:
    app = rig.app(backend)
    result = failing(app, broken).apply_async((7,), priority=8, headers={"tenant": "blue"}, expires=60)
    rig.drain(app, pool)
    assert result.state == "FAILURE"
    broken.clear()
    assert DeadLetters(app.transport).replay("default", lambda letter: True) == 1
    (header,) = rig.headers(app)
    assert (header.id, header.attempt, header.get("ep"), header.get("p")) == (result.id, 0, 1, 8)
    assert header.get("h") == {"tenant": "blue"}
    assert header.get("ex") is None
    assert header.get("hi")[0][2] == "ValueError: no good 7"
    rig.drain(app, pool)
    assert app.AsyncResult(result.id).get(timeout=1) == [7, 0, 1]
    assert rig.counts(app, "default.dead") == (0, 0, 0)


def test_who_dies_again_keeps_the_history(rig: Any, app: TaskQ, broken: list[bool]) -> None:
    result = failing(app, broken).delay(1)
    rig.drain(app)
    letters = DeadLetters(app.transport)
    for _ in range(3):
        assert letters.replay("default", lambda letter: True) == 1
        rig.drain(app)
    (letter,) = letters.list("default")
    assert (letter.info.id, letter.info.epoch, letter.info.attempts) == (result.id, 3, 1)
    assert [entry[0] for entry in letter.info.history] == [0, 1, 2]
    broken.clear()
    letters.replay("default", lambda letter: True)
    rig.drain(app)
    assert app.AsyncResult(result.id).get(timeout=1) == [1, 0, 4]


def test_a_replay_of_some_to_elsewhere(rig: Any, backend: str, broken: list[bool]) -> None:
    app = rig.app(backend)
    work = failing(app, broken)
    app.send_many([work.s(i) for i in range(6)])
    rig.drain(app)
    letters = DeadLetters(app.transport)
    assert (
        letters.replay("default", lambda letter: letter.info.reason.endswith(("1", "3", "5")), to="again", limit=2) == 2
    )
    assert rig.counts(app, "again") == (2, 0, 0)
    left = letters.list("default")
    assert [letter.info.reason[-1] for letter in left] == ["0", "2", "4", "5"]  # in their order
    assert rig.counts(app) == (0, 0, 0)


def test_purge(rig: Any, backend: str, broken: list[bool]) -> None:
    app = rig.app(backend)
    work = failing(app, broken)
    app.send_many([work.s(i) for i in range(4)])
    rig.drain(app)
    letters = DeadLetters(app.transport)
    assert letters.purge("default", lambda letter: letter.info.reason.endswith("2")) == 1
    assert len(letters.list("default")) == 3
    assert letters.purge("default", lambda letter: True) == 3
    assert letters.list("default") == []


def test_a_replay_that_the_broker_refuses_loses_nothing(
    rig: Any, app: TaskQ, broken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(app, broken).delay(1)
    rig.drain(app)
    monkeypatch.setattr(app.transport, "send", lambda batch: [SendFailure(0, "full")])
    letters = DeadLetters(app.transport)
    with pytest.raises(TransportError, match="not accepted for replay: full"):
        letters.replay("default", lambda letter: True)
    assert len(letters.list("default")) == 1


def test_what_cannot_be_read_is_listed_and_can_be_purged(rig: Any, app: TaskQ) -> None:
    """A server may dead-letter by itself, and people put strange things into queues."""
    foreign = b'{"task": "of another program"}'
    native = envelope.encode(Header("native", "work"), b"[[],{}]")
    app.transport.send([Outbound("1", "default.dead", foreign), Outbound("2", "default.dead", native)])
    letters = DeadLetters(app.transport)
    found = letters.list("default")
    assert [letter.payload for letter in found] == [foreign, native]
    # by its bytes, so that another process can name it too
    assert found[0].info.id == f"unreadable-{blake2b(foreign, digest_size=8).hexdigest()}"
    assert (found[1].info.id, found[1].info.task) == ("native", "work")
    assert letters.replay("default", lambda letter: letter.info.id == "native") == 1
    (header,) = rig.headers(app)
    assert (header.id, header.get("ep")) == ("native", 1)
    assert letters.purge("default", lambda letter: True) == 1


def test_an_undecodable_message_goes_back_as_it_was(rig: Any, app: TaskQ) -> None:
    """It may be readable by the release that is installed by now."""
    app.task(name="work")(lambda: None)
    payload = b"\xc1\x02of a later release"
    rig.raw(app, payload)
    rig.drain(app)
    assert DeadLetters(app.transport).replay("default", lambda letter: True) == 1
    assert rig.payloads(app) == [payload]


def test_a_server_that_cannot_peek(rig: Any, app: TaskQ, broken: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    import msgspec

    work = failing(app, broken)
    app.send_many([work.s(i) for i in range(4)])
    rig.drain(app)
    blind = msgspec.structs.replace(app.transport.capabilities, peek=False)
    monkeypatch.setattr(type(app.transport), "capabilities", property(lambda self: blind))
    letters = DeadLetters(app.transport)
    for _ in range(3):
        assert [letter.info.reason[-1] for letter in letters.list("default", limit=3)] == ["0", "1", "2"]
    consumer, deliveries = rig.fetch(app, "default.dead", limit=4)
    assert [d.deliveries for d in deliveries] == [1] * 4  # looking does not count
    consumer.close()
