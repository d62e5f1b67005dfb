"""Tasks: a function with a name, options and ways to send it."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, ParamSpec, TypeVar, cast

from taskq.canvas import Signature
from taskq.context import Request, current_request
from taskq.envelope import MAX_RETRIES, Header
from taskq.errors import (
    ConfigError,
    NotInTask,
    Reject,
    Retry,
    TaskArgumentsError,
    TaskDefinitionError,
    TaskInterrupted,
)
from taskq.middleware import Middleware
from taskq.retry import RetryPolicy
from taskq.signature import Models, arguments_error, make_check

if TYPE_CHECKING:
    from taskq.app import TaskQ
    from taskq.result import AsyncResult

P = ParamSpec("P")
R = TypeVar("R")

Delivery = Literal["at_least_once", "at_most_once"]

TASK_OPTIONS = (
    "name", "queue", "bind", "ignore_result", "delivery", "max_retries", "retry_on", "never", "retry_backoff",
    "retry_backoff_max", "retry_jitter", "priority", "expires", "dead_letter", "throws", "soft_time_limit",
    "time_limit", "track_started", "models", "pool",
)  # fmt: skip
"""Names accepted by ``@app.task`` and as class attributes of a task class."""


class Task(Generic[P, R]):
    """One task of one application.

    Made by ``@app.task``, or by subclassing with a ``run`` method and ``app.register(MyTask)``. A subclass may set the
    options as class attributes and override the hooks; one instance lives per process, so what ``process_started``
    puts on ``self`` is shared by all runs of that process.
    """

    name: str = ""
    queue: str | None = None
    bind: bool = False
    ignore_result: bool | None = None
    delivery: Delivery | None = None
    max_retries: int | None = None
    retry_on: Sequence[type[BaseException]] | None = None
    never: Sequence[type[BaseException]] = ()
    retry_backoff: float | None = None
    retry_backoff_max: float | None = None
    retry_jitter: bool | None = None
    priority: int | None = None
    expires: float | None = None
    dead_letter: bool = True
    throws: tuple[type[BaseException], ...] = ()
    soft_time_limit: float | None = None
    time_limit: float | None = None
    track_started: bool | None = None
    models: Any = None
    pool: str | None = None

    app: TaskQ
    _hooks: ClassVar[tuple[str, ...]] = ("before_start", "on_success", "on_failure", "on_retry", "after_return")

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Do the work; override in a task class."""
        raise TaskDefinitionError(f"task class {type(self).__name__} has no run method")

    # ------------------------------------------------------------------------------------------------ definition

    @classmethod
    def from_function(cls, app: TaskQ, fn: Callable[..., Any], options: Mapping[str, Any]) -> Task[Any, Any]:
        """Return a task that runs a function."""
        task = cls()
        for key, value in options.items():
            setattr(task, key, value)
        task._define(app, fn, bound=task.bind, inject_self=task.bind)
        task.__doc__ = fn.__doc__
        task.__wrapped__ = fn  # type: ignore[attr-defined]
        task.__module__ = fn.__module__
        task.__name__ = getattr(fn, "__name__", type(fn).__name__)  # type: ignore[attr-defined]
        task.__qualname__ = getattr(fn, "__qualname__", task.__name__)  # type: ignore[attr-defined]
        return task

    @classmethod
    def from_class(cls, app: TaskQ) -> Task[Any, Any]:
        """Return the one instance of a task class."""
        task = cls()
        task._define(app, task.run, bound=False, inject_self=False)
        return task

    def _define(self, app: TaskQ, fn: Callable[..., Any], *, bound: bool, inject_self: bool) -> None:
        if not callable(fn):
            raise TaskDefinitionError(f"{fn!r} is not callable, so it cannot be a task")
        self.app = app
        self._fn = fn
        self.name = self.name or task_name(type(self) if getattr(fn, "__self__", None) is self else fn)
        self.is_async = inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004
        if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
            raise TaskDefinitionError(f"task {self.name} is a generator function; return a list instead")
        self.call: Callable[..., Any] = self._bound if inject_self else fn
        self.fits = make_check(fn, self.name, bound=bound)
        if self.models is None or self.models is True:
            self.models = Models.of(fn, bound=bound)
        elif self.models is False:
            self.models = None
        self._validate()

    def _validate(self) -> None:
        if self.delivery not in (None, "at_least_once", "at_most_once"):
            raise ConfigError(f"task {self.name}: delivery is 'at_least_once' or 'at_most_once', not {self.delivery!r}")
        if self.priority is not None and self.priority not in range(10):
            raise ConfigError(f"task {self.name}: priority is an integer from 0 to 9, not {self.priority!r}")
        for label in ("max_retries", "retry_backoff", "retry_backoff_max", "expires", "soft_time_limit", "time_limit"):
            value = getattr(self, label)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
                raise ConfigError(f"task {self.name}: {label} is a number of at least 0, not {value!r}")
        for label in ("retry_on", "never", "throws"):
            for cls in getattr(self, label) or ():
                if not (isinstance(cls, type) and issubclass(cls, BaseException)):
                    raise ConfigError(f"task {self.name}: {label} holds exception classes, not {cls!r}")

    @cached_property
    def retry_policy(self) -> RetryPolicy:
        """When a failure is tried again: the task's options, and the settings for what it does not say."""
        settings = self.app.settings
        retry_on = self.retry_on if self.retry_on is not None else (() if self.max_retries is None else (Exception,))
        return RetryPolicy(
            max_retries=settings.max_retries if self.max_retries is None else self.max_retries,
            retry_on=tuple(retry_on),
            never=tuple(self.never),
            backoff=settings.retry_backoff if self.retry_backoff is None else self.retry_backoff,
            backoff_max=settings.retry_backoff_max if self.retry_backoff_max is None else self.retry_backoff_max,
            jitter=settings.retry_jitter if self.retry_jitter is None else self.retry_jitter,
        )

    def _bound(self, *args: Any, **kwargs: Any) -> Any:
        return self._fn(self, *args, **kwargs)

    @property
    def keeps_result(self) -> bool:
        """Whether results of this task are wanted, store permitting."""
        return not (self.app.settings.ignore_result if self.ignore_result is None else self.ignore_result)

    @property
    def at_most_once(self) -> bool:
        """Whether messages are acknowledged as they start."""
        return (self.delivery or self.app.settings.delivery) == "at_most_once"

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Check arguments against the signature.

        Raises:
            TaskArgumentsError: they do not fit.
        """
        try:
            self.fits(*args, **kwargs)
        except TypeError as error:
            raise arguments_error(self.name, error) from None

    def misfit(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> TaskArgumentsError | None:
        """Return the error when arguments do not fit, None when they do."""
        try:
            self.fits(*args, **kwargs)
        except TypeError as error:
            return TaskArgumentsError(f"the arguments of the message do not fit task {self.name}: {error}")
        return None

    def retry_limit(self, header: Header) -> int:
        """Return how many retries a message of this task may have."""
        override = header.get(MAX_RETRIES)
        return self.retry_policy.max_retries if override is None else int(override)

    def wants_retry(self, error: BaseException, header: Header) -> Retry | None:
        """Return the retry that an exception leads to, None when it is a final failure."""
        if isinstance(error, Reject):
            return None
        if isinstance(error, Retry):
            retry, limit = error, error.max_retries
        elif self.retry_policy.wants(error):
            retry, limit = Retry(exc=error), None
        else:
            return None
        return retry if header.attempt < (self.retry_limit(header) if limit is None else limit) else None

    # --------------------------------------------------------------------------------------------------- sending

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now."""
        return cast("R", self.call(*args, **kwargs))

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Send the task with these arguments.

        Raises:
            TaskArgumentsError: the arguments do not fit the signature.
            EncodeError: an argument cannot be serialized.
            SendFailed, TransportError: the broker did not take it within ``publish_timeout``.
        """
        return self.app.producer.send(self, args, kwargs)

    def apply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[R]:
        """Send the task with arguments and options.

        Options: ``countdown`` (seconds), ``eta`` (aware datetime), ``queue``, ``priority`` (0–9, higher first),
        ``expires`` (seconds or aware datetime), ``task_id``, ``headers``, ``group`` (ordered queues),
        ``ignore_result``, ``max_retries``, ``publish_timeout`` (seconds), ``transaction`` (the caller's own database
        connection or session), ``routing_key`` (on brokers that route: every queue bound to
        it gets the message). Raises as ``delay``, and NotSupported for an option that the broker cannot honour.
        """
        return self.app.producer.send(self, tuple(args), dict(kwargs or {}), options)

    async def adelay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Send the task without blocking the event loop; raises as ``delay``."""
        return await self.app.producer.asend(self, args, kwargs)

    async def aapply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[R]:
        """Send the task with options without blocking the event loop; see ``apply_async``."""
        return await self.app.producer.asend(self, tuple(args), dict(kwargs or {}), options)

    def apply(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[R]:
        """Run the task here and now as a worker would, through encoding and retries; return its finished result."""
        return self.app.producer.apply(self, tuple(args), dict(kwargs or {}), options)

    def s(self, *args: Any, **kwargs: Any) -> Signature[R]:
        """Return a signature of a call with these arguments; more may be added when it is sent."""
        return Signature(app=self.app, task=self.name, args=args, kwargs=kwargs)

    def si(self, *args: Any, **kwargs: Any) -> Signature[R]:
        """Return an immutable signature: it takes no further arguments."""
        return Signature(app=self.app, task=self.name, args=args, kwargs=kwargs, immutable=True)

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    # ---------------------------------------------------------------------------------------------- inside a run

    @property
    def request(self) -> Request:
        """The call that this task is running for.

        Raises:
            NotInTask: it is not running in this context.
        """
        request = current_request()
        if request.task is not self and request.name != self.name:
            raise NotInTask(f"task {self.name} is not running in this context; {request.name} is")
        return request

    def retry(
        self, *, countdown: float | None = None, exc: BaseException | None = None, args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None, max_retries: int | None = None,
    ) -> Retry:  # fmt: skip
        """Return the exception to raise for another run: ``raise self.retry(countdown=5)``.

        ``countdown`` is in seconds, None for the task's back-off. After ``max_retries`` runs the failure is ``exc``, or
        TaskFailure without one.
        """
        return Retry(countdown, exc=exc, task_args=args, task_kwargs=kwargs, max_retries=max_retries)

    # ----------------------------------------------------------------------------------------------------- hooks

    def process_started(self) -> None:
        """Set up what all runs of this process share; called once in every process that runs tasks."""

    def process_stopping(self) -> None:
        """Give back what ``process_started`` set up."""

    def before_start(self, request: Request) -> None:
        """Run before each run."""

    def on_success(self, request: Request, result: Any) -> None:
        """Run after a run that returned."""

    def on_failure(self, request: Request, error: BaseException) -> None:
        """Run after a run that failed for good."""

    def on_retry(self, request: Request, retry: Retry) -> None:
        """Run after a run that will be followed by another."""

    def after_return(self, request: Request, result: Any, error: BaseException | None) -> None:
        """Run after each run, whatever its end."""

    def hook_middlewares(self) -> list[Middleware]:
        """Return the overridden hooks as one middleware, nothing where none is."""
        if all(getattr(type(self), hook) is getattr(Task, hook) for hook in self._hooks):
            return []
        return [_Hooks(self)]


if TYPE_CHECKING:

    class AsyncTask(Task[P, R]):
        """A task made of an ``async def``, as a type checker sees it: calling it directly gives a coroutine."""

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]: ...  # type: ignore[override]


class _Hooks(Middleware):
    """Calls the hooks of a task class, innermost."""

    def __init__(self, task: Task[Any, Any]) -> None:
        self._task = task

    def before_run(self, request: Request) -> None:
        self._task.before_start(request)

    def after_run(self, request: Request, result: Any, error: BaseException | None) -> None:
        if isinstance(error, TaskInterrupted):
            return  # it has not ended: another worker runs it
        if error is None:
            self._task.on_success(request, result)
        elif (retry := self._task.wants_retry(error, request.header)) is not None:
            self._task.on_retry(request, retry)
        else:
            self._task.on_failure(request, (error.exc or error) if isinstance(error, Retry) else error)
        self._task.after_return(request, result, error)


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse unknown options of ``@task``, with a suggestion.

    Raises:
        ConfigError: an unknown option.
    """
    for key in options:
        if key not in TASK_OPTIONS:
            near = difflib.get_close_matches(key, TASK_OPTIONS, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(TASK_OPTIONS)}"
            raise ConfigError(f"unknown task option {key!r}{hint}")


def task_name(obj: Any) -> str:
    """Return ``module.qualname``, with ``__main__`` replaced by the name that a worker would import it under."""
    module = getattr(obj, "__module__", None) or "unknown"
    if module in ("__main__", "__mp_main__"):  # the second: in a child process of multiprocessing
        module = main_module_name()
    qualname = getattr(obj, "__qualname__", None) or getattr(obj, "__name__", None) or type(obj).__qualname__
    return f"{module}.{qualname}"


def main_module_name() -> str:
    """Return the import name of the running script.

    ``python -m pkg.mod`` → ``pkg.mod``, ``python dir/mod.py`` → ``mod``.
    """
    import os
    import sys

    main = sys.modules.get("__mp_main__") or sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:
        return str(spec.name.removesuffix(".__main__"))
    path = getattr(main, "__file__", None)
    return os.path.splitext(os.path.basename(path))[0] if path else "__main__"
