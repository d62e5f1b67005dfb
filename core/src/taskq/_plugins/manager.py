"""The facade: all that the rest of the kernel sees of the plugin system."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from taskq._plugins.records import Explanation, Kind, Plan, PluginRecord

if TYPE_CHECKING:
    from importlib.metadata import Distribution

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


class PluginManager:
    """Find, choose, load, validate and call plugins.

    Making one costs nothing: the first question scans the installed distributions, once. Any thread may ask.

    Args:
        blocked: patterns of plugins that may not load: an entry's name, ``kind:name``, or a distribution; ``*`` matches.
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
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------- without imports

    def records(self, kind: str | None = None) -> tuple[PluginRecord, ...]:
        """Return what is installed, sorted by kind, name and distribution. Imports no plugin."""
        raise NotImplementedError

    def why(self, kind: str, name: str) -> Explanation:
        """Explain what ``select(kind, name)`` would do. Imports no plugin."""
        raise NotImplementedError

    def plan(self) -> Plan:
        """Return what was found and decided, picklable, for child processes."""
        raise NotImplementedError

    @classmethod
    def from_plan(cls, plan: Plan) -> PluginManager:
        """Make a manager that never scans and imports the modules that the plan names."""
        raise NotImplementedError

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
        raise NotImplementedError

    def create(self, kind: Kind, name: str, config: Any) -> Any:
        """Call the factory of the selected plugin with its config.

        Raises:
            PluginBroken: a client library of the plugin is missing, or the factory failed; the cause is chained.
            As ``select``; errors of taskq's own types pass as they are.
        """
        raise NotImplementedError

    def check(self, record: PluginRecord) -> PluginRecord:
        """Import and validate one plugin, whatever else is installed, and return its record with the new state."""
        raise NotImplementedError

    # --------------------------------------------------------------------------------------------- contributions

    def contributions(self) -> tuple[PluginRecord, ...]:
        """Load every contribution (group ``taskq.plugins``) that policy allows; done once.

        Every method for a hook below calls it first.

        Raises:
            PluginBroken, PluginInvalid: names the contribution and how to block it.
        """
        raise NotImplementedError

    def register(self, plugin: object, name: str) -> None:
        """Add an object or module of the application's own as a contribution.

        Raises:
            PluginBroken, PluginInvalid: it was not added.
        """
        raise NotImplementedError

    def config_defaults(self) -> tuple[tuple[str, Mapping[str, Any]], ...]:
        """Return ``(origin, settings)`` of each contribution."""
        raise NotImplementedError

    def task_declared(self, app: Any, task: Any) -> None:
        """Tell of a declared task; before contributions are loaded it is kept and told to each as it loads."""
        raise NotImplementedError

    def middlewares(self, app: Any) -> tuple[Any, ...]:
        """Return the middlewares of all contributions, outermost first."""
        raise NotImplementedError

    def event_sinks(self, app: Any) -> tuple[Any, ...]:
        """Return the event sinks of all contributions."""
        raise NotImplementedError

    def routes(self, app: Any) -> tuple[Any, ...]:
        """Return the routes of all contributions."""
        raise NotImplementedError

    def logging_setup(self, app: Any, level: str) -> bool:
        """Let the first willing contribution set up logging; return whether one did."""
        raise NotImplementedError

    def worker_starting(self, worker: Any) -> None:
        """Call ``taskq_worker_starting``; the first failure is raised."""
        raise NotImplementedError

    def worker_ready(self, worker: Any) -> None:
        """Call ``taskq_worker_ready``; the first failure is raised."""
        raise NotImplementedError

    def worker_stopping(self, worker: Any) -> None:
        """Call ``taskq_worker_stopping`` on all; then the first failure is raised."""
        raise NotImplementedError

    def worker_stopped(self, worker: Any) -> None:
        """Call ``taskq_worker_stopped`` on all; then the first failure is raised."""
        raise NotImplementedError

    def process_started(self, app: Any) -> None:
        """Call ``taskq_process_started``; the first failure is raised."""
        raise NotImplementedError

    def process_stopping(self, app: Any) -> None:
        """Call ``taskq_process_stopping`` on all; then the first failure is raised."""
        raise NotImplementedError

    def doctor_checks(self, app: Any) -> tuple[tuple[str, Callable[[], str | None]], ...]:
        """Return the checks of all contributions as ``(name, callable)``."""
        raise NotImplementedError

    # -------------------------------------------------------------------------------------------------- commands

    def commands(self) -> tuple[PluginRecord, ...]:
        """Return the records of the command line's extra commands (group ``taskq.commands``). Imports no plugin."""
        raise NotImplementedError

    def load_command(self, name: str) -> Any:
        """Import one extra command and return its ``click.Command``.

        Raises:
            As ``select``.
        """
        raise NotImplementedError
