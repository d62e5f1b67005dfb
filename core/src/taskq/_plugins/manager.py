"""The facade: all that the rest of the kernel sees of the plugin system."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from taskq._plugins import choosing, discovery, loading
from taskq._plugins.hints import install_command, label
from taskq._plugins.records import KINDS, Explanation, Kind, Plan, PluginRecord, State
from taskq.errors import ConfigError, PluginBroken, PluginError, PluginIncompatible, PluginInvalid, TaskQError

if TYPE_CHECKING:
    from importlib.metadata import Distribution

    import pluggy

    from taskq.spi.specs import (
        AutoscalerSpec,
        ComponentSpec,
        CompressorSpec,
        PoolSpec,
        SchedulerSpec,
        SerializerSpec,
        StoreSpec,
        TransportSpec,
    )


T = TypeVar("T")
_STATE_OF: tuple[tuple[type[PluginError], State], ...] = (
    (PluginIncompatible, State.INCOMPATIBLE),
    (PluginInvalid, State.INVALID),
)


class PluginManager:
    """Find, choose, load, validate and call plugins.

    Making one costs nothing: the first question scans the installed distributions, once. Any thread may ask.

    Args:
        blocked: patterns of plugins that may not load: an entry's name, ``kind:name`` or a distribution, with ``*``.
        only: patterns of the only plugins that may load; None for all, empty for none. ``blocked`` goes before.
        choose: ``kind:name`` → distribution, where two offer the same.
        distributions: what to scan instead of ``sys.path``.

    Raises:
        ConfigError: a pattern that cannot match anything (empty, or an unknown kind).
    """

    def __init__(
        self,
        *,
        blocked: Sequence[str] = (),
        only: Sequence[str] | None = None,
        choose: Mapping[str, str] | None = None,
        distributions: Iterable[Distribution] | None = None,
    ) -> None:
        self._blocked = [choosing.check_pattern(p, setting="plugins.blocked") for p in blocked]
        self._only = None if only is None else [choosing.check_pattern(p, setting="plugins.only") for p in only]
        self._choose: dict[str, str] = {}
        for key, distribution in (choose or {}).items():
            normal = choosing.check_pattern(key, setting="plugins.choose")
            if ":" not in normal or "*" in normal or not distribution:
                raise ConfigError(
                    f"plugins.choose = {{{key!r} = {distribution!r}}}: write 'kind:name' and the distribution to "
                    "take it from, as in {'transport:redis' = 'taskq-transport-redis'}"
                )
            self._choose[normal] = distribution
        self._distributions = distributions
        self._direct = False
        self._lock = threading.RLock()
        self._records: tuple[PluginRecord, ...] | None = None
        self._states: dict[PluginRecord, tuple[State, str]] = {}  # what loading has shown, by record as found
        self._selected: dict[tuple[str, str], ComponentSpec] = {}
        self._hooks: pluggy.PluginManager | None = None
        self._contributions: dict[int, tuple[Any, PluginRecord]] = {}  # by id(): a plugin object need not be hashable
        self._declared: list[dict[str, Any]] = []  # kept until pluggy is there to keep it

    # ------------------------------------------------------------------------------------------- without imports

    def _found(self) -> tuple[PluginRecord, ...]:
        with self._lock:
            if self._records is None:
                scanned = discovery.scan(self._distributions)
                self._records = choosing.apply_policy(scanned, self._blocked, self._only, self._choose)
            return self._records

    def records(self, kind: str | None = None) -> tuple[PluginRecord, ...]:
        """Return what is installed, sorted by kind, name and distribution. Imports no plugin."""
        found = []
        for record in self._found():
            if kind in (None, record.kind):
                state, detail = self._states.get(record, (record.state, record.detail))
                found.append(replace(record, state=state, detail=detail))
        return tuple(found)

    def why(self, kind: str, name: str) -> Explanation:
        """Explain what ``select(kind, name)`` would do. Imports no plugin."""
        return choosing.decide(self._found(), kind, name, self._choose)[0]

    def plan(self) -> Plan:
        """Return what was found and decided, picklable, for child processes."""
        return Plan(self._found(), tuple(self._choose.items()))

    @classmethod
    def from_plan(cls, plan: Plan) -> PluginManager:
        """Make a manager that never scans and imports the modules that the plan names."""
        manager = cls(choose=dict(plan.choose))
        manager._records = plan.records
        manager._direct = True
        return manager

    # ------------------------------------------------------------------------------------------------- selection

    @overload
    def select(self, kind: Literal["transport"], name: str) -> TransportSpec: ...
    @overload
    def select(self, kind: Literal["result_store"], name: str) -> StoreSpec: ...
    @overload
    def select(self, kind: Literal["pool"], name: str) -> PoolSpec: ...
    @overload
    def select(self, kind: Literal["serializer"], name: str) -> SerializerSpec: ...
    @overload
    def select(self, kind: Literal["compressor"], name: str) -> CompressorSpec: ...
    @overload
    def select(self, kind: Literal["scheduler"], name: str) -> SchedulerSpec: ...
    @overload
    def select(self, kind: Literal["autoscaler"], name: str) -> AutoscalerSpec: ...
    @overload
    def select(self, kind: Kind, name: str) -> ComponentSpec: ...
    def select(self, kind: Kind, name: str) -> ComponentSpec:
        """Import, validate and return the one plugin of this kind and name (a URL scheme or a component's name).

        The answer is cached; no other plugin is imported.

        Raises:
            PluginNotInstalled, PluginBlocked, PluginConflict: nothing was imported.
            PluginBroken, PluginIncompatible, PluginInvalid: the plugin was imported and is no use.
        """
        with self._lock:
            spec = self._selected.get((kind, name))
            if spec is None:
                record = self._decide(kind, name)
                spec = self._tracked(record, lambda: loading.ask(self._load(record), record, self._found()))
                self._selected[kind, name] = spec
            return spec

    def _decide(self, kind: str, name: str) -> PluginRecord:
        explanation, error = choosing.decide(self._found(), kind, name, self._choose)
        if error or explanation.chosen is None:
            raise error or AssertionError(kind, name)
        return explanation.chosen

    def _load(self, record: PluginRecord) -> Any:
        return loading.load(record, direct=self._direct)

    def _tracked(self, record: PluginRecord, step: Callable[[], T]) -> T:
        """Run a step of loading and keep in the record's state how it ended."""
        try:
            result = step()
        except PluginError as exc:
            self._states[record] = next((s for t, s in _STATE_OF if isinstance(exc, t)), State.BROKEN), str(exc)
            raise
        self._states[record] = State.LOADED, ""
        return result

    def create(self, kind: Kind, name: str, config: Any) -> Any:
        """Call the factory of the selected plugin with its config.

        Raises:
            PluginBroken: a client library of the plugin is missing, or the factory failed; the cause is chained.
            As ``select``; errors of taskq's own types pass as they are.
        """
        spec = self.select(kind, name)
        try:
            return spec.factory(config)
        except TaskQError:
            raise
        except Exception as exc:
            if loading.by_signal(exc):
                raise
            raise loading.failure(self._decide(kind, name), exc, "cannot be created") from exc

    def check(self, record: PluginRecord) -> PluginRecord:
        """Import and validate one plugin, whatever else is installed, and return its record with the new state.

        A requirement that is not installed makes it broken, although its import may work: client libraries are imported
        late. A blocked plugin is not imported; a conflict stays one.
        """
        with self._lock:
            original = next((r for r in self._found() if (r.kind, r.name, r.value, r.distribution)
                             == (record.kind, record.name, record.value, record.distribution)), record)  # fmt: skip
            if original.state not in (State.INSTALLED, State.CONFLICT):
                return original
            try:
                self._tracked(original, lambda: self._examine(original))
            except PluginError:
                pass
            state, detail = self._states[original]
            if state is State.LOADED and original.state is State.CONFLICT:
                state, detail = self._states[original] = original.state, original.detail
            return replace(original, state=state, detail=detail)

    def _examine(self, record: PluginRecord) -> None:
        plugin = self._load(record)
        if record.kind in KINDS:
            loading.ask(plugin, record, self._found())
        elif record.kind == "plugin":
            loading.register(loading.new_hooks(), plugin, record, self._found())
        else:
            loading.check_command(plugin, record)
        missing = discovery.missing_requirements(record.distribution)
        if missing:
            ours = [repr(m) for m in missing if m.lower().startswith("taskq")]
            theirs = [repr(m) for m in missing if not m.lower().startswith("taskq")]
            commands = [install_command(*ours)] if ours else []
            commands += [" ".join(["pip install", *theirs])] if theirs else []
            raise PluginBroken(
                f"{label(record.kind, record.name)} of {record.origin} requires {', '.join(missing)}, "
                f"which is not installed: {' && '.join(commands)}"
            )

    # --------------------------------------------------------------------------------------------- contributions

    def contributions(self) -> tuple[PluginRecord, ...]:
        """Load every contribution (group ``taskq.plugins``) that policy allows; done once.

        Every method for a hook below calls it first.

        Raises:
            PluginBroken, PluginIncompatible, PluginInvalid: names the contribution and how to block it.
        """
        self._loaded_hooks()
        return tuple(record for _, record in self._contributions.values())

    def _loaded_hooks(self) -> pluggy.PluginManager:
        with self._lock:
            if self._hooks is None:
                hooks = loading.new_hooks()
                for told in self._declared:
                    hooks.hook.taskq_task_declared.call_historic(kwargs=told)
                contributions: dict[int, tuple[Any, PluginRecord]] = {}
                # Last registered is called first, so backwards: calls go in the order of the listing.
                for record in reversed([r for r in self._found() if r.kind == "plugin"]):
                    if record.state is State.BLOCKED:
                        continue
                    try:
                        plugin = self._tracked(record, lambda: self._add(hooks, record))  # noqa: B023  called at once
                    except PluginError as exc:
                        raise self._with_way_out(exc, record) from exc.__cause__
                    contributions[id(plugin)] = plugin, record
                self._contributions = contributions
                self._declared.clear()
                self._hooks = hooks
            return self._hooks

    def _add(self, hooks: pluggy.PluginManager, record: PluginRecord) -> Any:
        if record.state is not State.INSTALLED:
            wrong = PluginBroken if record.state is State.BROKEN else PluginInvalid
            raise wrong(f"{label(record.kind, record.name)} of {record.origin} cannot be used: {record.detail}")
        plugin = self._load(record)
        if not hooks.is_registered(plugin):  # two entries may name one module
            loading.register(hooks, plugin, record, self._found())
        return plugin

    @staticmethod
    def _with_way_out(exc: PluginError, record: PluginRecord) -> PluginError:
        return type(exc)(
            f'{exc}. To go on without it: plugins.blocked = ["plugin:{record.name}"] or uninstall {record.distribution}'
        )

    def register(self, plugin: object, name: str) -> None:
        """Add an object or module of the application's own as a contribution; it is called before installed ones.

        Raises:
            PluginBroken, PluginInvalid: it was not added.
        """
        record = PluginRecord("plugin", name, f"<{name}>", "the application", "", State.LOADED)
        with self._lock:
            hooks = self._loaded_hooks()
            loading.register(hooks, plugin, record, (*self._found(), record))
            self._contributions[id(plugin)] = plugin, record

    def _each(self, hook: str, *, to_the_end: bool = False, **arguments: Any) -> Iterator[tuple[PluginRecord, Any]]:
        """Call a hook on one contribution after the other, so that a failure and an answer have an author."""
        hooks = self._loaded_hooks()
        plugins = {id(i.plugin): i.plugin for i in reversed(getattr(hooks.hook, hook).get_hookimpls())}
        failed: TaskQError | None = None
        for key, plugin in plugins.items():
            record = self._contributions[key][1]
            others = [p for p in hooks.get_plugins() if p is not plugin]
            try:
                answer = hooks.subset_hook_caller(hook, others)(**arguments)
            except Exception as exc:
                failed = failed or self._blame(exc, record, hook)
                if to_the_end:
                    continue
                break
            yield record, answer
        if failed:
            raise failed

    def _blame(self, exc: Exception, record: PluginRecord, hook: str) -> TaskQError:
        if isinstance(exc, TaskQError):  # said on purpose
            exc.add_note(f"(raised by {label(record.kind, record.name)} of {record.origin} in {hook})")
            return exc
        error = self._with_way_out(loading.failure(record, exc, f"failed in {hook}"), record)
        error.__cause__ = exc
        return error

    def _gather(self, hook: str, app: Any) -> tuple[Any, ...]:
        gathered: list[Any] = []
        for record, answers in self._each(hook, app=app):
            for answer in answers:
                if not isinstance(answer, list | tuple):
                    raise PluginInvalid(
                        f"{label(record.kind, record.name)} of {record.origin} returned {type(answer).__name__} from "
                        f"{hook}, not a list or tuple"
                    )
                gathered += answer
        return tuple(gathered)

    def _notify(self, hook: str, *, to_the_end: bool = False, **arguments: Any) -> None:
        for _ in self._each(hook, to_the_end=to_the_end, **arguments):
            pass

    def config_defaults(self) -> tuple[tuple[str, Mapping[str, Any]], ...]:
        """Return ``(origin, settings)`` of each contribution that has any; the first one with a setting counts."""
        found = []
        for record, answers in self._each("taskq_config_defaults"):
            found += [(f"plugin {record.name} ({record.origin})", answer) for answer in answers]
        return tuple(found)

    def task_declared(self, app: Any, task: Any) -> None:
        """Tell of a declared task; before contributions are loaded it is kept and told to each as it loads."""
        with self._lock:
            told = {"app": app, "task": task}
            if self._hooks is None:
                self._declared.append(told)
                return
            caller = self._hooks.hook.taskq_task_declared
            try:
                caller.call_historic(kwargs=told)
                return
            except Exception as exc:
                frames, trace = set(), exc.__traceback__
                while trace:
                    frames.add(trace.tb_frame.f_code)
                    trace = trace.tb_next
                guilty = [i.plugin for i in caller.get_hookimpls() if getattr(i.function, "__code__", None) in frames]
                if not guilty:
                    raise
                error = self._blame(exc, self._contributions[id(guilty[0])][1], "taskq_task_declared")
            raise error

    def middlewares(self, app: Any) -> tuple[Any, ...]:
        """Return the middlewares of all contributions, outermost first."""
        return self._gather("taskq_middlewares", app)

    def event_sinks(self, app: Any) -> tuple[Any, ...]:
        """Return the event sinks of all contributions."""
        return self._gather("taskq_event_sinks", app)

    def routes(self, app: Any) -> tuple[Any, ...]:
        """Return the routes of all contributions."""
        return self._gather("taskq_routes", app)

    def doctor_checks(self, app: Any) -> tuple[tuple[str, Callable[[], str | None]], ...]:
        """Return the checks of all contributions as ``(name, callable)``."""
        return self._gather("taskq_doctor_checks", app)

    def logging_setup(self, app: Any, level: str) -> bool:
        """Let the first willing contribution set up logging; return whether one did."""
        return any(answer for _, answer in self._each("taskq_logging_setup", app=app, level=level))

    def worker_starting(self, worker: Any) -> None:
        """Call ``taskq_worker_starting``; the first failure is raised."""
        self._notify("taskq_worker_starting", worker=worker)

    def worker_ready(self, worker: Any) -> None:
        """Call ``taskq_worker_ready``; the first failure is raised."""
        self._notify("taskq_worker_ready", worker=worker)

    def worker_stopping(self, worker: Any) -> None:
        """Call ``taskq_worker_stopping`` on all; then the first failure is raised."""
        self._notify("taskq_worker_stopping", to_the_end=True, worker=worker)

    def worker_stopped(self, worker: Any) -> None:
        """Call ``taskq_worker_stopped`` on all; then the first failure is raised."""
        self._notify("taskq_worker_stopped", to_the_end=True, worker=worker)

    def process_started(self, app: Any) -> None:
        """Call ``taskq_process_started``; the first failure is raised."""
        self._notify("taskq_process_started", app=app)

    def process_stopping(self, app: Any) -> None:
        """Call ``taskq_process_stopping`` on all; then the first failure is raised."""
        self._notify("taskq_process_stopping", to_the_end=True, app=app)

    # -------------------------------------------------------------------------------------------------- commands

    def commands(self) -> tuple[PluginRecord, ...]:
        """Return the records of the command line's extra commands (group ``taskq.commands``). Imports no plugin."""
        return self.records("command")

    def load_command(self, name: str) -> Any:
        """Import one extra command and return its ``click.Command``.

        Raises:
            As ``select``.
        """
        with self._lock:
            record = self._decide("command", name)
            return self._tracked(record, lambda: loading.check_command(self._load(record), record))
