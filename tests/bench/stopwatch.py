"""What the measured tasks call: counting, burning, waiting, answering. Standard library only.

Every process that runs tasks counts in memory that it shares with the suite, which looks at it every few milliseconds;
so a task costs about 0.1 µs, the same for all contenders, in however many processes and threads it runs.
Times are of CLOCK_MONOTONIC, which all processes share.
"""

from __future__ import annotations

import fcntl
import functools
import itertools
import mmap
import os
import struct
import threading
import time

CELLS = 64
"""Numbers per process; the n-th task writes n into cell n modulo 64, so that threads never undo each other's count."""
PROCESSES = 4095
SIZE = (PROCESSES + 1) * CELLS * 8

_next = itertools.count(1).__next__  # atomic
_block: memoryview | None = None
_claiming = threading.Lock()


def tick() -> None:
    """Count one task."""
    n = _next()
    try:
        _block[n & 63] = n  # type: ignore[index]
    except TypeError:  # the first one in this process
        with _claiming:
            if _block is None:
                _claim()
        _block[n & 63] = n  # type: ignore[index]


def _claim() -> None:
    """Take cells for this process."""
    global _block
    path = os.environ.get("BENCH_COUNT", "")
    if not path:
        _block = memoryview(bytearray(CELLS * 8)).cast("Q")
        return
    with open(path, "r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        mine = struct.unpack("=Q", file.read(8))[0] + 1
        file.seek(0)
        file.write(struct.pack("=Q", mine))
        fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough: the mapping keeps a copy of the file open
        _block = memoryview(mmap.mmap(file.fileno(), SIZE)).cast("Q")[mine * CELLS : (mine + 1) * CELLS]


def _forked() -> None:
    global _next, _block, _claiming
    _next, _block, _claiming = itertools.count(1).__next__, None, threading.Lock()


os.register_at_fork(after_in_child=_forked)


class Counter:
    """The suite's side of it."""

    def __init__(self, path: str) -> None:
        with open(path, "w+b") as file:
            file.truncate(SIZE)
            self._cells = memoryview(mmap.mmap(file.fileno(), SIZE)).cast("Q")

    def reset(self) -> None:
        """Forget what processes that have ended counted."""
        for cell in range((self._cells[0] + 1) * CELLS):
            self._cells[cell] = 0

    def read(self) -> int:
        """Return how many tasks have run."""
        cells = self._cells
        return sum(max(cells[block * CELLS : (block + 1) * CELLS]) for block in range(1, cells[0] + 1))


def burn(milliseconds: float) -> None:
    """Use the processor for so long, by this thread's own clock."""
    clock = time.thread_time
    end = clock() + milliseconds / 1000
    while clock() < end:
        pass
    tick()


def nap(milliseconds: float) -> None:
    """Wait."""
    time.sleep(milliseconds / 1000)
    tick()


def stamped(sent: float, milliseconds: float) -> None:
    """Note how long this task is and how long it waited since it was sent, then wait itself."""
    os.write(_waits(), b"%g %.3f\n" % (milliseconds, 1000 * (time.monotonic() - sent)))
    nap(milliseconds)


@functools.cache
def _waits() -> int:
    return os.open(os.environ["BENCH_DIR"] + "/waits", os.O_WRONLY | os.O_APPEND | os.O_CREAT)


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
