"""What a process holds: threads, sockets and files, so that a test can see what was not given back."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable

import pytest


def open_files() -> Counter[str] | None:
    """Return how many descriptors of each kind are open, files by name; None where the system does not tell."""
    folder = "/proc/self/fd"
    if not os.path.isdir(folder):
        return None
    found: Counter[str] = Counter()
    for descriptor in os.listdir(folder):
        try:
            target = os.readlink(f"{folder}/{descriptor}")
        except OSError:  # the one that listed the folder
            continue
        found[target.partition(":")[0] if ":[" in target or target.startswith("anon_inode") else target] += 1
    return found


class Held:
    """A snapshot of this process's threads and open files."""

    def __init__(self) -> None:
        gc.collect()
        self._threads = set(threading.enumerate())
        self._files = open_files()

    def more(self) -> list[str]:
        """Return what there is now beyond the snapshot."""
        gc.collect()
        left = [f"thread {t.name!r}" for t in threading.enumerate() if t not in self._threads]
        now = open_files()
        if now is not None and self._files is not None:
            left += [f"{n} open {what}" for what, n in (now - self._files).items()]
        return left

    def check(self, seconds: float, after: str) -> None:
        """Fail the test when something is still held some seconds later."""
        deadline = time.monotonic() + seconds
        while left := self.more():
            if time.monotonic() > deadline:
                pytest.fail(f"{after} left behind: {'; '.join(left)}")
            time.sleep(0.02)


def new_keys(before: Iterable[str] | None, after: Iterable[str] | None) -> set[str]:
    """Return what an author's ``server_keys`` shows now and did not before."""
    return set(after or ()) - set(before or ())
