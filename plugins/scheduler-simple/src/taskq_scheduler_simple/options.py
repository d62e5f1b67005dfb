"""Options of the simple scheduler."""

from __future__ import annotations

from dataclasses import dataclass

from taskq.spi import option


@dataclass(frozen=True)
class SimpleSchedulerOptions:
    """What the simple scheduler can be told."""

    path: str = option("", help="JSON file that keeps the schedules across restarts; empty: in memory only")
