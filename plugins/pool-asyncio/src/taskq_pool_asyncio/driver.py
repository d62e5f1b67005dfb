"""The asyncio tasks that jobs run in.

A coroutine needs a ``asyncio.Task`` around it, or ``asyncio.timeout``, ``TaskGroup`` and ``current_task()`` break, and
making one costs more than a short job. So jobs that never wait share one, one after the other; a job that waits keeps
the one it is in, which ends with it. Nobody can tell the difference: a driver that somebody took a liking to (a
callback, a cancellation, a reference kept, a key of a dictionary) is not used again.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from contextvars import Context
from sys import getrefcount
from typing import Any

from taskq.spi import Outcome
from taskq_lib_pool.runs import Run


class Driver(asyncio.Task[None]):
    """A task that runs jobs."""

    spoilt = False
    """Whether a job did something to this task that the next one could notice."""

    def cancel(self, msg: Any | None = None) -> bool:
        self.spoilt = True
        return super().cancel(msg)

    def add_done_callback(self, fn: Callable[[Any], object], /, *, context: Context | None = None) -> None:
        self.spoilt = True
        super().add_done_callback(fn, context=context)

    def __hash__(self) -> int:
        self.spoilt = True
        return super().__hash__()

    def references(self) -> int:
        """Return a number that grows when somebody keeps a reference to this task."""
        return getrefcount(self)


class Waiting:
    """What a job that waits is struck by, and found by."""

    __slots__ = ("coroutine", "driver")

    def __init__(self, driver: Driver, coroutine: Coroutine[Any, Any, Outcome]) -> None:
        self.driver = driver
        self.coroutine = coroutine


@types.coroutine
def steps(lane: Any, run: Run[Waiting], context: Context, waiting: Any) -> Generator[Any, Any, Outcome]:
    """Go on with a job that waits for ``waiting``, in its own context."""
    job, coroutine = run.job, run.handle.coroutine
    send, throw = coroutine.send, coroutine.throw
    try:
        while True:
            try:
                value = yield waiting
            except GeneratorExit:  # its loop has ended
                with suppress(RuntimeError):  # it resists that, too
                    coroutine.close()
                raise
            except BaseException as error:
                lane.current = job
                waiting = context.run(throw, error)
            else:
                lane.current = job
                waiting = context.run(send, value)
            lane.current = None
    except StopIteration as stop:
        outcome: Outcome = stop.value
        return outcome
    finally:
        lane.current = None
