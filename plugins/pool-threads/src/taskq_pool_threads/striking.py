"""Ending what runs: an exception that the interpreter raises on its thread.

That a strike never hits the next job is ensured without a lock per job: who strikes notes so on the thread and then
looks whether the job is still there; who ends a job takes it off the thread and then looks for the note. One of the two
sees the other.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from time import perf_counter
from typing import Final

from taskq.errors import SoftTimeLimitExceeded
from taskq.spi import Job, Runtime
from taskq_pool_threads.thread import PoolThread

_set_async_exc: Final = ctypes.pythonapi.PyThreadState_SetAsyncExc


class Striking:
    """Strikes at the jobs of a pool's threads, for whoever asks and for their soft limits."""

    def __init__(self) -> None:
        self._runtime: Runtime
        self._threads: set[PoolThread] = set()
        self._strikes = threading.Lock()  # held while a thread is struck, and while it calms down
        self._again: deque[tuple[PoolThread, Job, type[BaseException]]] = deque()
        self._soft: dict[str, float | None] = {}

    def _call_watcher(self) -> None:
        """Have ``_keep_limits`` called soon."""
        raise NotImplementedError

    def _strike(self, thread: PoolThread, job: Job, error: type[BaseException]) -> bool:
        """Raise an error in a job, once; whether it still ran."""
        with self._strikes:
            if thread.told[0] is not job:
                thread.told = (job, set())
            elif error in thread.told[1]:
                return thread.job is job
            thread.struck = True
            if thread.job is not job:
                return False
            if self._runtime.is_async(job.task):
                # never by an exception out of the blue: it could leave the thread's event loop in any state
                text = f"task {job.task} ran past its soft limit" if error is SoftTimeLimitExceeded else ""
                if not self._runtime.interrupt(error(text), thread.ident):
                    self._again.append((thread, job, error))  # its coroutine is not yet there, or has just ended
                    self._call_watcher()
                    return True
            else:
                raise_in(thread.ident, error)
            thread.told[1].add(error)
        self._call_watcher()  # the job may have been calling it when it was struck
        return True

    def _soft_limit(self, task: str) -> float | None:
        try:
            return self._soft[task]
        except KeyError:
            soft = self._soft[task] = self._runtime.limits(task).soft
            return soft

    def _keep_limits(self) -> float | None:
        """Strike what runs past its soft limit, and what could not be struck before.

        Return the seconds until the next limit passes, None without any.
        """
        nearest = None
        for _ in range(len(self._again)):
            self._strike(*self._again.popleft())
        for thread in list(self._threads):
            job = thread.job
            if job is None or (soft := self._soft_limit(job.task)) is None:
                continue
            left = thread.since + soft - perf_counter()
            if left <= 0.0:
                self._strike(thread, job, SoftTimeLimitExceeded)
            elif nearest is None or left < nearest:
                nearest = left
        return nearest

    def _calm(self, me: PoolThread) -> None:
        """Make sure that nothing is raised on this thread any more that was meant for the job before."""
        with self._strikes:
            raise_in(me.ident, None)
            me.struck = False


def raise_in(thread: int | None, error: type[BaseException] | None) -> None:
    """Raise an error on the thread with this ``threading.get_ident``, soon; None takes back what is not yet raised.

    Only CPython can, and only where Python code runs.
    """
    _set_async_exc(ctypes.c_ulong(thread or 0), None if error is None else ctypes.py_object(error))
