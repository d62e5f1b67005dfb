"""The hot path's budget: how many function calls a message costs. A number that stays the same where time does not."""

from __future__ import annotations

import sys
from collections import Counter
from types import FrameType
from typing import Any

import pytest

from taskq.worker import inline
from taskq.worker.take import TakeEstimator

MESSAGES = 1000
BATCH = 250
BUDGET = {
    # results kept: (calls of Python functions, calls of C functions), per message drained from memory by the solo pool
    False: (6.20, 16.19),
    True: (9.20, 23.19),
}
ADVICE = """
A message costs {python:.2f} calls of Python functions and {c:.2f} of C functions; on record are {budget}.
The most frequent are
{top}
Does a change need more, say why in its commit and put the new numbers into BUDGET in {file};
does it need fewer, do the same.
They were recorded on CPython 3.11; later versions inline some calls and need fewer."""


class Calls:
    """Counts function calls of the thread that it profiles."""

    def __init__(self) -> None:
        self.python: Counter[str] = Counter()
        self.c: Counter[str] = Counter()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            code = frame.f_code
            self.python[f"{code.co_filename.rpartition('/src/')[2]}:{code.co_name}"] += 1
        elif event == "c_call":
            self.c[getattr(argument, "__qualname__", str(argument))] += 1


def drain(rig: Any, count: int, *, results: bool) -> Calls:
    """Count the calls of a worker's thread that drains no-op tasks and then stops."""
    app = rig.app()

    @app.task(name="noop", ignore_result=not results)
    def noop() -> None: ...

    app.task(name="stop", ignore_result=True)(lambda: worker.stop())
    app.send_many([noop.s() for _ in range(count)])
    app.tasks["stop"].delay()
    worker = app.worker(pool="solo")
    calls = Calls()
    sys.setprofile(calls)
    try:
        worker.run(signals=False)
    finally:
        sys.setprofile(None)
    assert worker.lanes[0].settler.ended == count + 1
    return calls


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of one size, whatever the machine's speed, settled on the thread whose calls are counted."""
    monkeypatch.setattr(TakeEstimator, "target", lambda self: BATCH)
    monkeypatch.setattr(inline, "SLICE", 3600.0)
    monkeypatch.setattr(inline, "_FLOOD", sys.maxsize)


def per_message(rig: Any, results: bool) -> Calls:
    """Return the calls for MESSAGES messages alone: what start and stop cost is the same in both drains."""
    some, more = drain(rig, MESSAGES, results=results), drain(rig, 2 * MESSAGES, results=results)
    more.python.subtract(some.python)
    more.c.subtract(some.c)
    return more


@pytest.mark.skipif(sys.getprofile() is not None or sys.gettrace() is not None, reason="a tracer adds calls of its own")
@pytest.mark.parametrize("results", [False, True], ids=["results off", "results kept"])
def test_calls_per_message(rig: Any, steady: None, results: bool) -> None:
    drain(rig, 10, results=results)  # imports and caches
    calls = per_message(rig, results)
    python, c = calls.python.total() / MESSAGES, calls.c.total() / MESSAGES
    top = "\n".join(
        f"    {kind:6} {count / MESSAGES:6.2f}  {name}"
        for kind, counter in (("Python", calls.python), ("C", calls.c))
        for name, count in counter.most_common(14)
    )
    budget = BUDGET[results]
    advice = ADVICE.format(python=python, c=c, budget=budget, top=top, file="core/tests/kernel/test_budget.py")
    print(advice)
    for measured, allowed in ((python, budget[0]), (c, budget[1])):
        assert measured <= allowed * 1.02, advice
        assert sys.version_info >= (3, 12) or measured >= allowed * 0.98, advice


def test_nothing_dear_is_called_per_message(rig: Any, steady: None) -> None:
    calls = per_message(rig, results=True)
    often = {name for name, count in (calls.python + calls.c).items() if count >= MESSAGES / 10}
    for word in ("pluggy", "hook", "logging", "isEnabledFor", "getattr", "iscoroutine", "inspect", "acquire", "Lock"):
        assert not [name for name in often if word in name], f"{word} is called per message: {sorted(often)}"
