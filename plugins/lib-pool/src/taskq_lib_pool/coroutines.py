"""``async def`` tasks beside greenlets: on an event loop, on a thread of the system that greenlets do not share.

A thread of the system can run one event loop at a time, and a loop must not see greenlets change in the middle of a
step; so all coroutines run on one thread of their own. They come back by a pair of sockets, on which a greenlet waits.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any

from taskq.spi import Job, Outcome, Runtime


class Call:
    """A coroutine's run, seen from the greenlet that waits for it."""

    def __init__(self, job: Job | None) -> None:
        self.job = job
        self.outcome: Outcome | None = None
        self.error: BaseException | None = None
        self.task: asyncio.Task[Outcome] | None = None
        self.coroutine: Any = None
        self.ended = threading.Event()
        """Set in the greenlets' thread."""


class Coroutines:
    """One event loop on a thread of the system, made when the first coroutine comes.

    Args:
        runtime: runs the tasks.
        in_thread: runs a function on a thread of the system while other greenlets run.
        spawn: runs a function on a new greenlet.
    """

    def __init__(
        self,
        runtime: Runtime,
        in_thread: Callable[[Callable[[], None]], None],
        spawn: Callable[[Callable[[], None]], Any],
    ) -> None:
        self._runtime = runtime
        self._loop: asyncio.AbstractEventLoop
        self._ended: deque[Call] = deque()
        self._here, self._there = socket.socketpair()
        self._signalled = False
        self._closing = False
        self._started = Call(None)
        self.closed = threading.Event()
        spawn(lambda: in_thread(self._live))
        spawn(self._receive)

    # ----------------------------------------------------------------------------------------------- for greenlets

    def ready(self) -> None:
        """Wait until there is a loop."""
        self._started.ended.wait()

    def run(self, call: Call) -> Outcome:
        """Run a coroutine and wait for it. Raises what the runtime raises, and CancelledError after ``cancel``."""
        self._loop.call_soon_threadsafe(self._begin, call)
        call.ended.wait()
        if call.error is not None:
            raise call.error
        assert call.outcome is not None
        return call.outcome

    def cancel(self, call: Call, reason: str) -> None:
        """Cancel a coroutine where it awaits."""
        if self._started.ended.is_set() and not self._closing:
            self._loop.call_soon_threadsafe(self._cancel, call, reason)

    def stop(self) -> None:
        """End the loop and what is left on it."""
        self.ready()
        self._closing = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self.closed.wait(2.0)

    def _receive(self) -> None:
        """Wake the greenlets whose coroutines have ended."""
        while self._here.recv(1):
            self._signalled = False
            while self._ended:
                self._ended.popleft().ended.set()
        self._here.close()
        self.closed.set()

    # ------------------------------------------------------------------------------------------------- for the loop

    def _live(self) -> None:
        loop = self._loop = asyncio.new_event_loop()
        try:
            self._send(self._started)
            loop.run_forever()
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.wait(left, timeout=0.5))
            for task in left:
                task._log_destroy_pending = False  # type: ignore[attr-defined]  # it was reported already
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()
            self._there.close()

    def _begin(self, call: Call) -> None:
        assert call.job is not None
        call.coroutine = self._runtime.execute_async(call.job)
        call.task = self._loop.create_task(call.coroutine, context=Context())
        call.task.add_done_callback(lambda task: self._done(call, task))

    def _cancel(self, call: Call, reason: str) -> None:
        if call.task is not None:
            call.task.cancel(reason)

    def _done(self, call: Call, task: asyncio.Task[Outcome]) -> None:
        try:
            call.outcome = task.result()
        except BaseException as error:
            call.error = error
        self._send(call)

    def _send(self, call: Call) -> None:
        self._ended.append(call)
        if not self._signalled:
            self._signalled = True
            self._there.send(b"x")
