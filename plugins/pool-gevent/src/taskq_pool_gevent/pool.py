"""The gevent pool: what ``taskq_lib_pool.green`` needs of gevent."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

import gevent  # type: ignore[import-untyped]
from gevent import monkey
from gevent.threadpool import ThreadPool  # type: ignore[import-untyped]

from taskq.spi import PoolConfig
from taskq_lib_pool.green import Backend, GreenPool, refuse_unpatched
from taskq_lib_pool.signals import handle_on_greenlets

T = TypeVar("T")


def patch_process() -> None:
    """Have the standard library yield where it waits, and psycopg2, where psycogreen is installed."""
    if not monkey.is_module_patched("socket"):
        monkey.patch_all()
        handle_on_greenlets(lambda: gevent.getcurrent() is gevent.get_hub(), gevent.spawn)
        try:
            psycogreen = import_module("psycogreen.gevent")
        except ImportError:
            return
        psycogreen.patch_psycopg()


def make_pool(config: PoolConfig) -> GreenPool:
    """Make the pool. Raises ConfigError."""
    if not (monkey.is_module_patched("socket") and monkey.is_module_patched("threading")):
        refuse_unpatched("gevent", "from gevent import monkey; monkey.patch_all()")
    return GreenPool(config, GeventBackend())


class _Timer:
    def __init__(self, seconds: float, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._timer = gevent.get_hub().loop.timer(seconds)
        self._call = function, arguments
        self._timer.start(self._fire, update=True)

    def _fire(self) -> None:
        self.cancel()
        function, arguments = self._call
        function(*arguments)

    def cancel(self) -> None:
        self._timer.stop()
        self._timer.close()


class GeventBackend(Backend):
    """gevent."""

    name = "gevent"

    def current(self) -> Any:
        return gevent.getcurrent()

    def spawn(self, function: Callable[[], None]) -> Any:
        return gevent.spawn(function)

    def later(self, seconds: float, function: Callable[..., Any], *arguments: Any) -> _Timer:
        return _Timer(seconds, function, arguments)

    def pause(self) -> None:
        gevent.sleep(0)

    def in_thread(self, function: Callable[[], T]) -> T:
        threads = ThreadPool(1)
        try:
            result: T = threads.apply(function)
            return result
        finally:
            threads.kill()
