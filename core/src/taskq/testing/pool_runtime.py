"""The application side of the pool suite: jobs that say in files what they do, so that processes can be watched, too.

Child processes import this module, hence neither pytest nor the suite here.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any, Final

from taskq.errors import SoftTimeLimitExceeded, TaskCancelled, TaskInterrupted
from taskq.message import DEAD, DONE, RELEASED, Job, Outbound, Outcome
from taskq.spi import TaskLimits

POLL_S = 0.005
GIVE_UP_S = 30.0
"""A job that waits for its test gives up after this time, so that a failed test leaves nothing behind."""
HEAD: Final = b"head:"
"""What stands before the body of each job's payload."""

_seen: ContextVar[int] = ContextVar("_seen", default=0)
_kept: list[bytearray] = []


class _Coroutine:
    """An ``async def`` task on its thread's event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Outcome]) -> None:
        self.loop = loop
        self.task = task
        self.error: BaseException | None = None


class KitRuntime:
    """Runs ``[action, *arguments]``; picklable, the same in every process.

    Args:
        folder: where jobs leave their traces.
        limits: soft and hard limit of each task name, in seconds.
        asynchronous: whether the tasks are ``async def``.
        owner: the process of the test.
    """

    def __init__(
        self,
        folder: Path,
        limits: Mapping[str, tuple[float | None, float | None]] | None = None,
        asynchronous: bool = False,
        owner: int | None = None,
    ) -> None:
        self.folder = folder
        self._owner = os.getpid() if owner is None else owner
        self._limits = dict(limits or {})
        self._asynchronous = asynchronous
        self._call: Callable[[bytes], bytes] | None = None
        self._coroutines: dict[int, _Coroutine] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self._limits, self._asynchronous, self._owner)

    # ----------------------------------------------------------------------------------------- taskq.spi.Runtime

    def execute(self, job: Job) -> Outcome:
        return copy_context().run(self._run_coroutine if self._asynchronous else self._run, job)

    async def execute_async(self, job: Job) -> Outcome:
        if self._asynchronous:
            return await self._run_async(job)
        return await asyncio.to_thread(self._run, job)

    def is_async(self, task: str) -> bool:
        return self._asynchronous

    def limits(self, task: str) -> TaskLimits:
        return TaskLimits(*self._limits.get(task, (None, None)))

    def tasks(self) -> list[str]:
        return ["kit.task", *self._limits]

    def interrupt(self, error: BaseException, thread: int | None = None) -> bool:
        running = self._coroutines.get(threading.get_ident() if thread is None else thread)
        if running is None:
            if thread is None and not self._asynchronous:
                raise error
            return False
        if thread is None and asyncio.current_task(running.loop) is running.task:
            raise error
        running.error = error
        try:
            running.loop.call_soon_threadsafe(running.task.cancel)
        except RuntimeError:  # it has ended, and its loop is closed
            return False
        return True

    def start(self, call: Callable[[bytes], bytes] | None = None) -> None:
        self._call = call
        if call is not None:  # the kernel's runtime asks at once, too
            self.note("hello", call(b"hello").decode())
        self.note("start", str(os.getpid()))

    def stop(self) -> None:
        self.note("stop", str(os.getpid()))

    # ----------------------------------------------------------------------------------------- traces

    def note(self, name: str, line: str) -> None:
        """Leave a trace."""
        # One small write with O_APPEND is not torn by other threads or processes.
        with (self.folder / name).open("a") as file:
            file.write(line + "\n")

    def lines(self, name: str) -> list[str]:
        """Return the traces of one kind."""
        try:
            return (self.folder / name).read_text().splitlines()
        except FileNotFoundError:
            return []

    # ----------------------------------------------------------------------------------------- running, as the kernel

    def _run(self, job: Job) -> Outcome:
        action, arguments = self._read(job)
        if action in _IN_THE_RUNTIME:  # what is raised here was not raised by a task
            return getattr(self, f"_{action}")(job, *arguments)  # type: ignore[no-any-return]
        try:
            return self._outcome(job, getattr(self, f"_{action}")(job, *arguments))
        except BaseException as error:
            self._note_raised(job, error)
            return self._failed(error)
        finally:
            self.note("ended", str(job.key))

    async def _run_async(self, job: Job) -> Outcome:
        action, arguments = self._read(job)
        if action in _IN_THE_RUNTIME:
            return getattr(self, f"_{action}")(job, *arguments)  # type: ignore[no-any-return]
        try:
            if action in _ASYNCHRONOUS:
                return self._outcome(job, await getattr(self, f"_{action}_async")(job, *arguments))
            return self._outcome(job, getattr(self, f"_{action}")(job, *arguments))
        except asyncio.CancelledError as error:
            self._note_raised(job, error)
            raise
        except BaseException as error:
            self._note_raised(job, error)
            return self._failed(error)
        finally:
            self.note("ended", str(job.key))

    def _run_coroutine(self, job: Job) -> Outcome:
        loop = asyncio.new_event_loop()
        running = _Coroutine(loop, loop.create_task(self._run_async(job)))
        thread = threading.get_ident()
        self._coroutines[thread] = running
        try:
            return loop.run_until_complete(running.task)
        except asyncio.CancelledError:
            if running.error is None:
                raise
            return self._failed(running.error)
        except BaseException:
            running.task.cancel()
            with suppress(BaseException):
                loop.run_until_complete(running.task)
            raise
        finally:
            del self._coroutines[thread]
            loop.close()

    def _read(self, job: Job) -> tuple[str, list[Any]]:
        action, *arguments = json.loads(job.payload[job.body :])
        self.note("runs", f"{job.key} {os.getpid()} {threading.get_ident()}")
        return action, arguments

    def _outcome(self, job: Job, result: Outcome | str | None) -> Outcome:
        if isinstance(result, Outcome):
            return result
        return Outcome(DONE, result or "SUCCESS", result=str(job.key).encode())

    def _failed(self, error: BaseException) -> Outcome:
        if isinstance(error, TaskInterrupted):
            raise error
        return Outcome(DONE, "REVOKED" if isinstance(error, TaskCancelled) else "FAILURE", reason=repr(error))

    def _note_raised(self, job: Job, error: BaseException) -> None:
        self.note("saw", f"{job.key} {type(error).__name__}")

    # ----------------------------------------------------------------------------------------- what runtimes do

    def _error(self, job: Job) -> Outcome:
        raise ValueError("a runtime that breaks its contract")

    def _outside(self, job: Job, gate: str) -> Outcome:
        """Wait in the runtime, not in the task."""
        self._wait(job, gate)
        return self._outcome(job, None)

    # ----------------------------------------------------------------------------------------- what jobs do

    def _noop(self, job: Job) -> None:
        pass

    def _sleep(self, job: Job, seconds: float) -> None:
        time.sleep(seconds)

    async def _sleep_async(self, job: Job, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def is_open(self, gate: str) -> bool:
        """Whether the test has opened a gate."""
        return (self.folder / gate).exists() or (self.folder / "all").exists()

    def _wait(self, job: Job, gate: str) -> None:
        """Wait until the test opens a gate."""
        deadline = time.monotonic() + GIVE_UP_S
        while not self.is_open(gate) and time.monotonic() < deadline:
            time.sleep(POLL_S)

    async def _wait_async(self, job: Job, gate: str) -> None:
        deadline = time.monotonic() + GIVE_UP_S
        while not self.is_open(gate) and time.monotonic() < deadline:  # noqa: ASYNC110  a file, not an event
            await asyncio.sleep(POLL_S)

    def _stubborn(self, job: Job, gate: str) -> None:
        """Wait until the test opens a gate, whatever is raised meanwhile."""
        deadline = time.monotonic() + GIVE_UP_S
        while True:
            try:  # all of it: what is raised may strike anywhere
                if self.is_open(gate) or time.monotonic() > deadline:
                    return
                time.sleep(POLL_S)
            except BaseException as error:
                self._note_raised(job, error)

    async def _stubborn_async(self, job: Job, gate: str) -> None:
        deadline = time.monotonic() + GIVE_UP_S
        while True:
            try:  # all of it: what is raised may strike anywhere
                if self.is_open(gate) or time.monotonic() > deadline:
                    return
                await asyncio.sleep(POLL_S)
            except BaseException as error:
                self._note_raised(job, error)

    def _until_limit(self, job: Job, seconds: float) -> str:
        """Run until the soft limit strikes, or ``seconds`` have passed."""
        deadline = time.monotonic() + seconds
        try:
            while time.monotonic() < deadline:
                time.sleep(POLL_S)
        except SoftTimeLimitExceeded:
            return "LIMIT"
        return "SUCCESS"

    async def _until_limit_async(self, job: Job, seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        except (SoftTimeLimitExceeded, asyncio.CancelledError):
            return "LIMIT"
        return "SUCCESS"

    def _interrupted(self, job: Job) -> None:
        raise TaskInterrupted

    def _interrupted_at(self, job: Job, gate: str) -> None:
        self._wait(job, gate)
        raise TaskInterrupted

    def _exit(self, job: Job) -> str:
        """End the process, unless it is the test's own: then the pool is not isolated."""
        if os.getpid() != self._owner:
            os._exit(7)
        return "NOT ISOLATED"

    def _leave(self, job: Job, status: Any) -> None:
        """Do what a script does at its end."""
        sys.exit(status)

    def _print(self, job: Job, text: str) -> None:
        print(text)  # noqa: T201
        print(text.upper(), file=sys.stderr)  # noqa: T201

    def _facts(self, job: Job, ballast: str = "") -> Outcome:
        """Return what the runtime was given besides the arguments."""
        facts = [job.payload[: job.body].decode(), job.task, job.queue, job.deliveries]
        return Outcome(DONE, "SUCCESS", result=json.dumps(facts).encode())

    def _special(self, job: Job, which: str) -> Outcome:
        return special(which)

    def _big(self, job: Job, size: int) -> Outcome:
        return Outcome(DONE, "SUCCESS", result=str(job.key).encode() * (size // len(str(job.key))))

    def _remember(self, job: Job) -> str:
        """Set a context variable that no other job may see."""
        found = _seen.get()
        _seen.set(job.key)
        return f"SAW {found}" if found else "SUCCESS"

    async def _remember_async(self, job: Job) -> str:
        await asyncio.sleep(0)
        return self._remember(job)

    def _grow(self, job: Job, megabytes: int) -> None:
        """Leak memory, unless it were the test's own."""
        if os.getpid() != self._owner:
            _kept.append(bytearray(b"x" * (megabytes << 20)))

    def _ask(self, job: Job, size: int, count: int, threads: int = 1) -> str:
        """Ask the worker's process, on some threads at the same time."""
        if self._call is None:
            return "NO CALL"
        call, wrong = self._call, []

        def ask(thread: int) -> None:
            for number in range(count):
                question = f"{job.key} {thread} {number} ".encode().ljust(size, b"?")
                if call(question) != b"answer to " + question:
                    wrong.append(number)

        others = [threading.Thread(target=ask, args=(number,)) for number in range(1, threads)]
        for other in others:
            other.start()
        ask(0)
        for other in others:
            other.join()
        return "WRONG ANSWER" if wrong else "SUCCESS"


_IN_THE_RUNTIME = frozenset({"error", "outside"})
_ASYNCHRONOUS = frozenset({"sleep", "wait", "stubborn", "until_limit", "remember"})


def special(which: str) -> Outcome:
    """Return an outcome that is easily damaged on its way."""
    follow_ups = (
        Outbound(id="1", queue="other", payload=bytes(range(256)), priority=9, delay=1.5, group="g"),
        Outbound(id="2", queue="ü", payload=b""),
    )
    return {
        "dead": Outcome(DEAD, "DEAD", b"", follow_ups, "reason: \0 ü \U0001f980", "line 1\nline 2\n"),
        "retry": Outcome(DONE, "RETRY", None, follow_ups[:1], "", None, terminal=False),
        "released": Outcome(RELEASED, "QUEUED", terminal=False),
        "not text": Outcome(DONE, "FAILURE", b"\xff", (), "file \udcff", "in \ud800"),
    }[which]


def encode(action: str, *arguments: Any) -> bytes:
    """Return the payload of a job; its body begins after HEAD."""
    return HEAD + json.dumps([action, *arguments]).encode()
