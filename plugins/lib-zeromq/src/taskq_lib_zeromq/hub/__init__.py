"""The hub: queues, results and coordination behind ZeroMQ sockets."""

from __future__ import annotations

from taskq_lib_zeromq.hub.door import AddressInUse
from taskq_lib_zeromq.hub.server import Hub, HubOptions, HubThread

__all__ = ["AddressInUse", "Hub", "HubOptions", "HubThread"]
