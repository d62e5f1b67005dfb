"""The hook specifications: seven kinds, asked once at start-up, and the contributions.

A plugin of a kind is a module (the value of its entry point) with one function marked ``@hookimpl``:

    @hookimpl
    def taskq_transport(scheme: str) -> TransportSpec: ...

A contribution (entry-point group ``taskq.plugins``) is a module with any of the hooks of ``ContributionHooks``. An
implementation may take fewer arguments than its specification, never others. No hook is called per message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from taskq.spi.specs import (
        AutoscalerSpec,
        CompressorSpec,
        PoolSpec,
        SchedulerSpec,
        SerializerSpec,
        StoreSpec,
        TransportSpec,
    )

PROJECT = "taskq"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class KindHooks:
    """One hook per kind; the kernel calls it on the one selected plugin only."""

    @hookspec(firstresult=True)
    def taskq_transport(self, scheme: str) -> TransportSpec | None:
        """Return the transport for a URL scheme."""

    @hookspec(firstresult=True)
    def taskq_result_store(self, scheme: str) -> StoreSpec | None:
        """Return the result store for a URL scheme."""

    @hookspec(firstresult=True)
    def taskq_pool(self, name: str) -> PoolSpec | None:
        """Return the pool of this name."""

    @hookspec(firstresult=True)
    def taskq_serializer(self, name: str) -> SerializerSpec | None:
        """Return the serializer of this name."""

    @hookspec(firstresult=True)
    def taskq_compressor(self, name: str) -> CompressorSpec | None:
        """Return the compressor of this name."""

    @hookspec(firstresult=True)
    def taskq_scheduler(self, name: str) -> SchedulerSpec | None:
        """Return the scheduler of this name."""

    @hookspec(firstresult=True)
    def taskq_autoscaler(self, name: str) -> AutoscalerSpec | None:
        """Return the autoscaler of this name."""


class ContributionHooks:
    """Called on every loaded contribution, at start-up and at lifecycle events."""

    @hookspec
    def taskq_config_defaults(self) -> Mapping[str, Any]:
        """Return settings to use where neither code, file, environment nor command line sets them."""
        raise NotImplementedError

    @hookspec(historic=True)
    def taskq_task_declared(self, app: Any, task: Any) -> None:
        """Look at each declared task; tasks declared before the plugin was loaded are replayed."""

    @hookspec
    def taskq_middlewares(self, app: Any) -> Sequence[Any]:
        """Return ``taskq.Middleware`` objects to put around every task, outermost first."""
        raise NotImplementedError

    @hookspec
    def taskq_event_sinks(self, app: Any) -> Sequence[Any]:
        """Return callables that take batches of ``taskq.events.Event``; called off the hot path."""
        raise NotImplementedError

    @hookspec
    def taskq_routes(self, app: Any) -> Sequence[Any]:
        """Return routes as of the setting ``routes``, tried after the application's own."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def taskq_logging_setup(self, app: Any, level: str) -> bool | None:
        """Set up logging of a worker and return True, or None to leave it to the next."""

    @hookspec
    def taskq_worker_starting(self, worker: Any) -> None:
        """A worker has resolved its plan and connects next."""

    @hookspec
    def taskq_worker_ready(self, worker: Any) -> None:
        """A worker takes messages from now on."""

    @hookspec
    def taskq_worker_stopping(self, worker: Any) -> None:
        """A worker has stopped taking messages."""

    @hookspec
    def taskq_worker_stopped(self, worker: Any) -> None:
        """A worker has ended; its connections are closed."""

    @hookspec
    def taskq_process_started(self, app: Any) -> None:
        """A process that runs tasks has started: a pool's child, or the worker itself."""

    @hookspec
    def taskq_process_stopping(self, app: Any) -> None:
        """A process that runs tasks is about to end."""

    @hookspec
    def taskq_doctor_checks(self, app: Any) -> Sequence[Any]:
        """Return ``(name, callable)`` pairs for ``taskq doctor``; a callable returns None or what is wrong."""
        raise NotImplementedError
