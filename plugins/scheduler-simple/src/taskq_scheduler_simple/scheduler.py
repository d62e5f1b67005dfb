"""The scheduler: the state behind a lock, in memory or in a file that several processes share.

The file is replaced as a whole, under a lock of its own file, so that readers never see half of it and two processes
never lease the same firing.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from taskq.errors import StoreSchemaMismatch, StoreUnavailable
from taskq.spi import Fire, Schedule
from taskq_scheduler_simple.options import SimpleSchedulerOptions
from taskq_scheduler_simple.state import Entry, State

T = TypeVar("T")
FORMAT: Final = 1
LOCK_WAIT_S: Final = 10.0
"""Longest wait for another process that is writing the file."""
POLL_S: Final = 0.25
"""How often a waiting ``wake`` looks for changes by other processes."""


class _File(Struct, forbid_unknown_fields=True):
    format: int
    changes: int
    entries: list[Entry]


class SimpleScheduler:
    """Keeps schedules; see ``taskq.spi.Scheduler``."""

    def __init__(self, options: SimpleSchedulerOptions | None = None) -> None:
        path = (options or SimpleSchedulerOptions()).path
        self._path = Path(path).expanduser() if path else None
        self._state = State(entries={})
        self._changed = threading.Condition(threading.Lock())
        self._seen = 0  # changes that wake() has told of
        self._closed = False

    def open(self) -> None:
        """Read the file, if there is one, and check that it can be written.

        Raises:
            StoreUnavailable: the folder is missing, or may not be written.
            StoreSchemaMismatch: the file is not one of this scheduler's.
        """
        with self._changed:
            self._closed = False
            if self._path is not None:
                with self._locked(self._path):
                    self._state = self._read(self._path)
                self._seen = self._state.changes

    def close(self) -> None:
        """End waiting ``wake`` calls; leases end by their ttl."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def upsert(self, schedule: Schedule, *, now: float) -> Schedule:
        """Add or replace a schedule. Errors: NotSupported, ConfigError, EncodeError for what cannot be kept."""
        return self._change(lambda state: state.upsert(schedule, now))

    def remove(self, schedule_id: str) -> bool:
        """Remove a schedule; whether it was there."""
        return self._change(lambda state: state.remove(schedule_id))

    def get(self, schedule_id: str) -> Schedule | None:
        """Return one schedule."""
        return self._look(lambda state: state.get(schedule_id))

    def list(self, *, after: str | None = None, limit: int = 100) -> Sequence[Schedule]:
        """Return schedules sorted by id."""
        return self._look(lambda state: state.list(after, limit))

    def lease(self, owner: str, now: float, *, limit: int, ttl: float) -> Sequence[Fire]:
        """Return due firings that nobody else holds; what this owner holds is given again."""
        return self._change(lambda state: state.lease(owner, now, limit, ttl))

    def settle(self, fired: Sequence[Fire], *, now: float) -> None:
        """Mark firings as sent; the next due time follows from the nominal one, not from ``now``."""
        self._change(lambda state: state.settle(fired))

    def next_due(self) -> float | None:
        """Return when the next firing can be leased."""
        return self._look(State.next_due)

    def wake(self, timeout: float) -> bool:
        """Wait until a schedule was added, changed or removed since the last call that said so."""
        deadline = time.monotonic() + timeout
        mark: object = None
        with self._changed:
            while True:
                if self._path is not None and (new := _mark(self._path)) != mark:
                    mark = new
                    self._state = self._read(self._path)
                if self._state.changes != self._seen:
                    self._seen = self._state.changes
                    return True
                left = deadline - time.monotonic()
                if left <= 0 or self._closed:
                    return False
                self._changed.wait(left if self._path is None else min(left, POLL_S))

    # ------------------------------------------------------------------------------------------ state and file

    def _look(self, read: Callable[[State], T]) -> T:
        with self._changed:
            if self._path is not None:
                self._state = self._read(self._path)
            return read(self._state)

    def _change(self, act: Callable[[State], T]) -> T:
        with self._changed:
            if self._path is None:
                result = act(self._state)
            else:
                with self._locked(self._path):
                    state = self._read(self._path)
                    before = _encode(state)
                    result = act(state)
                    after = _encode(state)
                    if after != before:
                        self._write(self._path, after)
                    self._state = state
            self._changed.notify_all()
            return result

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        """Hold the lock among processes: of a file beside, because the file itself is replaced."""
        lock = path.with_name(path.name + ".lock")
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise StoreUnavailable(
                f"cannot open the lock {lock} of the schedules: {error.strerror}. The folder must exist and be "
                "writable; or choose another file in the simple scheduler's option path."
            ) from error
        try:
            deadline = time.monotonic() + LOCK_WAIT_S
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise StoreUnavailable(
                            f"cannot change the schedules in {path}: another process has held {lock} for "
                            f"{LOCK_WAIT_S:g} s. Find it with `fuser {lock}`."
                        ) from None
                    time.sleep(0.005)
                except OSError as error:
                    raise StoreUnavailable(
                        f"cannot lock {lock}: {error.strerror}. Is it on a network drive?"
                    ) from error
            yield
        finally:
            os.close(handle)  # gives the lock back, too

    def _read(self, path: Path) -> State:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return State(entries={})
        except OSError as error:
            raise StoreUnavailable(f"cannot read the schedules in {path}: {error.strerror}") from error
        try:
            found = msgspec.json.decode(data, type=_File)
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise StoreSchemaMismatch(
                f"{path} holds no schedules of the simple scheduler: {error}. Move it away, or name another file in "
                "the option path; schedules of the application's settings are made anew."
            ) from error
        if found.format != FORMAT:
            raise StoreSchemaMismatch(
                f"{path} holds schedules in format {found.format}, this version of taskq-scheduler-simple reads "
                f"{FORMAT}. Install the version that wrote it, or move the file away."
            )
        return State({entry.schedule.id: entry for entry in found.entries}, found.changes)

    def _write(self, path: Path, data: bytes) -> None:
        # Only who holds the lock writes, so the name needs not be unique; what a crash left behind is overwritten.
        new = path.with_name(path.name + ".new")
        try:
            with new.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except OSError as error:
            raise StoreUnavailable(
                f"cannot write the schedules to {path}: {error.strerror}; nothing was changed"
            ) from error


def _encode(state: State) -> bytes:
    return msgspec.json.encode(_File(FORMAT, state.changes, list(state.entries.values())))


def _mark(path: Path) -> object:
    """Return something that differs after every replacement of the file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
