"""Every way in which a run can end is defined, seen by the caller, and never stops or loops the worker."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from taskq import Reject, TaskFailure, TaskQ, envelope
from taskq.envelope import EXPIRES, NOT_BEFORE, PRIORITY, TRANSFORMS, Header
from taskq.errors import (
    DecodeError,
    EncodeError,
    ResultTooLarge,
    TaskArgumentsError,
    TaskExpired,
    UnknownTask,
)


@pytest.fixture
def outcome_app(rig: Any, backend: str) -> TaskQ:
    """Tasks that end in every way, and ``alive`` to see that the worker goes on."""
    app = rig.app(backend, max_result_bytes=1000, unknown_task_wait=0)

    @app.task(name="alive")
    def alive() -> str:
        return "alive"

    @app.task(name="add")
    def add(x: int, y: int = 1) -> int:
        return x + y

    @app.task(name="fail")
    def fail() -> None:
        raise ValueError("no good")

    @app.task(name="raise_base")
    def raise_base(name: str) -> None:
        raise {"exit": SystemExit, "interrupt": KeyboardInterrupt, "generator": GeneratorExit, "base": BaseException}[
            name
        ]("from the task")

    @app.task(name="reject", max_retries=5)
    def reject() -> None:
        raise Reject("not this one")

    @app.task(name="unserializable")
    def unserializable() -> object:
        return object()

    @app.task(name="large")
    def large() -> str:
        return "x" * 2000

    return app


def still_alive(app: TaskQ) -> None:
    assert app.tasks["alive"].delay().get(timeout=10) == "alive"


def test_a_result_comes_back_and_nothing_is_left(rig: Any, outcome_app: TaskQ, pool: str) -> None:
    with rig.work(outcome_app, pool):
        results = [outcome_app.tasks["add"].delay(i, y=i) for i in range(50)]
        assert [r.get(timeout=10) for r in results] == [2 * i for i in range(50)]
        rig.wait_empty(outcome_app)
    assert rig.dead(outcome_app) == []
    assert {r.state for r in results} == {"SUCCESS"}


def test_an_exception_is_a_failure_and_a_dead_letter(rig: Any, outcome_app: TaskQ, pool: str) -> None:
    with rig.work(outcome_app, pool) as worker:
        result = outcome_app.tasks["fail"].delay()
        with pytest.raises(ValueError, match="no good"):
            result.get(timeout=10)
        still_alive(outcome_app)
        rig.wait_empty(outcome_app)
    assert result.state == "FAILURE"
    assert result.failed()
    ((info, payload),) = rig.dead(outcome_app)
    assert (info.id, info.task, info.queue, info.state) == (result.id, "fail", "default", "FAILURE")
    assert info.reason == "ValueError: no good"
    assert 'raise ValueError("no good")' in info.detail
    assert (info.attempts, info.deliveries, info.epoch, info.worker) == (0, 1, 0, worker.name)
    assert info.died_at == pytest.approx(time.time(), abs=60)
    header, body = envelope.decode(payload)
    assert (header.id, header.task) == (result.id, "fail")
    assert msgspec.json.decode(payload[body:]) == [[], {}]


def test_the_dead_letter_holds_the_message_unchanged(rig: Any, outcome_app: TaskQ) -> None:
    outcome_app.tasks["fail"].apply_async(headers={"tenant": "blue"}, priority=7)
    (sent,) = rig.payloads(outcome_app)
    rig.drain(outcome_app)
    ((_, payload),) = rig.dead(outcome_app)
    assert payload == sent


def test_without_dead_letters_a_failure_is_only_a_result(rig: Any, outcome_app: TaskQ) -> None:
    @outcome_app.task(name="quiet", dead_letter=False)
    def quiet() -> None:
        raise ValueError("quiet")

    @outcome_app.task(name="expected", throws=(LookupError,))
    def expected() -> None:
        raise KeyError("expected")

    results = [quiet.delay(), expected.delay()]
    rig.drain(outcome_app)
    assert [r.state for r in results] == ["FAILURE", "FAILURE"]
    assert rig.dead(outcome_app) == []


@pytest.mark.parametrize("backend", ["memory"])
@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x00\x01\x02",
        b'{"task": "add", "args": [1, 2]}',
        b"\xc1\x02\x00\x00",
        b"\xc1\x01\xff\xff\x00",
        b"\xc1\x01\x00\x01\xc1",
        b"\xc1\x01\x00\x04\x91\xa2\xff\xfe",
        b"\xc1",
    ],
    ids=["empty", "bytes", "json", "version", "cut off", "no msgpack", "no text", "magic alone"],
)
def test_an_undecodable_message_is_dead(rig: Any, outcome_app: TaskQ, pool: str, payload: bytes) -> None:
    rig.raw(outcome_app, payload)
    with rig.work(outcome_app, pool):
        still_alive(outcome_app)
        rig.wait_empty(outcome_app)
    ((info, kept),) = rig.dead(outcome_app)
    assert kept == payload
    assert info.reason.startswith("undecodable: ")
    assert info.state == "DEAD"


@pytest.mark.parametrize("backend", ["memory"])
@pytest.mark.parametrize(
    "extra",
    [
        {EXPIRES: "tomorrow"},
        {NOT_BEFORE: [1]},
        {NOT_BEFORE: float("inf")},
        {PRIORITY: "high"},
        {PRIORITY: 77},
        {envelope.EPOCH: "x"},
        {envelope.PARKED: {}},
        {envelope.HEADERS: 5},
        {envelope.MAX_RETRIES: "many"},
        {TRANSFORMS: 5},
        {TRANSFORMS: [5]},
        {TRANSFORMS: [[]]},
        {envelope.GROUP: 1},
        {envelope.HISTORY: 1},
    ],
    ids=str,
)
def test_a_header_with_a_field_of_the_wrong_type_is_dead(rig: Any, outcome_app: TaskQ, extra: dict[str, Any]) -> None:
    payload = envelope.encode(Header("x1", "add", "json", 0, time.time(), "", extra), b"[[1],{}]")
    rig.raw(outcome_app, payload)
    with rig.work(outcome_app, "solo"):
        still_alive(outcome_app)
        rig.wait_empty(outcome_app)
    ((info, kept),) = rig.dead(outcome_app)
    assert kept == payload
    assert info.state == "DEAD"


@pytest.mark.parametrize("backend", ["memory"])
@pytest.mark.parametrize("body", [b"{", b"17", b"[1,2,3]", b'[["a"]]', b"[[1],[2]]", b'["ab",{}]', b'{"a":1,"b":2}'])
def test_a_body_that_is_not_args_and_kwargs_is_dead(rig: Any, outcome_app: TaskQ, pool: str, body: bytes) -> None:
    payload = envelope.encode(Header("x2", "add", "json", 0, time.time(), ""), body)
    rig.raw(outcome_app, payload)
    with rig.work(outcome_app, pool):
        with pytest.raises(DecodeError, match="cannot be decoded"):
            outcome_app.AsyncResult("x2").get(timeout=10)
        still_alive(outcome_app)
    ((info, kept),) = rig.dead(outcome_app)
    assert kept == payload
    assert "arguments of task add cannot be decoded" in info.reason
    assert outcome_app.AsyncResult("x2").state == "DEAD"


def test_bad_messages_on_every_backend(rig: Any, outcome_app: TaskQ, pool: str) -> None:
    """One of each kind: not readable at all, without arguments, ended by SystemExit."""
    payloads = [b"\xc1\x02", envelope.encode(Header("x4", "add", "json", 0, time.time(), ""), b"17")]
    for payload in payloads:
        rig.raw(outcome_app, payload)
    exits = outcome_app.tasks["raise_base"].delay("exit")
    with rig.work(outcome_app, pool):
        with pytest.raises(TaskFailure, match="SystemExit"):
            exits.get(timeout=10)
        still_alive(outcome_app)
        rig.wait_empty(outcome_app)
    assert [payload for _, payload in rig.dead(outcome_app)][:2] == payloads


def test_a_content_type_that_is_not_accepted_is_never_decoded(rig: Any, outcome_app: TaskQ) -> None:
    payload = envelope.encode(Header("x3", "add", "pickle", 0, time.time(), ""), b"\x80\x04N.")
    rig.raw(outcome_app, payload)
    rig.drain(outcome_app)
    ((info, kept),) = rig.dead(outcome_app)
    assert kept == payload
    assert "content type 'pickle' is not accepted here" in info.reason
    assert "`accept`" in info.reason


def test_an_unknown_task_is_dead_when_nobody_takes_it_in_time(rig: Any, outcome_app: TaskQ, pool: str) -> None:
    with rig.work(outcome_app, pool):
        result = outcome_app.send_task("nobody.knows", (1,))
        with pytest.raises(UnknownTask, match=r"nobody\.knows"):
            result.get(timeout=10)
        still_alive(outcome_app)
        rig.wait_empty(outcome_app)
    ((info, _),) = rig.dead(outcome_app)
    assert info.task == "nobody.knows"
    assert "unknown task" in info.reason


def test_wrong_arguments_are_refused_at_the_call(rig: Any, outcome_app: TaskQ) -> None:
    add = outcome_app.tasks["add"]
    for args, kwargs in [((), {}), ((1, 2, 3), {}), ((1,), {"z": 1}), ((1,), {"x": 1})]:
        with pytest.raises(TaskArgumentsError, match=r"do not fit task add.*nothing was sent") as caught:
            add.delay(*args, **kwargs)
        assert isinstance(caught.value, TypeError)
        with pytest.raises(TaskArgumentsError):
            add.apply_async(args, kwargs, countdown=1)
        with pytest.raises(TaskArgumentsError):
            outcome_app.send_many([add.s(*args, **kwargs)])
    outcome_app.connect()
    assert rig.counts(outcome_app) == (0, 0, 0)


def test_wrong_arguments_at_the_worker_fail_without_a_retry(rig: Any, outcome_app: TaskQ, pool: str) -> None:
    """The caller does not know the task, so only the worker can see it; another try would see the same."""

    @outcome_app.task(name="eager_to_retry", max_retries=5, retry_backoff=0)
    def eager_to_retry(x: int) -> int:
        return x

    client = rig.twin(outcome_app)
    with rig.work(outcome_app, pool) as worker:
        result = client.send_task("eager_to_retry", (1, 2, 3))
        with pytest.raises(TaskArgumentsError, match="do not fit task eager_to_retry"):
            result.get(timeout=10)
        still_alive(outcome_app)
        assert worker.lanes[0].settler.retried == 0
    assert result.state == "FAILURE"
    assert len(rig.dead(outcome_app)) == 1


def test_a_type_error_of_the_task_itself_stays_one(rig: Any, outcome_app: TaskQ) -> None:
    @outcome_app.task(name="type_error")
    def type_error() -> None:
        len(5)  # type: ignore[arg-type]

    with rig.work(outcome_app), pytest.raises(TypeError, match=r"has no len\(\)") as caught:
        type_error.delay().get(timeout=10)
    assert not isinstance(caught.value, TaskArgumentsError)


def test_a_result_that_cannot_be_serialized_is_a_failure(rig: Any, outcome_app: TaskQ, pool: str) -> None:
    with rig.work(outcome_app, pool):
        result = outcome_app.tasks["unserializable"].delay()
        with pytest.raises(EncodeError, match="object"):
            result.get(timeout=10)
        still_alive(outcome_app)
    assert result.state == "FAILURE"


def test_a_result_that_is_too_large_is_a_failure(rig: Any, outcome_app: TaskQ, pool: str) -> None:
    with rig.work(outcome_app, pool):
        result = outcome_app.tasks["large"].delay()
        with pytest.raises(ResultTooLarge, match="2002 bytes, max_result_bytes is 1000"):
            result.get(timeout=10)
        still_alive(outcome_app)


def test_what_nobody_keeps_is_not_encoded(rig: Any, outcome_app: TaskQ) -> None:
    with rig.work(outcome_app) as worker:
        for name in ("unserializable", "large"):
            outcome_app.tasks[name].apply_async(ignore_result=True)
        rig.wait_empty(outcome_app)
        assert (worker.lanes[0].settler.ended, worker.lanes[0].settler.failed) == (2, 0)


@pytest.mark.parametrize("backend", ["memory"])
@pytest.mark.parametrize("kind", ["exit", "interrupt", "generator", "base"])
def test_an_exception_that_is_no_exception_ends_the_task_only(
    rig: Any, outcome_app: TaskQ, pool: str, kind: str
) -> None:
    """SystemExit and its like end the task, not the worker, and not the caller who asks for the result."""
    with rig.work(outcome_app, pool):
        result = outcome_app.tasks["raise_base"].delay(kind)
        with pytest.raises(TaskFailure, match="from the task") as caught:
            result.get(timeout=10)
        still_alive(outcome_app)
        rig.wait_empty(outcome_app)
    assert caught.value.type_name.startswith("builtins.")
    assert "raise_base" in caught.value.remote_traceback
    assert len(rig.dead(outcome_app)) == 1


@pytest.mark.parametrize("backend", ["memory"])
@pytest.mark.parametrize("kind", ["exit", "interrupt", "generator", "base"])
def test_an_async_task_may_raise_them_too(rig: Any, outcome_app: TaskQ, pool: str, kind: str) -> None:
    @outcome_app.task(name="araise")
    async def araise(name: str) -> None:
        outcome_app.tasks["raise_base"](name)

    @outcome_app.task(name="aalive")
    async def aalive() -> str:
        return "alive"

    with rig.work(outcome_app, pool):
        with pytest.raises(TaskFailure, match="from the task"):
            araise.delay(kind).get(timeout=10)
        assert [aalive.delay().get(timeout=10) for _ in range(3)] == ["alive"] * 3


def test_reject_goes_to_the_dead_letters_whatever_the_retries(rig: Any, outcome_app: TaskQ, pool: str) -> None:
    with rig.work(outcome_app, pool) as worker:
        result = outcome_app.tasks["reject"].delay()
        with pytest.raises(Reject, match="not this one"):
            result.get(timeout=10)
        still_alive(outcome_app)
        assert worker.lanes[0].settler.retried == 0
    assert result.state == "DEAD"
    ((info, _),) = rig.dead(outcome_app)
    assert info.reason == "rejected by the task: not this one"


def test_an_expired_task_is_not_run(rig: Any, outcome_app: TaskQ, pool: str) -> None:
    results = [
        outcome_app.tasks["fail"].apply_async(expires=0),
        outcome_app.tasks["fail"].apply_async(expires=datetime.now(UTC) - timedelta(hours=1)),
    ]
    lasting = outcome_app.tasks["alive"].apply_async(expires=60)
    with rig.work(outcome_app, pool):
        for result in results:
            with pytest.raises(TaskExpired, match="expired"):
                result.get(timeout=10)
            assert result.state == "EXPIRED"
        assert lasting.get(timeout=10) == "alive"
        rig.wait_empty(outcome_app)
    assert rig.dead(outcome_app) == []


def test_expiry_of_the_task_itself(rig: Any, outcome_app: TaskQ) -> None:
    @outcome_app.task(name="short_lived", expires=0)
    def short_lived() -> None:
        raise AssertionError("ran")

    results = [short_lived.delay(), short_lived.apply_async(priority=9)]
    assert outcome_app.tasks["short_lived"].apply_async(expires=60).id  # the call wins, and is not run here
    with rig.work(outcome_app):
        for result in results:
            with pytest.raises(TaskExpired):
                result.get(timeout=10)


def test_an_exception_whose_str_fails_is_still_a_failure(rig: Any, outcome_app: TaskQ, pool: str) -> None:
    class BrokenError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

        __repr__ = __str__

    @outcome_app.task(name="broken_str")
    def broken_str() -> None:
        raise BrokenError

    with rig.work(outcome_app, pool):
        with pytest.raises(TaskFailure, match="BrokenError"):
            broken_str.delay().get(timeout=10)
        still_alive(outcome_app)
