"""The in-process server behind ``memory://``: queues, records, one lock, one clock."""

from __future__ import annotations

from taskq_lib_memory.bell import Bell
from taskq_lib_memory.queues import Entry, Holder, Queue, Queues
from taskq_lib_memory.records import Records
from taskq_lib_memory.server import MemoryServer, Patience, forget, server_for

__all__ = ["Bell", "Entry", "Holder", "MemoryServer", "Patience", "Queue", "Queues", "Records", "forget", "server_for"]
