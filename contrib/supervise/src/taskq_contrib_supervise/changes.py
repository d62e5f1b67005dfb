"""Notices changes of source files, on a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path


class Changes:
    """Watches folders for changed Python and TOML files; call it to ask whether there were any since the last call."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._changed = threading.Event()
        self._stop = threading.Event()
        self.watching = threading.Event()
        self._thread = threading.Thread(target=self._run, name="taskq-reload", daemon=True)
        self._thread.start()

    def __call__(self) -> bool:
        """Return whether something has changed."""
        if self._changed.is_set():
            self._changed.clear()
            return True
        return False

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        from watchfiles import Change, DefaultFilter, watch

        class Sources(DefaultFilter):
            def __call__(self, change: Change, path: str) -> bool:
                return path.endswith((".py", ".pyi", ".toml")) and super().__call__(change, path)

        # yields an empty set when its time is over, so that the first one says that the watch stands
        changes = watch(*self._folders, watch_filter=Sources(), stop_event=self._stop, rust_timeout=200,
                        yield_on_timeout=True, debounce=300, step=50, raise_interrupt=False)  # fmt: skip
        for found in changes:
            self.watching.set()
            if found:
                self._changed.set()
