"""What is settled with one call, what is given back at the end, and how long a coroutine may resist."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from taskq import runtime
from taskq.message import ACK, DONE, FINISHED, RELEASED, Delivery, Job, Outcome
from taskq.spi.pool import Finished
from taskq.worker.pooled import PoolEngine
from taskq.worker.settler import Settler


def job(key: int) -> Job:
    made = Job(key, b"", "t", "q", 1)
    made.delivery = Delivery(b"", f"receipt {key}", "q")
    return made


@pytest.fixture
def calls() -> list[list[tuple[str, Any]]]:
    return []


@pytest.fixture
def settler(calls: list[Any]) -> Settler:
    def settle(settlements: Any) -> tuple[()]:
        calls.append([(s.receipt, s.kind) for s in settlements])
        return ()

    return Settler(
        transport=SimpleNamespace(capabilities=SimpleNamespace(max_delay_s=None, release_delay=True)),  # type: ignore[arg-type]
        consumer=SimpleNamespace(settle=settle), store=None, committer=None, events=(), result_ttl=60.0, worker="w",  # type: ignore[arg-type]
    )  # fmt: skip


def end(settler: Settler, *keys: int, kind: int | None = None) -> None:
    outcome = FINISHED if kind is None else Outcome(kind, "QUEUED", terminal=False)
    settler.finish([job(key) for key in keys], [Finished(key, outcome, 0.0) for key in keys])


def test_ends_that_wait_are_settled_with_one_call(settler: Settler, calls: list[Any]) -> None:
    end(settler, 1, 2)
    end(settler, 3)
    end(settler, 4, kind=DONE)
    end(settler, 5)
    assert settler.pump() == 0.0
    (call,) = calls
    assert sorted(call) == [(f"receipt {key}", ACK) for key in range(1, 6)]
    assert not settler.waiting


def test_what_goes_back_keeps_to_itself(settler: Settler, calls: list[Any]) -> None:
    """Later hand-backs go in front of earlier ones, so they must not be put behind them in one call."""
    end(settler, 1)
    end(settler, 2, kind=RELEASED)
    settler.release([job(3), job(4)])
    settler.release([job(5)])
    end(settler, 6)
    assert settler.pump() == 0.0
    assert [[receipt for receipt, _ in call] for call in calls] == [
        ["receipt 1"], ["receipt 2"], ["receipt 3", "receipt 4"], ["receipt 5"], ["receipt 6"],
    ]  # fmt: skip


def test_a_flood_is_settled_in_parts(settler: Settler, calls: list[Any]) -> None:
    for first in range(0, 2000, 100):
        end(settler, *range(first, first + 100))
    assert settler.pump() == 0.0
    assert [receipt for call in calls for receipt, _ in call] == [f"receipt {key}" for key in range(2000)]
    assert 1 < len(calls) < 20
    assert max(map(len, calls)) < 400


def test_a_loss_at_the_end_hands_back_what_nobody_would_submit() -> None:
    engine = object.__new__(PoolEngine)
    given: list[int] = []
    one, two = job(1), job(2)
    vars(engine).update(
        held={2: two}, local=deque(), careful=deque(), suspects=deque(), _moving=threading.Lock(),
        pool=SimpleNamespace(take_back=lambda limit: [2, 1]),
        lane=SimpleNamespace(worker=SimpleNamespace(stopping=True)),
        give_back=lambda jobs: given.extend(j.key for j in jobs),
    )  # fmt: skip
    assert engine.drop_unstarted(one)
    assert given == [2]
    assert not engine.local


def test_a_coroutine_that_resists_its_end_is_left(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(runtime, "_CLEAN_UP", 0.1)
    over: list[bool] = []

    async def resists() -> None:
        asyncio.get_running_loop().call_soon(sys.exit)  # goes through the loop, and leaves the coroutine behind
        while not over:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                pass

    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        with caplog.at_level(logging.ERROR, "taskq"), pytest.raises(SystemExit):
            runtime._Coroutine(loop, loop.create_task(resists())).run()
        over.append(True)
    assert "does not end although it was cancelled" in caplog.text
