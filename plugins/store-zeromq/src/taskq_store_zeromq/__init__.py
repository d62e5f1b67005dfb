"""Results in the hub of the ZeroMQ transport."""

from __future__ import annotations
