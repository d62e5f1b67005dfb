"""The hub: queues, results and coordination behind one ZeroMQ socket."""

from __future__ import annotations

from taskq_lib_zeromq.hub.server import AddressInUse, Hub, HubOptions, HubThread

__all__ = ["AddressInUse", "Hub", "HubOptions", "HubThread"]
