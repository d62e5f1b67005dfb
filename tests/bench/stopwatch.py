"""What every no-op task calls: it notes when the n-th task ran, at a few chosen n. Standard library only.

All contenders pay the same for it, about 0.1 µs a task. Times are of CLOCK_MONOTONIC, which all processes share.
"""

from __future__ import annotations

import functools
import itertools
import os
import time

_next = itertools.count(1).__next__  # atomic, so that thread pools may share it
_marks = frozenset(int(n) for n in os.environ.get("BENCH_MARKS", "").split(",") if n)
_file = os.environ.get("BENCH_MARKS_FILE", "")


def tick() -> None:
    """Count one task."""
    n = _next()
    if n in _marks:
        with open(_file, "a") as file:
            file.write(f"{n} {time.monotonic()}\n")


@functools.cache
def pipe() -> int:
    """Return the pipe between a task and its sender, for contenders that keep no results."""
    return os.open(os.environ["BENCH_PIPE"], os.O_RDWR)


def answer() -> None:
    """Tell the sender, through the pipe, that its task runs."""
    os.write(pipe(), b".")


def await_answer() -> None:
    """Wait until the task has answered."""
    os.read(pipe(), 1)
