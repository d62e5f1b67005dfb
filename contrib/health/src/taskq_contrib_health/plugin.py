"""Hook implementations of the health probes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from taskq.spi import hookimpl

if TYPE_CHECKING:
    from taskq_contrib_health.server import ProbeServer

_servers: WeakKeyDictionary[Any, ProbeServer] = WeakKeyDictionary()


@hookimpl
def taskq_worker_starting(worker: Any) -> None:
    """Answer probes from the start on: a worker that waits for its broker is live and not ready."""
    from taskq_contrib_health.options import HealthOptions, parse

    options = worker.app.config.plugin_options("extension", "health", HealthOptions)
    if options.address is None:
        return
    from taskq_contrib_health.server import ProbeServer

    server = ProbeServer(worker, parse(options.address, worker.name), tasks=options.tasks)
    server.start()
    _servers[worker] = server


@hookimpl
def taskq_worker_stopped(worker: Any) -> None:
    """Stop answering."""
    server = _servers.pop(worker, None)
    if server is not None:
        server.close()
