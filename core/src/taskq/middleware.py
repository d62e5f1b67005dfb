"""Middleware: code around every send and every run, composed once per task, not per message.

Override only what is needed: what is not overridden is not called. ``around_run`` of an ``async def`` task is
``around_run_async``; a middleware that overrides only one of the two is refused for tasks of the other kind.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from taskq.context import Request
from taskq.errors import ConfigError

RunCall = Callable[[Request], Any]
AsyncRunCall = Callable[[Request], Awaitable[Any]]


class SendRequest:
    """A call about to be sent; a middleware may change ``args``, ``kwargs``, ``headers`` and ``options``."""

    __slots__ = ("args", "headers", "id", "kwargs", "options", "task")

    def __init__(
        self, task: str, task_id: str, args: Any, kwargs: Any, headers: dict[str, Any], options: dict[str, Any]
    ) -> None:
        self.task = task
        self.id = task_id
        self.args = args
        self.kwargs = kwargs
        self.headers = headers
        self.options = options


class Middleware:
    """Base class; every method may be overridden."""

    def before_send(self, request: SendRequest) -> None:
        """Look at or change a call before it is encoded; an exception here stops the send."""

    def before_run(self, request: Request) -> None:
        """Run before the task; an exception here is the task's failure."""

    def after_run(self, request: Request, result: Any, error: BaseException | None) -> None:
        """Run after the task, whatever its end; an exception here is the task's failure."""

    def around_run(self, request: Request, call_next: RunCall) -> Any:
        """Run around a ``def`` task: return ``call_next(request)``, or something else."""
        return call_next(request)

    async def around_run_async(self, request: Request, call_next: AsyncRunCall) -> Any:
        """Run around an ``async def`` task."""
        return await call_next(request)


def _overrides(middleware: Middleware, name: str) -> bool:
    return getattr(type(middleware), name) is not getattr(Middleware, name)


def compose_run(core: RunCall, middlewares: Sequence[Middleware]) -> RunCall:
    """Return the call chain of a ``def`` task, outermost middleware first.

    Raises:
        ConfigError: a middleware handles only ``async def`` tasks.
    """
    chain = core
    for mw in reversed(middlewares):
        if _overrides(mw, "around_run"):
            chain = _around(mw.around_run, chain)
        elif _overrides(mw, "around_run_async"):
            raise ConfigError(
                f"middleware {type(mw).__name__} overrides around_run_async only; add around_run for def tasks"
            )
        if _overrides(mw, "before_run") or _overrides(mw, "after_run"):
            chain = _before_after(mw, chain)
    return chain


def compose_run_async(core: AsyncRunCall, middlewares: Sequence[Middleware]) -> AsyncRunCall:
    """Return the call chain of an ``async def`` task, outermost middleware first.

    Raises:
        ConfigError: a middleware handles only ``def`` tasks.
    """
    chain = core
    for mw in reversed(middlewares):
        if _overrides(mw, "around_run_async"):
            chain = _around_async(mw.around_run_async, chain)
        elif _overrides(mw, "around_run"):
            raise ConfigError(
                f"middleware {type(mw).__name__} overrides around_run only; add around_run_async for async def tasks"
            )
        if _overrides(mw, "before_run") or _overrides(mw, "after_run"):
            chain = _before_after_async(mw, chain)
    return chain


def send_hooks(middlewares: Sequence[Middleware]) -> tuple[Callable[[SendRequest], None], ...]:
    """Return the overridden ``before_send`` methods in order."""
    return tuple(mw.before_send for mw in middlewares if _overrides(mw, "before_send"))


def _around(wrap: Callable[[Request, RunCall], Any], call_next: RunCall) -> RunCall:
    return lambda request: wrap(request, call_next)


def _around_async(wrap: Callable[[Request, AsyncRunCall], Awaitable[Any]], call_next: AsyncRunCall) -> AsyncRunCall:
    return lambda request: wrap(request, call_next)


def _before_after(mw: Middleware, call_next: RunCall) -> RunCall:
    before, after = mw.before_run, mw.after_run

    def call(request: Request) -> Any:
        before(request)
        try:
            result = call_next(request)
        except BaseException as error:
            after(request, None, error)
            raise
        after(request, result, None)
        return result

    return call


def _before_after_async(mw: Middleware, call_next: AsyncRunCall) -> AsyncRunCall:
    before, after = mw.before_run, mw.after_run

    async def call(request: Request) -> Any:
        before(request)
        try:
            result = await call_next(request)
        except BaseException as error:
            after(request, None, error)
            raise
        after(request, result, None)
        return result

    return call
