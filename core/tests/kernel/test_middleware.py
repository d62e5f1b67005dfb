"""Middleware: the order, each hook, both kinds of tasks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from taskq import Middleware, TaskQ, current_request
from taskq.errors import ConfigError


class Tracer(Middleware):
    """Notes every call."""

    def __init__(self, name: str, seen: list[str]) -> None:
        self.name, self.seen = name, seen

    def before_run(self, request: Any) -> None:
        self.seen.append(f"{self.name}.before")

    def after_run(self, request: Any, result: Any, error: BaseException | None) -> None:
        self.seen.append(f"{self.name}.after({result!r}, {error!r})")

    def around_run(self, request: Any, call_next: Any) -> Any:
        self.seen.append(f"{self.name}.enter")
        try:
            return call_next(request)
        finally:
            self.seen.append(f"{self.name}.leave")

    async def around_run_async(self, request: Any, call_next: Any) -> Any:
        self.seen.append(f"{self.name}.enter")
        try:
            return await call_next(request)
        finally:
            self.seen.append(f"{self.name}.leave")


@pytest.fixture
def seen() -> list[str]:
    return []


def declare(app: TaskQ, seen: list[str], kind: str) -> Any:
    if kind == "def":

        @app.task(name="work")
        def work(x: int) -> int:
            seen.append("run")
            return 10 // x
    else:

        @app.task(name="work")
        async def work(x: int) -> int:
            await asyncio.sleep(0)
            seen.append("run")
            return 10 // x

    return work


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_the_first_added_is_the_outermost(rig: Any, app: TaskQ, pool: str, kind: str, seen: list[str]) -> None:
    app.add_middleware(Tracer("a", seen), Tracer("b", seen))
    work = declare(app, seen, kind)
    with rig.work(app, pool):
        assert work.delay(5).get(timeout=10) == 2
    assert seen == [
        "a.before", "a.enter", "b.before", "b.enter", "run", "b.leave", "b.after(2, None)", "a.leave",
        "a.after(2, None)",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_an_error_passes_through_all(rig: Any, app: TaskQ, kind: str, seen: list[str]) -> None:
    app.add_middleware(Tracer("a", seen), Tracer("b", seen))
    work = declare(app, seen, kind)
    with rig.work(app), pytest.raises(ZeroDivisionError):
        work.delay(0).get(timeout=10)
    error = "ZeroDivisionError('integer division or modulo by zero')"
    assert seen[4:] == ["run", "b.leave", f"b.after(None, {error})", "a.leave", f"a.after(None, {error})"]


def test_only_what_is_overridden_is_called(rig: Any, app: TaskQ, seen: list[str]) -> None:
    class Before(Middleware):
        def before_run(self, request: Any) -> None:
            seen.append(f"before {request.name} {request.args} {request.id == current_request().id}")

    class After(Middleware):
        def after_run(self, request: Any, result: Any, error: BaseException | None) -> None:
            seen.append(f"after {result}")

    app.add_middleware(Before(), After())
    work = declare(app, seen, "def")
    awork = app.task(name="awork")(_double)
    with rig.work(app):
        work.delay(1).get(timeout=10)
        awork.delay(4).get(timeout=10)
    assert seen == ["before work [1] True", "run", "after 10", "before awork [4] True", "after 8"]


async def _double(x: int) -> int:
    return 2 * x


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_an_exception_of_a_hook_is_the_tasks_failure(rig: Any, app: TaskQ, kind: str, seen: list[str]) -> None:
    class Strict(Middleware):
        def before_run(self, request: Any) -> None:
            if request.args == [1]:
                raise PermissionError("not you")

        def after_run(self, request: Any, result: Any, error: BaseException | None) -> None:
            if result == 5:
                raise RuntimeError("not five")

    app.add_middleware(Strict())
    work = declare(app, seen, kind)
    with rig.work(app):
        with pytest.raises(PermissionError, match="not you"):
            work.delay(1).get(timeout=10)
        assert seen == []
        with pytest.raises(RuntimeError, match="not five"):
            work.delay(2).get(timeout=10)
        assert work.delay(3).get(timeout=10) == 3


def test_around_may_replace_the_run(rig: Any, app: TaskQ, seen: list[str]) -> None:
    class Cached(Middleware):
        def around_run(self, request: Any, call_next: Any) -> Any:
            return "cached" if request.args == [1] else call_next(request)

    app.add_middleware(Cached())
    work = declare(app, seen, "def")
    with rig.work(app):
        assert work.delay(1).get(timeout=10) == "cached"
        assert work.delay(2).get(timeout=10) == 5
    assert seen == ["run"]


def test_a_middleware_of_one_kind_is_refused_for_tasks_of_the_other(rig: Any, app: TaskQ, seen: list[str]) -> None:
    class OnlySync(Middleware):
        def around_run(self, request: Any, call_next: Any) -> Any:
            return call_next(request)

    app.add_middleware(OnlySync())
    declare(app, seen, "async def")
    worker = app.worker(pool="solo")
    with pytest.raises(ConfigError, match="OnlySync overrides around_run only; add around_run_async"):
        worker.start()


def test_before_send_may_change_the_call_or_stop_it(rig: Any, app: TaskQ) -> None:
    class Tenant(Middleware):
        def before_send(self, request: Any) -> None:
            if request.task == "forbidden":
                raise PermissionError("not from here")
            request.headers["tenant"] = "blue"
            request.args = (*request.args, 5)
            request.options["priority"] = 9

    @app.task(name="work")
    def work(x: int, y: int) -> list[Any]:
        request = current_request()
        return [x, y, request.headers, request.priority]

    app.task(name="forbidden")(lambda: None)
    app.add_middleware(Tenant())
    with rig.work(app):
        for result in (
            work.delay(1),
            work.apply_async((1,), headers={"own": "1"}),
            *app.send_many([work.s(1), work.s(1).set(countdown=0)]),
            app.send_task("work", (1,)),
        ):
            headers = {"tenant": "blue"} | ({"own": "1"} if result is None else {})
            x, y, sent, priority = result.get(timeout=10)
            assert (x, y, sent | headers, priority) == (1, 5, sent, 9)
    with pytest.raises(PermissionError, match="not from here"):
        app.tasks["forbidden"].delay()
    assert rig.counts(app) == (0, 0, 0)


def test_middlewares_are_fixed_at_the_first_send(rig: Any, app: TaskQ, seen: list[str]) -> None:
    work = declare(app, seen, "def")
    app.add_middleware(Tracer("a", seen))
    work.delay(1)
    with pytest.raises(ConfigError, match="before the first send"):
        app.add_middleware(Tracer("b", seen))


def test_a_plugins_middlewares_stand_inside_the_applications_own(rig: Any, app: TaskQ, seen: list[str]) -> None:
    from taskq.spi import hookimpl

    class Plugin:
        @hookimpl
        def taskq_middlewares(self, app: TaskQ) -> list[Middleware]:
            return [Tracer("plugin", seen)]

    app.plugins.register(Plugin(), "tracing")
    app.add_middleware(Tracer("own", seen))
    work = declare(app, seen, "def")
    with rig.work(app):
        work.delay(1).get(timeout=10)
    assert seen[:5] == ["own.before", "own.enter", "plugin.before", "plugin.enter", "run"]
