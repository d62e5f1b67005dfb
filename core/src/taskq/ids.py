"""Task ids: UUID version 7 (RFC 9562) as 32 hexadecimal digits, so that ids made later sort later.

Stores index them, and neighbours in time are neighbours in the index. Made by the hundred, because a call of
``os.urandom`` costs more than the rest of an enqueue.
"""

from __future__ import annotations

import os
import time
from collections import deque

_BATCH = 64
_VARIANT = 1 << 63
_TAIL = (1 << 61) - 1  # one bit less than there is room for, so that counting up never reaches the variant
_ready: deque[str] = deque()


def new_id() -> str:
    """Return a fresh task id; safe on any thread."""
    try:
        return _ready.popleft()
    except IndexError:
        _refill()
        return _ready.popleft()


def _refill() -> None:
    # twelve digits of time, version 7, then variant 10 and 74 random bits; within a batch the last ones count up
    random = int.from_bytes(os.urandom(10))
    head = f"{time.time_ns() // 1_000_000:012x}7{random >> 68:03x}"
    start = _VARIANT | (random & _TAIL)
    _ready.extend([f"{head}{number:016x}" for number in range(start, start + _BATCH)])


# a forked child must not hand out its parent's ids
os.register_at_fork(after_in_child=_ready.clear)
