"""Retries: which failures, how often, after how long, with which arguments; counted apart from deliveries."""

from __future__ import annotations

import random
from typing import Any

import pytest

from taskq import Retry, TaskFailure, TaskQ, current_request, envelope
from taskq.envelope import MAX_RETRIES, NOT_BEFORE, PARKED, Header
from taskq.errors import ConfigError


class FlakyError(Exception):
    pass


class WorseError(FlakyError):
    pass


@pytest.fixture
def runs() -> list[Any]:
    """What the tasks saw of each run."""
    return []


def test_a_task_is_not_retried_unless_it_says_so(rig: Any, app: TaskQ, runs: list[Any]) -> None:
    @app.task
    def once() -> None:
        runs.append(1)
        raise FlakyError

    rig_result = once.delay()
    rig.drain(app)
    assert (len(runs), rig_result.state) == (1, "FAILURE")


def test_retries_until_it_works(rig: Any, backend: str, pool: str, runs: list[Any]) -> None:
    app = rig.app(backend)

    @app.task(max_retries=5, retry_backoff=0)
    def third_time(x: int, *, y: int) -> int:
        request = current_request()
        runs.append((request.attempt, request.deliveries, request.id))
        if request.attempt < 2:
            raise FlakyError("not yet")
        return x + y

    with rig.work(app, pool) as worker:
        result = third_time.delay(1, y=2)
        assert result.get(timeout=10) == 3
        rig.wait_empty(app)
        assert worker.lanes[0].settler.retried == 2
    assert runs == [(0, 1, result.id), (1, 1, result.id), (2, 1, result.id)]  # each attempt is a message of its own
    assert rig.dead(app) == []


def test_gives_up_after_max_retries(rig: Any, backend: str, pool: str, runs: list[Any]) -> None:
    app = rig.app(backend)

    @app.task(max_retries=2, retry_backoff=0)
    def never_works() -> None:
        runs.append(1)
        raise FlakyError("always")

    with rig.work(app, pool):
        result = never_works.delay()
        with pytest.raises(FlakyError, match="always"):
            result.get(timeout=10)
        rig.wait_empty(app)
    assert len(runs) == 3
    ((info, _),) = rig.dead(app)
    assert (info.attempts, info.deliveries) == (2, 1)


def test_retry_on_and_never(rig: Any, app: TaskQ, runs: list[Any]) -> None:
    @app.task(retry_on=(FlakyError,), never=(WorseError,), max_retries=1, retry_backoff=0)
    def choosy(kind: str) -> None:
        runs.append(kind)
        raise {"flaky": FlakyError, "worse": WorseError, "other": ValueError}[kind]

    for kind in ("flaky", "worse", "other"):
        choosy.delay(kind)
    rig.drain(app)
    assert sorted(runs) == ["flaky", "flaky", "other", "worse"]


def test_retry_on_alone_takes_the_default_limit(rig: Any, runs: list[Any]) -> None:
    app = rig.app(max_retries=2, retry_backoff=0.0)

    @app.task(retry_on=(FlakyError,))
    def flaky() -> None:
        runs.append(1)
        raise FlakyError

    flaky.delay()
    rig.drain(app)
    assert len(runs) == 3


def test_the_call_overrides_max_retries(rig: Any, app: TaskQ, runs: list[Any]) -> None:
    @app.task(max_retries=3, retry_backoff=0)
    def flaky(name: str) -> None:
        runs.append(name)
        raise FlakyError

    flaky.apply_async(("none",), max_retries=0)
    flaky.apply_async(("one",), max_retries=1)
    rig.drain(app)
    assert sorted(runs) == ["none", "one", "one"]


def test_self_retry_with_new_arguments(rig: Any, backend: str, pool: str) -> None:
    app = rig.app(backend)

    @app.task(bind=True)
    def step(self: Any, left: int, *, seen: str = "") -> str:
        if left:
            raise self.retry(args=(left - 1,), kwargs={"seen": f"{seen}{left}"}, countdown=0)
        return seen

    with rig.work(app, pool):
        assert step.delay(3).get(timeout=10) == "321"


def test_self_retry_keeps_what_it_is_not_given(rig: Any, app: TaskQ) -> None:
    @app.task(bind=True)
    def step(self: Any, x: int, *, y: int = 0) -> tuple[int, int, int]:
        if self.request.attempt == 0:
            raise self.retry(kwargs={"y": 5}, countdown=0)
        return x, y, self.request.attempt

    with rig.work(app):
        assert step.delay(1).get(timeout=10) == [1, 5, 1]


def test_new_arguments_may_be_models_and_compressed(rig: Any) -> None:
    import msgspec

    class Point(msgspec.Struct):
        x: int
        note: str = ""

    app = rig.app(compressor="zlib", compress_above=100)

    def move(self: Any, point: Point) -> int:
        if self.request.attempt == 0:
            raise self.retry(args=(Point(point.x + 1, "far " * 100),), countdown=0)
        assert point.note.startswith("far")
        return point.x

    move.__annotations__ = {"point": Point, "return": int}
    task = app.task(bind=True)(move)
    with rig.work(app):
        assert task.delay(Point(1)).get(timeout=10) == 2


def test_a_retry_that_cannot_be_serialized_is_a_failure(rig: Any, app: TaskQ) -> None:
    @app.task(bind=True)
    def bad(self: Any, x: Any = None) -> None:
        raise self.retry(args=(object(),), countdown=0)

    result = bad.delay()
    rig.drain(app)
    assert result.state == "FAILURE"
    assert "object" in str(result.result)


def test_self_retry_gives_up_with_its_cause_or_says_so(rig: Any, app: TaskQ) -> None:
    @app.task(bind=True, max_retries=1)
    def with_cause(self: Any) -> None:
        raise self.retry(exc=FlakyError("the cause"), countdown=0)

    @app.task(bind=True, max_retries=1)
    def without(self: Any) -> None:
        raise self.retry(countdown=0)

    with rig.work(app):
        with pytest.raises(FlakyError, match="the cause"):
            with_cause.delay().get(timeout=10)
        with pytest.raises(TaskFailure, match="gave up after 1 retries"):
            without.delay().get(timeout=10)


def test_self_retry_may_change_the_limit(rig: Any, app: TaskQ, runs: list[Any]) -> None:
    @app.task(bind=True, max_retries=0)
    def stubborn(self: Any) -> int:
        runs.append(1)
        if len(runs) < 4:
            raise self.retry(countdown=0, max_retries=5)
        return len(runs)

    with rig.work(app):
        assert stubborn.delay().get(timeout=10) == 4


def test_raise_retry_works_without_self(rig: Any, app: TaskQ) -> None:
    @app.task
    def plain() -> int:
        if current_request().retries == 0:
            raise Retry(countdown=0)
        return current_request().retries

    with rig.work(app):
        assert plain.delay().get(timeout=10) == 1


def test_the_delay_is_kept_by_the_broker(rig: Any, app: TaskQ) -> None:
    @app.task(bind=True)
    def later(self: Any) -> None:
        raise self.retry(countdown=1000)

    result = later.delay()
    with rig.work(app):
        rig.eventually(lambda: rig.counts(app) == (0, 0, 1))
        rig.eventually(lambda: result.state == "RETRY")
    assert not result.ready()
    (peeked,) = app.transport.peek("default")  # type: ignore[attr-defined]
    assert 990 < peeked.delay <= 1000
    (header,) = rig.headers(app)
    assert header.attempt == 1
    assert header.get(NOT_BEFORE) > header.enqueued_at + 990


def test_the_state_while_it_waits_shows_the_failure(rig: Any, app: TaskQ) -> None:
    @app.task(max_retries=1, retry_backoff=500, retry_jitter=False)
    def slow_to_retry() -> None:
        raise FlakyError("first")

    result = slow_to_retry.delay()
    with rig.work(app):
        rig.eventually(lambda: result.state == "RETRY")
    assert "FlakyError: first" in (result.traceback or "")
    assert result.result is None


def test_backoff_doubles_up_to_its_limit(rig: Any, app: TaskQ) -> None:
    @app.task(max_retries=9, retry_backoff=2, retry_backoff_max=20, retry_jitter=False)
    def waits() -> None:
        raise FlakyError

    app.codec  # noqa: B018  the first send must not come before the worker's tasks
    delays = []
    for attempt in range(6):
        payload = envelope.encode(Header(f"w{attempt}", waits.name, "json", attempt, 0.0, ""), b"[[],{}]")
        rig.raw(app, payload)
    with rig.work(app):
        rig.eventually(lambda: rig.counts(app) == (0, 0, 6))
        delays = sorted(peeked.delay for peeked in app.transport.peek("default"))  # type: ignore[attr-defined]
    assert [round(d) for d in delays] == [2, 4, 8, 16, 20, 20]


def test_jitter_spreads_over_the_upper_half(rig: Any, app: TaskQ, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return 0.75

    monkeypatch.setattr(random, "uniform", uniform)

    @app.task(max_retries=1, retry_backoff=100)
    def jittery() -> None:
        raise FlakyError

    jittery.delay()
    with rig.work(app):
        rig.eventually(lambda: rig.counts(app) == (0, 0, 1))
        (peeked,) = app.transport.peek("default")  # type: ignore[attr-defined]
    assert drawn == [(0.5, 1.0)]
    assert 70 < peeked.delay <= 75


def test_a_retry_keeps_its_priority_headers_and_unknown_fields(rig: Any, app: TaskQ) -> None:
    @app.task(bind=True)
    def again(self: Any) -> None:
        raise self.retry(countdown=1000)

    extra = {"p": 8, "h": {"tenant": "blue"}, "zz": [1, {"of": "a later release"}], PARKED: 5.0, MAX_RETRIES: 7}
    rig.raw(app, envelope.encode(Header("keep", again.name, "json", 0, 123.0, "", extra), b"[[],{}]"))
    with rig.work(app):
        rig.eventually(lambda: rig.counts(app) == (0, 0, 1))
    (header,) = rig.headers(app)
    assert (header.id, header.attempt, header.enqueued_at, header.reply) == ("keep", 1, 123.0, "")
    kept = dict(header.extra)
    assert kept.pop(NOT_BEFORE) > 123.0
    # it is not parked any more: should another release not know it, the wait begins anew
    assert kept == {"p": 8, "h": {"tenant": "blue"}, "zz": [1, {"of": "a later release"}], MAX_RETRIES: 7}
    (peeked,) = app.transport.peek("default")  # type: ignore[attr-defined]
    assert peeked.priority == 8


@pytest.mark.parametrize(
    "options",
    [
        {"max_retries": -1},
        {"max_retries": "3"},
        {"max_retries": True},
        {"retry_backoff": -1},
        {"retry_backoff_max": "1m"},
        {"retry_on": (ValueError, "KeyError")},
        {"never": (object,)},
        {"throws": (5,)},
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(app: TaskQ, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="task odd: "):

        @app.task(name="odd", **options)
        def odd() -> None: ...
