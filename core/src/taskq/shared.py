"""Tasks of libraries: declared without an application, bound to every application of the process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from taskq.errors import ConfigError
from taskq.task import check_options, task_name

if TYPE_CHECKING:
    from taskq.app import TaskQ

declared: list[tuple[Callable[..., Any], dict[str, Any]]] = []
"""Every shared task of the process with its options, in order of declaration; applications take them from here."""

_current: TaskQ | None = None


def set_current(app: TaskQ) -> None:
    """Make an application the one that shared tasks are sent through."""
    global _current
    _current = app


def current_app() -> TaskQ:
    """Return the application made last in this process.

    Raises:
        ConfigError: there is none.
    """
    if _current is None:
        raise ConfigError("no application has been made yet; make one with TaskQ(…) first")
    return _current


class SharedTask:
    """A task of whatever application is current; made by ``@shared_task``."""

    def __init__(self, fn: Callable[..., Any], options: Mapping[str, Any]) -> None:
        self.__wrapped__ = fn
        self.__doc__ = fn.__doc__
        self.__module__ = fn.__module__
        self.name = options.get("name") or task_name(fn)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return current_app().tasks[self.name](*args, **kwargs)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return getattr(current_app().tasks[self.name], attribute)

    def __repr__(self) -> str:
        return f"<SharedTask {self.name}>"


def shared_task(fn: Any = None, /, **options: Any) -> Any:
    """Make a function a task of every application of the process, for libraries; options as ``@app.task``.

    Raises:
        ConfigError: an unknown option.
    """
    check_options({k: v for k, v in options.items() if k != "base"})

    def decorate(function: Callable[..., Any]) -> SharedTask:
        declared.append((function, options))
        return SharedTask(function, options)

    return decorate if fn is None else decorate(fn)
