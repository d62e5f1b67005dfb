"""The application: tasks, settings, and the components that they are sent through."""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar, overload

from taskq import shared
from taskq._plugins import PluginManager
from taskq.codec import Codec
from taskq.components import Components
from taskq.config import LoadedConfig, Settings, load
from taskq.errors import ConfigError, TaskDefinitionError, UnknownTask
from taskq.message import QueueSpec
from taskq.middleware import Middleware
from taskq.producer import Producer
from taskq.result import AsyncResult
from taskq.routing import RouteTable
from taskq.runtime import TaskRuntime
from taskq.spi.clock import SYSTEM_CLOCK, Clock
from taskq.spi.store import ResultStore
from taskq.spi.transport import Transport
from taskq.task import Task, check_options
from taskq.waiter import ResultWaiter

if TYPE_CHECKING:
    from taskq.canvas import Signature
    from taskq.task import AsyncTask
    from taskq.worker import Worker

P = ParamSpec("P")
R = TypeVar("R")

_apps: weakref.WeakSet[TaskQ] = weakref.WeakSet()


class _Decorator(Protocol):
    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Task[P, R]: ...


class _BoundDecorator(Protocol):
    @overload
    def __call__(self, fn: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[Any, P], R], /) -> Task[P, R]: ...


class TaskQ:
    """A task queue application.

    Args:
        name: names the embedded database and shows in logs.
        broker: URL of the broker; ``;`` or a list for fail-over servers. Default: an SQLite file in the user's state
            directory.
        result_store: URL of the result store, ``"none"`` for none. Default: the broker where it can hold results.
        isolated: ignore configuration files and the environment.
        config: path of a configuration file to use instead of the one found upward from the working directory.
        settings: any other setting by its name; files and the environment may override them.

    Raises:
        ConfigError: an unknown or malformed setting, naming where it came from.
    """

    def __init__(
        self,
        name: str = "taskq",
        *,
        broker: str | Sequence[str] | None = None,
        result_store: str | Sequence[str] | None = None,
        isolated: bool = False,
        config: str | os.PathLike[str] | None = None,
        **settings: Any,
    ) -> None:
        self.name = name
        code = {k: v for k, v in {"broker": broker, "result_store": result_store}.items() if v is not None}
        routes = settings.pop("routes", ())
        code.update(settings)
        self.clock: Clock = SYSTEM_CLOCK
        """What the times of messages are compared with; a test may put a virtual one here before the first use."""
        self._code = code
        self._code_routes = routes if isinstance(routes, list | tuple) else [routes]
        self.load_options: dict[str, Any] = {"isolated": isolated, "config_file": config}
        self.cli_settings: dict[str, Any] = {}
        self.config: LoadedConfig = load(code, **self.load_options)
        self._tasks: dict[str, Task[..., Any]] = {}
        self._own_middlewares: list[Middleware] = []
        self._lock = threading.RLock()
        self._shared_seen = 0
        self.logs = False
        """Whether taskq has set up logging in this process; a pool's child does then, too."""
        self._reset()
        _apps.add(self)
        shared.set_current(self)

    def _reset(self) -> None:
        """Forget every opened component (a new application, or a forked child: nothing opened survives a fork)."""
        self._plugins: PluginManager | None = None
        self._merged = False
        self._codec: Codec | None = None
        self._router: RouteTable | None = None
        self._middlewares: list[Middleware] | None = None
        self._forget_connections()

    def _forget_connections(self) -> None:
        self._lock = threading.RLock()
        self._runtime: TaskRuntime | None = None
        self.components = Components(self)
        self.producer = Producer(self)

    def __repr__(self) -> str:
        return f"<TaskQ {self.name} broker={self.broker_name}>"

    def __enter__(self) -> TaskQ:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------- settings

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.config.settings

    def configure(self, cli: Mapping[str, Any], config_file: str | None = None) -> None:
        """Take settings of the command line, which win over every other source; before the first use only.

        Raises:
            ConfigError: unknown or malformed, or the application is in use.
        """
        if self.components.in_use or self._middlewares is not None:
            raise ConfigError("the application is already in use; its settings can no longer be changed")
        self.cli_settings = {**self.cli_settings, **cli}
        changes: dict[str, Any] = {"cli": self.cli_settings}
        if config_file is not None:
            self.load_options["config_file"] = changes["config_file"] = config_file
        self._plugins = None
        self._merged = False
        self.config = self.config.reloaded(**changes)
        for task in self._tasks.values():
            self.plugins.task_declared(self, task)

    @property
    def broker_name(self) -> str:
        """The URL, without secrets, of the broker that the setting ``broker`` names, for messages."""
        return self.components.label("")

    @property
    def plugins(self) -> PluginManager:
        """The plugin system under this application's settings; making it scans nothing."""
        if self._plugins is None:
            with self._lock:
                if self._plugins is None:
                    chosen = self.settings.plugins
                    self._plugins = PluginManager(blocked=chosen.blocked, only=chosen.only, choose=dict(chosen.choose))
        return self._plugins

    def merge_defaults(self) -> None:
        """Load the contributions and take their defaults into the configuration; once, before anything is used."""
        if not self._merged:
            with self._lock:
                if not self._merged:
                    self._merged = True
                    defaults = self.plugins.config_defaults()
                    if defaults:
                        self.config = self.config.reloaded(plugin_defaults=dict(defaults))

    # ---------------------------------------------------------------------------------------------------- tasks

    @overload
    def task(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
    @overload
    def task(self, fn: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(self, *, bind: Literal[True], **options: Any) -> _BoundDecorator: ...
    @overload
    def task(self, *, bind: Literal[False] = False, **options: Any) -> _Decorator: ...
    def task(  # type: ignore[misc]  # mypy does not match Protocol-returning overloads with an Any implementation
        self, fn: Any = None, /, *, bind: bool = False, **options: Any
    ) -> Any:
        """Make a function a task: ``@app.task`` or ``@app.task(name=…, queue=…, bind=True, …)``.

        Options: ``name`` (default ``module.qualname``), ``queue``, ``bind`` (pass the task as first argument),
        ``base`` (a Task subclass), ``ignore_result``, ``delivery`` ("at_least_once" or "at_most_once"),
        ``max_retries``, ``retry_on`` (exception classes; default every Exception where max_retries is given, else
        none), ``never``, ``retry_backoff``, ``retry_backoff_max`` (seconds), ``retry_jitter``, ``priority`` (0–9),
        ``expires`` (seconds), ``dead_letter`` (keep the message of a final failure, default True), ``throws``
        (expected exceptions: no dead letter, no traceback in the log), ``soft_time_limit``, ``time_limit`` (seconds),
        ``track_started``, ``models`` (False to leave pydantic and msgspec annotations
        alone).

        Raises:
            TaskDefinitionError: the name is taken, or the function cannot be a task.
            ConfigError: an unknown or malformed option.
        """
        base = options.pop("base", Task)
        check_options(options)
        if bind:
            options["bind"] = True

        def decorate(function: Callable[..., Any]) -> Task[Any, Any]:
            return self._add(base.from_function(self, function, options))

        return decorate if fn is None else decorate(fn)

    def register(self, cls: type[Task[..., Any]]) -> Task[..., Any]:
        """Make a task class a task of this application; return its one instance of this process.

        Raises:
            TaskDefinitionError: the name is taken.
        """
        return self._add(cls.from_class(self))

    def _add(self, task: Task[..., Any]) -> Task[..., Any]:
        present = self._tasks.get(task.name)
        if present is not None:
            raise TaskDefinitionError(
                f"two tasks are named {task.name!r} in application {self.name!r}; give one of them another name=…"
            )
        self._tasks[task.name] = task
        self.plugins.task_declared(self, task)
        if self._runtime is not None:
            self._runtime.add(task)
        return task

    @property
    def tasks(self) -> Mapping[str, Task[..., Any]]:
        """The application's tasks by name, shared tasks included."""
        if self._shared_seen < len(shared.declared):
            with self._lock:
                for fn, options in shared.declared[self._shared_seen :]:
                    extra = dict(options)
                    base = extra.pop("base", Task)
                    self._add(base.from_function(self, fn, extra))
                    self._shared_seen += 1  # not before: a clash of names stays an error, whoever asks next
        return self._tasks

    def find_task(self, name: str) -> Task[..., Any]:
        """Return a task by name.

        Raises:
            UnknownTask: with the nearest known names.
        """
        task = self.tasks.get(name)
        if task is None:
            import difflib

            near = difflib.get_close_matches(name, list(self.tasks), 3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise UnknownTask(f"application {self.name!r} knows no task {name!r}{hint}")
        return task

    def import_tasks(self) -> None:
        """Import the modules of the setting ``include``, so that their tasks are known.

        Raises:
            ConfigError: a module cannot be imported; the cause is chained.
        """
        for module in self.settings.include:
            try:
                importlib.import_module(module)
            except Exception as error:
                raise ConfigError(f"include: module {module!r} cannot be imported: {error}") from error

    def autodiscover(self, packages: Iterable[str], related_name: str = "tasks") -> list[str]:
        """Import ``PACKAGE.tasks`` of each package that has one; return the modules imported.

        Raises:
            ConfigError: a package does not exist, or its tasks module fails on import; the cause is chained.
        """
        found = []
        for package in packages:
            name = f"{package}.{related_name}"
            try:
                if importlib.util.find_spec(name) is None:
                    continue
                importlib.import_module(name)
            except Exception as error:
                raise ConfigError(f"autodiscover: {name!r} cannot be imported: {error}") from error
            found.append(name)
        return found

    # --------------------------------------------------------------------------------------------------- sending

    def send_task(
        self, name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[Any]:
        """Send a task by name, known here or not; options as ``Task.apply_async``."""
        return self.producer.send_by_name(name, tuple(args), dict(kwargs or {}), options)

    async def asend_task(
        self, name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[Any]:
        """As ``send_task``, without blocking the event loop."""
        return await self.producer.asend_by_name(name, self.tasks.get(name), tuple(args), dict(kwargs or {}), options)

    def send_many(
        self, signatures: Iterable[Signature[R]], *, transaction: Any = None, publish_timeout: float | None = None
    ) -> list[AsyncResult[R]]:
        """Send many calls, of any tasks and queues, in as few round trips as the broker's batch limit allows.

        Results are in the order of the signatures.

        Raises:
            SendManyError: some were not accepted; its ``accepted``, ``failed`` and ``unknown`` say which.
        """
        return self.producer.send_many(list(signatures), transaction=transaction, publish_timeout=publish_timeout)

    async def asend_many(
        self, signatures: Iterable[Signature[R]], *, publish_timeout: float | None = None
    ) -> list[AsyncResult[R]]:
        """As ``send_many``, without blocking the event loop."""
        return await self.producer.asend_many(list(signatures), publish_timeout=publish_timeout)

    def AsyncResult(self, task_id: str) -> AsyncResult[Any]:  # noqa: N802  the name that Celery's users look for
        """Return the result of a task sent earlier, perhaps by another process."""
        return AsyncResult(task_id, self)

    def signature(self, name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Signature[Any]:
        """Return a signature of a task by name, known here or not."""
        from taskq.canvas import Signature

        return Signature(app=self, task=name, args=tuple(args), kwargs=dict(kwargs or {}))

    def worker(self, **options: Any) -> Worker:
        """Return a worker of this application, not started; options as the settings under ``worker``."""
        from taskq.worker import Worker

        return Worker(self, **options)

    # ------------------------------------------------------------------------------------------------ components

    def freeze(self) -> None:
        """Fix what sends and runs are compiled from: shared tasks, middlewares, routes."""
        if self._middlewares is None:
            with self._lock:
                if self._middlewares is None:
                    self.merge_defaults()
                    self.tasks  # noqa: B018  binds the shared ones
                    plugins = self.plugins
                    self._router = RouteTable(
                        [*self._code_routes, *map(_route, self.settings.routes), *plugins.routes(self)]
                    )
                    self._middlewares = [*self._own_middlewares, *plugins.middlewares(self)]

    def add_middleware(self, *middlewares: Middleware) -> None:
        """Put middlewares around every send and run, outermost first.

        Raises:
            ConfigError: something was already sent or run.
        """
        if self._middlewares is not None:
            raise ConfigError("middlewares must be added before the first send or run")
        self._own_middlewares.extend(middlewares)

    @property
    def middlewares(self) -> Sequence[Middleware]:
        """The middlewares in force, outermost first."""
        self.freeze()
        return self._middlewares or ()

    @property
    def router(self) -> RouteTable:
        """The routes in force."""
        self.freeze()
        assert self._router is not None
        return self._router

    @property
    def codec(self) -> Codec:
        """Serializers and compressors."""
        if self._codec is None:
            with self._lock:
                if self._codec is None:
                    self._codec = self.components.make_codec()
        return self._codec

    def component(self, kind: Any, name: str) -> Any:
        """Return a new serializer, compressor, scheduler or autoscaler by name.

        Raises:
            PluginError: not installed, broken or blocked. ConfigError: an option of it.
        """
        return self.components.plain(kind, name)

    @property
    def transport(self) -> Transport:
        """The open transport of this process to the broker that the setting ``broker`` names.

        Raises:
            PluginError: no plugin for the URL's scheme. TransportError: the server cannot be used.
        """
        return self.components.transport

    @property
    def store(self) -> ResultStore | None:
        """The open result store of this process, None where results are off.

        Raises:
            PluginError: no plugin for the URL's scheme. StoreError: the server cannot be used.
        """
        return self.components.store

    @property
    def store_label(self) -> str:
        """The result store as messages name it, "" where it follows from the broker."""
        return self.components.store_label

    @property
    def waiter(self) -> ResultWaiter:
        """The one wait on the result store that all callers of this process share."""
        return self.components.waiter

    def reply_address(self) -> str:
        """Return the address that results for this process are pushed to, "" where the store does not push."""
        return self.components.reply_address()

    def eager_runtime(self) -> TaskRuntime:
        """Return the runtime for calls that run in this process; the first call starts it, ``close`` stops it."""
        if self._runtime is None:
            with self._lock:
                if self._runtime is None:
                    runtime = TaskRuntime(self, "eager")
                    runtime.start()
                    self._runtime = runtime
        return self._runtime

    def queue_spec(self, name: str) -> QueueSpec:
        """Return how a queue is declared."""
        configured = self.settings.queues.get(name)
        if configured is None:
            return QueueSpec(name=name)
        return QueueSpec(
            name=name, durable=configured.durable, ordered=configured.ordered, options=dict(configured.options)
        )

    def queue_names(self) -> list[str]:
        """Return every queue that the application names: the default one, configured, routed to, set on tasks."""
        names = {self.settings.default_queue, *self.settings.queues, *self.router.queues()}
        names.update(task.queue for task in self.tasks.values() if task.queue)
        return sorted(names)

    # ----------------------------------------------------------------------------------------------- connections

    def connect(self) -> None:
        """Open the transport and the result store now, rather than at the first send; further brokers stay for that.

        Raises:
            TransportError, StoreError: a server was not there within ``publish_timeout`` and ``publish_retries``.
        """
        self.freeze()
        self.producer.connect()

    async def aconnect(self) -> None:
        """As ``connect``, without blocking the event loop."""
        self.freeze()
        await self.producer.aconnect()

    async def arun(self, function: Callable[[], R]) -> R:
        """Run a blocking function of this application on one of a few threads."""
        return await self.components.arun(function)

    def close(self) -> None:
        """Send what is waiting and close every connection; the application may be used again."""
        producer, components, runtime = self.producer, self.components, self._runtime
        self._forget_connections()
        producer.close()
        components.close()
        if runtime is not None:
            runtime.stop()


def _route(route: Any) -> Any:
    return {"match": route.match, "queue": route.queue, "priority": route.priority}


def _after_fork() -> None:
    for app in list(_apps):
        app._forget_connections()


def _at_exit() -> None:
    for app in list(_apps):
        app.close()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
