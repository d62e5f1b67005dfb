"""Task classes and their resources, shared tasks, include and autodiscover, names."""

from __future__ import annotations

import functools
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from taskq import Task, TaskQ, current_app, shared_task
from taskq.errors import ConfigError, TaskDefinitionError, UnknownTask


class Connection:
    def __init__(self) -> None:
        self.open = True


class Stateful(Task[Any, Any]):
    name = "stateful"
    queue = "special"
    max_retries = 1
    retry_backoff = 0.0
    events: list[str]

    def process_started(self) -> None:
        self.connection = Connection()
        self.events.append("started")

    def process_stopping(self) -> None:
        self.connection.open = False
        self.events.append("stopping")

    def run(self, x: int) -> list[Any]:
        self.events.append("run")
        if x < 0:
            raise ValueError(x)
        return [x, id(self.connection), self.connection.open, self.request.id]

    def before_start(self, request: Any) -> None:
        self.events.append("before_start")

    def on_success(self, request: Any, result: Any) -> None:
        self.events.append("on_success")

    def on_failure(self, request: Any, error: BaseException) -> None:
        self.events.append(f"on_failure {error!r}")

    def on_retry(self, request: Any, retry: Any) -> None:
        self.events.append(f"on_retry {retry.exc!r}")

    def after_return(self, request: Any, result: Any, error: BaseException | None) -> None:
        self.events.append("after_return")


@pytest.fixture
def stateful(app: TaskQ) -> Any:
    task = app.register(Stateful)
    task.events = []  # type: ignore[attr-defined]
    return task


def test_a_resource_is_shared_by_all_runs_of_a_process(rig: Any, app: TaskQ, pool: str, stateful: Any) -> None:
    with rig.work(app, pool, concurrency=1):
        results = [stateful.delay(i).get(timeout=10) for i in range(5)]
    assert [r[0] for r in results] == list(range(5))
    assert len({r[1] for r in results}) == 1
    assert all(r[2] for r in results)
    assert len({r[3] for r in results}) == 5
    assert not stateful.connection.open
    assert stateful.events[0] == "started"
    assert stateful.events[-1] == "stopping"
    assert stateful.events.count("started") == 1


def test_the_hooks_of_a_run(rig: Any, app: TaskQ, stateful: Any) -> None:
    with rig.work(app):
        stateful.delay(1).get(timeout=10)
        with pytest.raises(ValueError, match="-1"):
            stateful.delay(-1).get(timeout=10)
    assert stateful.events == [
        "started",
        *("before_start", "run", "on_success", "after_return"),
        *("before_start", "run", "on_retry ValueError(-1)", "after_return"),
        *("before_start", "run", "on_failure ValueError(-1)", "after_return"),
        "stopping",
    ]


def test_class_attributes_are_the_options(rig: Any, app: TaskQ, stateful: Any) -> None:
    stateful.delay(1)
    assert rig.counts(app, "special") == (1, 0, 0)
    assert app.queue_names() == ["default", "special"]


def test_a_function_may_have_a_base(rig: Any, app: TaskQ) -> None:
    class WithHelper(Task[Any, Any]):
        def process_started(self) -> None:
            self.factor = 3

    @app.task(base=WithHelper, bind=True)
    def scaled(self: Any, x: int) -> int:
        return self.factor * x

    with rig.work(app):
        assert scaled.delay(2).get(timeout=10) == 6


def test_an_async_task_class(rig: Any, app: TaskQ, pool: str) -> None:
    class Adder(Task[Any, Any]):
        async def run(self, x: int, y: int) -> int:
            return x + y

    adder = app.register(Adder)
    assert adder.name.endswith("Adder")
    with rig.work(app, pool):
        assert adder.delay(1, 2).get(timeout=10) == 3


def test_a_class_without_run(app: TaskQ) -> None:
    class Empty(Task[Any, Any]):
        name = "empty"

    with pytest.raises(TaskDefinitionError, match="has no run method"):
        app.register(Empty)()


# ----------------------------------------------------------------------------------------------------------- names


def test_names(app: TaskQ) -> None:
    @app.task
    def local() -> None: ...

    assert local.name == f"{__name__}.test_names.<locals>.local"
    assert app.task(name="own.name")(lambda: None).name == "own.name"
    assert repr(app.tasks["own.name"]) == "<Task own.name>"


def test_two_tasks_of_one_name(app: TaskQ) -> None:
    app.task(name="twice")(lambda: None)
    with pytest.raises(TaskDefinitionError, match="two tasks are named 'twice'"):
        app.task(name="twice")(lambda: None)


def test_an_unknown_name_is_answered_with_near_ones(app: TaskQ) -> None:
    app.task(name="reports.daily")(lambda: None)
    with pytest.raises(UnknownTask, match=r"did you mean reports\.daily\?"):
        app.find_task("reports.dialy")


def test_an_unknown_option_is_answered_with_a_near_one(app: TaskQ) -> None:
    with pytest.raises(ConfigError, match="unknown task option 'max_retry'; did you mean 'max_retries'"):
        app.task(max_retry=3)
    with pytest.raises(ConfigError, match="unknown task option 'max_retry'"):
        shared_task(max_retry=3)


@pytest.mark.parametrize("options", [{"delivery": "exactly_once"}, {"priority": 10}, {"priority": "high"}], ids=str)
def test_option_values(app: TaskQ, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="task odd: "):
        app.task(name="odd", **options)(lambda: None)


def test_what_can_be_a_task(rig: Any, app: TaskQ) -> None:
    class Callable:
        def __call__(self, x: int) -> int:
            return x + 1

    class Service:
        def method(self, x: int) -> int:
            return x + 2

    def base(x: int, y: int) -> int:
        return x + y

    @functools.wraps(base)
    def wrapped(*args: Any, **kwargs: Any) -> int:
        return base(*args, **kwargs)

    tasks = {
        app.task(name="object")(Callable()): ((1,), 2),
        app.task(name="lambda")(lambda x: x): ((1,), 1),
        app.task(name="partial")(functools.partial(base, 10)): ((1,), 11),
        app.task(name="wrapped")(wrapped): ((1, 2), 3),
        app.task(Service().method): ((1,), 3),
        app.task(name="builtin")(divmod): ((7, 2), [3, 1]),
    }
    assert any(t.name.endswith("Service.method") for t in tasks)
    with rig.work(app):
        for task, (args, value) in tasks.items():
            assert task.delay(*args).get(timeout=10) == value


def test_what_cannot(app: TaskQ) -> None:
    def generator() -> Any:
        yield 1

    async def agenerator() -> Any:
        yield 1

    for fn in (generator, agenerator):
        with pytest.raises(TaskDefinitionError, match="generator"):
            app.task(fn)
    with pytest.raises(TaskDefinitionError, match="not callable"):
        app.task(name="five")(5)  # type: ignore[call-overload]
    with pytest.raises(TaskDefinitionError, match="takes no first parameter"):
        app.task(bind=True, name="unbound")(lambda: None)


def test_a_task_is_still_its_function(app: TaskQ) -> None:
    @app.task
    def documented(x: int) -> int:
        """Say what it does."""
        return x

    assert documented(5) == 5
    assert documented.__doc__ == "Say what it does."
    assert documented.__name__ == "documented"  # type: ignore[attr-defined]
    assert documented.__module__ == __name__


# ---------------------------------------------------------------------------------------------------- shared tasks


def test_a_shared_task_belongs_to_every_application(rig: Any) -> None:
    before = rig.app()

    @shared_task(name="library.task")
    def task(x: int) -> int:
        return x + 1

    after = rig.app()
    assert "library.task" in before.tasks
    assert "library.task" in after.tasks
    assert current_app() is after
    assert task(1) == 2
    assert task.delay(1).id
    assert rig.counts(after) == (1, 0, 0)
    with rig.work(after):
        assert task.delay(5).get(timeout=10) == 6
    assert repr(task) == "<SharedTask library.task>"
    assert task.name == "library.task"


def test_shared_tasks_keep_their_base(rig: Any) -> None:
    class Base(Task[Any, Any]):
        marker = "base"

    @shared_task(base=Base, bind=True)
    def task(self: Any) -> str:
        return str(self.marker)

    app = rig.app()
    with rig.work(app):
        assert task.delay().get(timeout=10) == "base"


def test_without_an_application_a_shared_task_says_so(rig: Any) -> None:
    @shared_task
    def task() -> None: ...

    with pytest.raises(ConfigError, match="no application has been made yet"):
        task.delay()


def test_a_clash_of_shared_names_is_said_and_the_others_stay(rig: Any) -> None:
    app = rig.app()
    app.task(name="a")(lambda: None)
    shared_task(name="a")(lambda: None)
    shared_task(name="b")(lambda: None)
    with pytest.raises(TaskDefinitionError, match="two tasks are named 'a'"):
        app.tasks  # noqa: B018
    with pytest.raises(TaskDefinitionError, match="two tasks are named 'a'"):
        app.tasks  # noqa: B018  it stays an error, whoever asks next


# ------------------------------------------------------------------------------------------ include and autodiscover


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if name.split(".")[0].startswith("pkg_"):
            del sys.modules[name]


TASKS = "from taskq import shared_task\n@shared_task(name='{0}')\ndef task(): return '{0}'\n"


def test_include(rig: Any, site: Path) -> None:
    (site / "pkg_included.py").write_text(TASKS.format("included"))
    app = rig.app(include=["pkg_included"])
    with rig.work(app):
        assert app.send_task("included").get(timeout=10) == "included"


def test_an_included_module_may_add_middleware(rig: Any, site: Path) -> None:
    (site / "pkg_middle.py").write_text(
        TASKS.format("included")
        + "from taskq import Middleware, current_app\nclass Loud(Middleware):\n"
        + "    def around_run(self, request, call_next): return call_next(request).upper()\n"
        + "current_app().add_middleware(Loud())\n"
    )
    app = rig.app(include=["pkg_middle"])
    with rig.work(app):
        assert app.send_task("included").get(timeout=10) == "INCLUDED"


def test_include_of_what_cannot_be_imported(rig: Any, site: Path) -> None:
    (site / "pkg_broken.py").write_text("1 / 0")
    for module, why in {"pkg_broken": "division by zero", "pkg_missing": "No module named"}.items():
        with pytest.raises(ConfigError, match=f"include: module '{module}' cannot be imported: .*{why}"):
            rig.app(include=[module]).import_tasks()


def test_autodiscover(rig: Any, site: Path) -> None:
    for name, files in {"pkg_a": ["tasks"], "pkg_b": [], "pkg_c": ["jobs"]}.items():
        (site / name).mkdir()
        (site / name / "__init__.py").write_text("")
        for file in files:
            (site / name / f"{file}.py").write_text(TASKS.format(f"{name}.{file}"))
    app = rig.app()
    assert app.autodiscover(["pkg_a", "pkg_b", "pkg_c"]) == ["pkg_a.tasks"]
    assert app.autodiscover(["pkg_c"], "jobs") == ["pkg_c.jobs"]
    assert set(app.tasks) == {"pkg_a.tasks", "pkg_c.jobs"}
    with pytest.raises(ConfigError, match=r"autodiscover: 'pkg_missing\.tasks' cannot be imported"):
        app.autodiscover(["pkg_missing"])


# ------------------------------------------------------------------------------------------------- plugins are told


def test_each_task_is_told_to_plugins_once(rig: Any, app: TaskQ) -> None:
    from taskq.spi import hookimpl

    told: list[str] = []

    class Plugin:
        @hookimpl
        def taskq_task_declared(self, task: Any) -> None:
            told.append(task.name)

    app.task(name="early")(lambda: None)
    app.plugins.register(Plugin(), "counter")
    app.task(name="late")(lambda: None)
    shared_task(name="shared")(lambda: None)
    with rig.work(app):
        app.tasks["early"].delay().get(timeout=10)
    app.task(name="latest")(lambda: None)
    assert sorted(told) == ["early", "late", "latest", "shared"]


def test_declaring_from_many_threads(rig: Any, app: TaskQ) -> None:
    for i in range(50):
        shared_task(name=f"shared{i}")(lambda: None)
    seen: list[int] = []
    threads = [threading.Thread(target=lambda: seen.append(len(app.tasks))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [50] * 8
