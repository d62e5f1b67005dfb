"""Task ids: UUID version 7 (RFC 9562) as 32 hexadecimal digits, so that ids made later sort later.

Stores index them, and neighbours in time are neighbours in the index. Made by the hundred, because a call of
``os.urandom`` costs more than the rest of an enqueue.
"""

from __future__ import annotations

import os
import time
from collections import deque

_BATCH = 64
_ready: deque[str] = deque()


def new_id() -> str:
    """Return a fresh task id; safe on any thread."""
    try:
        return _ready.popleft()
    except IndexError:
        _refill()
        return _ready.popleft()


def _refill() -> None:
    millis = f"{time.time_ns() // 1_000_000:012x}"
    random = os.urandom(10 * _BATCH).hex()
    # twelve digits of time, version 7, twelve bits of order within the batch, variant 10, 62 random bits
    offset = int(random[:2], 16)
    _ready.extend(
        f"{millis}7{offset + i:03x}{'89ab'[int(random[i * 20], 16) & 3]}{random[i * 20 + 1 : i * 20 + 16]}"
        for i in range(_BATCH)
    )


# a forked child must not hand out its parent's ids
os.register_at_fork(after_in_child=_ready.clear)
