"""The eventlet pool: what ``taskq_lib_pool.green`` needs of eventlet."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

with warnings.catch_warnings():
    # Its authors advise against new use, and say so at every import: to be read, but never an error.
    warnings.simplefilter("default")
    import eventlet  # type: ignore[import-untyped]
    from eventlet import hubs, patcher, tpool

from greenlet import getcurrent  # type: ignore[import-untyped]

from taskq.spi import PoolConfig
from taskq_lib_pool.green import Backend, GreenPool, refuse_unpatched
from taskq_lib_pool.runs import Timer
from taskq_lib_pool.signals import handle_on_greenlets

T = TypeVar("T")


def patch_process() -> None:
    """Have the standard library yield where it waits."""
    if not patcher.is_monkey_patched("socket"):
        eventlet.monkey_patch()
        # eventlet leaves two objects for the main thread; a worker takes signals only where it believes to be on it.
        threading._main_thread = threading.current_thread()  # type: ignore[attr-defined]
        handle_on_greenlets(lambda: getcurrent() is hubs.get_hub().greenlet, eventlet.spawn)


def make_pool(config: PoolConfig) -> GreenPool:
    """Make the pool. Raises ConfigError."""
    if not (patcher.is_monkey_patched("socket") and patcher.is_monkey_patched("thread")):
        refuse_unpatched("eventlet", "import eventlet; eventlet.monkey_patch()")
    return GreenPool(config, EventletBackend())


class EventletBackend(Backend):
    """eventlet."""

    name = "eventlet"

    def current(self) -> Any:
        return getcurrent()

    def spawn(self, function: Callable[[], None]) -> Any:
        return eventlet.spawn(function)

    def later(self, seconds: float, function: Callable[..., Any], *arguments: Any) -> Timer:
        timer: Timer = hubs.get_hub().schedule_call_global(seconds, function, *arguments)
        return timer

    def pause(self) -> None:
        eventlet.sleep(0)

    def in_thread(self, function: Callable[[], T]) -> T:
        result: T = tpool.execute(function)
        return result
