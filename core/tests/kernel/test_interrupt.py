"""``Runtime.interrupt``: an exception out of a signal handler ends the task, never the event loop around it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from taskq import TaskQ, envelope
from taskq.errors import SoftTimeLimitExceeded
from taskq.message import Job
from taskq.runtime import TaskRuntime

LATE = SoftTimeLimitExceeded("too late")


def job(app: TaskQ, name: str) -> Job:
    payload = envelope.encode(envelope.Header("1", name, "json", 0, 0.0, None, None), b"[[],{}]")
    header, body = envelope.decode(payload)
    return Job(1, payload, name, "default", 1, body, header, None)


@pytest.fixture
def began() -> list[str]:
    return []


@pytest.fixture
def runtime(app: TaskQ, began: list[str]) -> TaskRuntime:
    @app.task(name="coroutine")
    async def coroutine() -> None:
        began.append("coroutine")
        await asyncio.sleep(0)

    return TaskRuntime(app, "w")


def test_a_loop_that_is_being_set_up_is_left_alone(
    app: TaskQ, runtime: TaskRuntime, began: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []

    class Interrupted(asyncio.Runner):
        def get_loop(self) -> Any:
            told.append(runtime.interrupt(LATE))
            return super().get_loop()

    monkeypatch.setattr(asyncio, "Runner", Interrupted)
    outcome = runtime.execute(job(app, "coroutine"))
    assert told == [False]
    assert (outcome.state, began) == ("SUCCESS", ["coroutine"])
    runtime.close_loops()


def test_a_task_that_has_not_begun_is_cancelled(app: TaskQ, runtime: TaskRuntime, began: list[str]) -> None:
    """A signal handler may strike between the set-up of the loop and its first turn."""
    from taskq.runtime import _Coroutine

    real = _Coroutine.run

    def run(self: Any) -> Any:
        assert runtime.interrupt(LATE)
        return real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Coroutine, "run", run)
        outcome = runtime.execute(job(app, "coroutine"))
    assert (outcome.state, began) == ("FAILURE", [])
    assert "too late" in (outcome.reason or "")
    assert runtime.execute(job(app, "coroutine")).state == "SUCCESS"
    runtime.close_loops()


def test_where_nothing_runs(runtime: TaskRuntime) -> None:
    with pytest.raises(SoftTimeLimitExceeded):
        runtime.interrupt(LATE)
    assert runtime.interrupt(LATE, threading.get_ident()) is False
