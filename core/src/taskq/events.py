"""Events.

What happened to tasks, handed in batches to sinks, off the hot path. Nothing is made where nobody listens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from msgspec import Struct

logger = logging.getLogger("taskq.events")


class Event(Struct, frozen=True):
    """One thing that happened.

    ``kind`` is the task's new state, or ``dead``, ``released``, ``lost``; ``at`` epoch seconds.
    """

    kind: str
    at: float
    task_id: str = ""
    task: str = ""
    queue: str = ""
    attempt: int = 0
    elapsed: float | None = None
    reason: str | None = None


EventSink = Callable[[Sequence[Event]], None]


class EventBus:
    """Hands batches to every sink; a sink that raises is logged and kept."""

    def __init__(self, sinks: Sequence[EventSink] = ()) -> None:
        self._sinks = tuple(sinks)

    def __bool__(self) -> bool:
        return bool(self._sinks)

    def emit(self, events: Sequence[Event]) -> None:
        """Hand events to the sinks."""
        for sink in self._sinks:
            try:
                sink(events)
            except Exception:
                logger.exception("event sink %r failed; its events of this batch are dropped, tasks go on", sink)
