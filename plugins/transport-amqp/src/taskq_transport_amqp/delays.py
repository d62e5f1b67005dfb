"""Delay without a plugin on the server: queues whose messages expire into the next one.

A delay is a sum of powers of two. For each power that a target queue needs there is a quorum queue where every message
stays exactly that long, and then goes on to the next smaller power of its own delay, at last to the target. As all
messages of one such queue wait equally long, none waits for the one before it. The way stands in the routing key:
``7.4.2.<target>`` waits in the queues 7, 4 and 2. The queues hand on with at-least-once dead-lettering and are never
full in silence, so that nothing is lost on the way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from hashlib import blake2b

UNIT_S = 0.128
"""How long the shortest level takes."""
LEVELS = 24
_ROUGH_FROM_S, _ROUGH = 10.0, 4
"""From ten seconds on a delay is rounded up to half a second: two levels less."""
ENTRY = "taskq.delay"


def levels_of(delay: float) -> tuple[int, ...]:
    """Return the levels that make up a delay in seconds, rounded up, the longest first."""
    units = max(1, math.ceil(delay / UNIT_S - 1e-9))
    if delay >= _ROUGH_FROM_S:
        units = -(-units // _ROUGH) * _ROUGH
    return tuple(level for level in range(LEVELS - 1, -1, -1) if units >> level & 1)


def word(queue: str) -> str:
    """Return what stands for a target queue in a routing key."""
    return blake2b(queue.encode(), digest_size=8).hexdigest()


def key(levels: tuple[int, ...], queue: str) -> str:
    """Return the routing key of a delayed message."""
    return ".".join((*map(str, levels), word(queue)))


def exchange(level: int) -> str:
    """Return the exchange where messages arrive that have waited in a level."""
    return f"{ENTRY}.{level}"


def level_queue(level: int, queue: str) -> str:
    """Return the queue of a level for a target."""
    return f"{ENTRY}.{level}.{queue}"


def arguments(level: int) -> dict[str, object]:
    """Return the arguments of a level's queue."""
    return {
        "x-queue-type": "quorum",
        "x-message-ttl": round(UNIT_S * 1000) << level,
        "x-dead-letter-exchange": exchange(level),
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


Edge = tuple[int | None, int | None]
"""From level to level; None is the entrance, or the target queue."""


def edges(levels: tuple[int, ...]) -> Iterator[Edge]:
    """Yield the steps of a way."""
    yield from zip((None, *levels), (*levels, None), strict=True)


def binding(edge: Edge, queue: str) -> tuple[str, str]:
    """Return exchange and pattern that lead a step's messages on."""
    source, sink = edge
    if source is None:
        return ENTRY, f"{sink}.#.{word(queue)}"
    if sink is None:
        return exchange(source), f"#.{source}.{word(queue)}"
    return exchange(source), f"#.{source}.{sink}.#.{word(queue)}"
