"""Waiting for results: any number of callers, threads and coroutines, on one wait of the store.

Whoever waits first leads: it waits on the store for everybody's ids, so that a lone caller gets its result on its own
thread, without a hand-off. When the leader has what it wanted, the next waiting thread leads. Coroutines cannot lead; a
single background thread does it for them, whatever their number.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from taskq.errors import StoreError
from taskq.message import Record
from taskq.spi.store import ResultStore, SupportsWait

if TYPE_CHECKING:
    import asyncio

_SLICE = 1.0
"""Longest single wait on the store in seconds, after which everything is looked at again."""
_POLL_FIRST, _POLL_LONGEST = 0.005, 0.5
_RETRY_FOR = 30.0
"""Seconds for which a store that is down is asked again before waiting callers are told."""


class _Waiter:
    """One waiting thread and the ids it still waits for."""

    __slots__ = ("condition", "found", "ids")

    def __init__(self, ids: set[str], lock: threading.Lock) -> None:
        self.ids = ids
        self.found: list[Record] = []
        self.condition = threading.Condition(lock)


class ResultWaiter:
    """Shares one wait on a result store; one per application and process."""

    def __init__(self, store: ResultStore) -> None:
        self._store = store
        self._pusher = store if isinstance(store, SupportsWait) else None
        self._lock = threading.Lock()
        self._waiters: list[_Waiter] = []
        self._futures: dict[str, list[tuple[asyncio.Future[Record], asyncio.AbstractEventLoop]]] = {}
        self._leader: Any = None
        self._thread: threading.Thread | None = None
        self._thread_wake = threading.Condition(self._lock)
        self._pid = os.getpid()
        self._closed = False
        self._down_since: float | None = None
        self._nudge = threading.Event()
        self._closing = threading.Event()

    # --------------------------------------------------------------------------------------------------- threads

    def wait_one(self, task_id: str, timeout: float | None) -> Record | None:
        """Return the terminal record of one id, None when it did not come within ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        return next(self.wait_many({task_id}, deadline), None)

    def wait_many(self, ids: set[str], deadline: float | None) -> Iterator[Record]:
        """Yield terminal records as they come, until all ids have one or the deadline (monotonic) has passed.

        Raises:
            StoreError: the store stayed down.
        """
        waiter = _Waiter(set(ids), self._lock)
        with self._lock:
            self._waiters.append(waiter)
            if self._leader is not None:
                self._wake_store()
        try:
            while waiter.ids or waiter.found:
                yield from self._next(waiter, deadline)
                if waiter.ids and deadline is not None and time.monotonic() >= deadline:
                    yield from self._last_look(waiter.ids)
                    return
        finally:
            with self._lock:
                self._waiters.remove(waiter)
                self._appoint()

    def _last_look(self, ids: set[str]) -> list[Record]:
        """Return what is there by now: who leads may not have asked for these ids yet."""
        try:
            return [r for r in self._store.get(list(ids)) if r is not None and r.terminal]
        except StoreError as error:
            if not error.retryable:
                raise
            return []

    def _next(self, waiter: _Waiter, deadline: float | None) -> list[Record]:
        with self._lock:
            if waiter.found:
                found, waiter.found = waiter.found, []
                return found
            if self._leader is None:
                self._leader = waiter
            if self._leader is not waiter:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                waiter.condition.wait(_SLICE if left is None else min(_SLICE, left))
                found, waiter.found = waiter.found, []
                return found
        try:
            left = _SLICE if deadline is None else max(0.0, deadline - time.monotonic())
            self._lead(min(_SLICE, left))
        finally:
            with self._lock:
                if self._leader is waiter:
                    self._leader = None
        with self._lock:
            found, waiter.found = waiter.found, []
            return found

    def _appoint(self) -> None:
        """Let somebody who waits become the leader; the lock is held."""
        if self._leader is None:
            if self._waiters:
                self._waiters[0].condition.notify()
            elif self._futures:
                self._thread_wake.notify()

    # ------------------------------------------------------------------------------------------------ coroutines

    def subscribe(self, task_id: str, loop: asyncio.AbstractEventLoop) -> asyncio.Future[Record]:
        """Return a future of one id's terminal record; ``unsubscribe`` it in the end."""
        future: asyncio.Future[Record] = loop.create_future()
        with self._lock:
            self._futures.setdefault(task_id, []).append((future, loop))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="taskq-results", daemon=True)
                self._thread.start()
            elif self._leader is None:
                self._thread_wake.notify()
            else:
                self._wake_store()
        return future

    def unsubscribe(self, task_id: str, future: asyncio.Future[Record]) -> None:
        """Forget a future."""
        with self._lock:
            waiting = self._futures.get(task_id)
            if waiting is not None:
                waiting[:] = [entry for entry in waiting if entry[0] is not future]
                if not waiting:
                    del self._futures[task_id]

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._closed and (self._leader is not None or not self._futures):
                    self._thread_wake.wait(_SLICE)
                if self._closed:
                    return
                self._leader = self
            try:
                self._lead(_SLICE)
            except Exception as error:  # whatever it is, those who wait must hear of it
                self._fail_futures(error)
            finally:
                with self._lock:
                    self._leader = None
                    self._appoint_thread()

    def _appoint_thread(self) -> None:
        if self._waiters:
            self._waiters[0].condition.notify()

    def _fail_futures(self, error: BaseException) -> None:
        with self._lock:
            entries = [entry for waiting in self._futures.values() for entry in waiting]
            self._futures.clear()
        for future, loop in entries:
            _call_loop(loop, _set_error, [future], error)

    # --------------------------------------------------------------------------------------------------- leading

    def _lead(self, timeout: float) -> None:
        """Wait on the store once for everybody and hand out what it has; called by the leader only."""
        with self._lock:
            ids = {i for waiter in self._waiters for i in waiter.ids} | set(self._futures)
        if not ids:
            return
        records = self._ask(list(ids), timeout)
        if not records:
            return
        ready: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Record], Record]]] = {}
        with self._lock:
            for record in records:
                for waiter in self._waiters:
                    if record.id in waiter.ids:
                        waiter.ids.discard(record.id)
                        waiter.found.append(record)
                        if waiter is not self._leader:
                            waiter.condition.notify()
                for future, loop in self._futures.pop(record.id, ()):
                    ready.setdefault(loop, []).append((future, record))
        for loop, pairs in ready.items():
            _call_loop(loop, _set_results, pairs)

    def _ask(self, ids: list[str], timeout: float) -> list[Record]:
        end, pause = time.monotonic() + timeout, _POLL_FIRST
        while True:
            try:
                left = max(0.0, end - time.monotonic())
                found = list(self._pusher.wait(ids, left)) if self._pusher is not None else self._poll(ids, left)
                self._down_since = None
                return found
            except StoreError as error:
                now = time.monotonic()
                if self._down_since is None:
                    self._down_since = now
                if not error.retryable or now - self._down_since > _RETRY_FOR:
                    raise
                if now >= end:
                    return []  # whoever waits no longer than this must not wait for the store
                if self._closing.wait(min(pause, end - now)):
                    return []
                pause = min(pause * 2, _POLL_LONGEST)

    def _poll(self, ids: list[str], timeout: float) -> list[Record]:
        end, pause = time.monotonic() + timeout, _POLL_FIRST
        while True:
            found = [r for r in self._store.get(ids) if r is not None and r.terminal]
            left = end - time.monotonic()
            if found or left <= 0:
                return found
            if self._nudge.wait(min(pause, left)):
                self._nudge.clear()
                return []  # there are more ids to ask for
            pause = min(pause * 2, _POLL_LONGEST)

    def _wake_store(self) -> None:
        if self._pusher is not None:
            self._pusher.wake()
        else:
            self._nudge.set()

    def close(self) -> None:
        """Stop the background thread."""
        with self._lock:
            self._closed = True
            self._closing.set()
            thread = self._thread
            self._thread_wake.notify()
            self._wake_store()
        if thread is not None and self._pid == os.getpid():
            thread.join(timeout=5)


def _call_loop(loop: asyncio.AbstractEventLoop, function: Any, *args: Any) -> None:
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        return  # the loop is closed: nobody waits any more


def _set_results(pairs: list[tuple[asyncio.Future[Record], Record]]) -> None:
    for future, record in pairs:
        if not future.done():
            future.set_result(record)


def _set_error(futures: list[asyncio.Future[Record]], error: BaseException) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
