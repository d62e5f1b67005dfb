"""The application side of the pool suite: jobs that say in files what they do, so that processes can be watched, too.

Child processes import this module, hence neither pytest nor the suite here.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from taskq.errors import SoftTimeLimitExceeded, TaskInterrupted
from taskq.message import DONE, Job, Outcome
from taskq.spi import TaskLimits

POLL_S = 0.005
GIVE_UP_S = 30.0
"""A job that waits for its test gives up after this time, so that a failed test leaves nothing behind."""


class KitRuntime:
    """Runs ``[action, *arguments]``; picklable, the same in every process.

    Args:
        folder: where jobs leave their traces.
        limits: soft and hard limit of each task name, in seconds.
        asynchronous: whether the tasks are ``async def``.
    """

    def __init__(
        self,
        folder: Path,
        limits: Mapping[str, tuple[float | None, float | None]] | None = None,
        *,
        asynchronous: bool = False,
    ) -> None:
        self.folder = folder
        self._owner = os.getpid()
        self._limits = dict(limits or {})
        self._asynchronous = asynchronous
        self._call: Callable[[bytes], bytes] | None = None

    # ----------------------------------------------------------------------------------------- taskq.spi.Runtime

    def execute(self, job: Job) -> Outcome:
        if self._asynchronous:
            return asyncio.run(self._run_async(job))
        return self._run(job)

    async def execute_async(self, job: Job) -> Outcome:
        if self._asynchronous:
            return await self._run_async(job)
        return await asyncio.to_thread(self._run, job)

    def is_async(self, task: str) -> bool:
        return self._asynchronous

    def limits(self, task: str) -> TaskLimits:
        return TaskLimits(*self._limits.get(task, (None, None)))

    def interrupt(self, error: BaseException, thread: int | None = None) -> bool:
        if thread is None:
            raise error
        return False

    def start(self, call: Callable[[bytes], bytes] | None = None) -> None:
        self._call = call
        self._append("start", str(os.getpid()))

    def stop(self) -> None:
        self._append("stop", str(os.getpid()))

    # ----------------------------------------------------------------------------------------- traces

    def _append(self, name: str, line: str) -> None:
        # One small write with O_APPEND is not torn by other threads or processes.
        with (self.folder / name).open("a") as file:
            file.write(line + "\n")

    def lines(self, name: str) -> list[str]:
        try:
            return (self.folder / name).read_text().splitlines()
        except FileNotFoundError:
            return []

    # ----------------------------------------------------------------------------------------- what jobs do

    def _run(self, job: Job) -> Outcome:
        action, *arguments = json.loads(job.payload[job.body :])
        self._append("runs", f"{job.key} {os.getpid()} {threading.get_ident()}")
        state = getattr(self, f"_{action}")(job.key, *arguments)
        self._append("ended", str(job.key))
        return Outcome(DONE, state or "SUCCESS", result=str(job.key).encode())

    async def _run_async(self, job: Job) -> Outcome:
        action, *arguments = json.loads(job.payload[job.body :])
        if action in ("wait", "sleep"):
            self._append("runs", f"{job.key} {os.getpid()} {threading.get_ident()}")
            await getattr(self, f"_{action}_async")(job.key, *arguments)
            self._append("ended", str(job.key))
            return Outcome(DONE, "SUCCESS", result=str(job.key).encode())
        return self._run(job)

    def _noop(self, key: int) -> None:
        pass

    def _sleep(self, key: int, seconds: float) -> None:
        time.sleep(seconds)

    async def _sleep_async(self, key: int, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def _wait(self, key: int, gate: str) -> None:
        """Wait until the test opens a gate."""
        deadline = time.monotonic() + GIVE_UP_S
        while not (self.folder / gate).exists() and not (self.folder / "all").exists():
            if time.monotonic() > deadline:
                return
            time.sleep(POLL_S)

    async def _wait_async(self, key: int, gate: str) -> None:
        deadline = time.monotonic() + GIVE_UP_S
        while not (self.folder / gate).exists() and not (self.folder / "all").exists():
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(POLL_S)

    def _error(self, key: int) -> None:
        raise ValueError("a runtime that breaks its contract")

    def _interrupted(self, key: int) -> None:
        raise TaskInterrupted

    def _interrupted_at(self, key: int, gate: str) -> None:
        self._wait(key, gate)
        raise TaskInterrupted

    def _exit(self, key: int) -> str:
        """End the process, unless it is the test's own: then the pool is not isolated."""
        if os.getpid() != self._owner:
            os._exit(7)
        return "NOT ISOLATED"

    def _until_limit(self, key: int, seconds: float) -> str:
        """Run until the soft limit strikes, or ``seconds`` have passed."""
        deadline = time.monotonic() + seconds
        try:
            while time.monotonic() < deadline:
                time.sleep(POLL_S)
        except SoftTimeLimitExceeded:
            return "LIMIT"
        return "SUCCESS"

    def _past_limits(self, key: int, seconds: float) -> None:
        """Run for ``seconds``, whatever soft limits say."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                time.sleep(POLL_S)
            except SoftTimeLimitExceeded:
                pass


def encode(action: str, *arguments: Any) -> bytes:
    """Return the payload of a job."""
    return json.dumps([action, *arguments]).encode()
