"""The asynchronous side of sending: one thread for all coroutines of the process, which sends what has gathered."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from taskq.errors import TaskQError
from taskq.message import Outbound, SendFailure

if TYPE_CHECKING:
    import asyncio

SendAll = Callable[[Sequence[Outbound], float | None], Sequence[SendFailure]]
_BATCH = 1000


class _Call:
    __slots__ = ("batch", "future", "loop", "timeout")

    def __init__(self, batch: Sequence[Outbound], timeout: float | None, loop: asyncio.AbstractEventLoop) -> None:
        self.batch = batch
        self.timeout = timeout
        self.loop = loop
        self.future: asyncio.Future[Sequence[SendFailure]] = loop.create_future()


class AsyncSender:
    """Sends batches on a thread of its own; starts it at first use, again after a fork."""

    def __init__(self, send_all: SendAll) -> None:
        self._send_all = send_all
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()

    async def send(self, outbound: Outbound, timeout: float | None) -> SendFailure | None:
        """Send one message; return its failure, None when it was accepted."""
        failures = await self.send_many((outbound,), timeout)
        return failures[0] if failures else None

    async def send_many(self, batch: Sequence[Outbound], timeout: float | None) -> Sequence[SendFailure]:
        """Send messages; return the failures."""
        if not batch:
            return ()
        import asyncio  # not before a coroutine sends

        self._ensure_thread()
        call = _Call(batch, timeout, asyncio.get_running_loop())
        self._calls.put(call)
        return await call.future

    def close(self) -> None:
        """Send what is waiting, then stop the thread."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None and self._pid == os.getpid():
            self._calls.put(None)
            thread.join(timeout=10)

    def _ensure_thread(self) -> None:
        if self._thread is not None and self._pid == os.getpid():
            return
        with self._lock:
            if self._thread is None or self._pid != os.getpid():
                self._calls = queue.SimpleQueue()
                self._pid = os.getpid()
                self._thread = threading.Thread(target=self._run, args=(self._calls,), name="taskq-sender", daemon=True)
                self._thread.start()

    def _run(self, calls: queue.SimpleQueue[_Call | None]) -> None:
        while True:
            first = calls.get()
            if first is None:
                return
            gathered, size, last = [first], len(first.batch), False
            # calls with a timeout of their own are sent by themselves, so that the timeout means what it says
            while size < _BATCH and first.timeout is None:
                try:
                    call = calls.get_nowait()
                except queue.Empty:
                    break
                if call is None:
                    last = True
                    break
                if call.timeout is not None:
                    self._send(gathered)
                    gathered = [call]
                    break
                gathered.append(call)
                size += len(call.batch)
            self._send(gathered)
            if last:
                return

    def _send(self, calls: Sequence[_Call]) -> None:
        batch = [outbound for call in calls for outbound in call.batch]
        try:
            failures = self._send_all(batch, calls[0].timeout)
        except BaseException as error:
            if len(calls) > 1 and isinstance(error, TaskQError) and not getattr(error, "retryable", False):
                # nothing was sent because of one of them: each finds out for itself which
                for call in calls:
                    self._send([call])
            else:
                self._answer([(call, error) for call in calls])
            return
        answers: list[tuple[_Call, Any]] = []
        by_index = {f.index: f for f in failures}
        start = 0
        for call in calls:
            own = [
                SendFailure(i - start, by_index[i].reason, by_index[i].maybe_sent, by_index[i].retryable)
                for i in range(start, start + len(call.batch))
                if i in by_index
            ]
            answers.append((call, own))
            start += len(call.batch)
        self._answer(answers)

    @staticmethod
    def _answer(answers: Sequence[tuple[_Call, Any]]) -> None:
        """Wake each event loop once for all its calls."""
        loops: dict[asyncio.AbstractEventLoop, list[tuple[_Call, Any]]] = {}
        for answer in answers:
            loops.setdefault(answer[0].loop, []).append(answer)
        for loop, own in loops.items():
            try:
                loop.call_soon_threadsafe(_resolve, own)
            except RuntimeError:
                continue  # the loop is closed: nobody waits any more


def _resolve(answers: Sequence[tuple[_Call, Any]]) -> None:
    for call, answer in answers:
        if call.future.done():
            continue
        if isinstance(answer, BaseException):
            call.future.set_exception(answer)
        else:
            call.future.set_result(answer)
