"""A child as its parent knows it: what it was given, what has come back, and what its board says."""

from __future__ import annotations

import enum
import os
import signal
from collections import deque
from collections.abc import Sequence
from time import monotonic

from taskq.errors import TaskQError
from taskq.spi import Job
from taskq_pool_prefork.processes import kill_group
from taskq_pool_prefork.protocol import (
    DROP,
    EXIT,
    PING,
    REQUESTED,
    SINCE,
    STACKS,
    STAGED,
    STARTED,
    STOP,
    TAKEN,
    TARGET,
    WHY,
    Board,
    Channel,
    Control,
    Ended,
    encoded_frame,
    frame,
    jobs_frame,
)


class State(enum.Enum):
    """A child's life."""

    STARTING = 1
    READY = 2
    LEAVING = 3
    """It takes no more jobs and runs its stop hooks."""


class Member:
    """One child process. The caller holds the pool's lock."""

    def __init__(self, number: int, data: Channel, control: Channel, board: Board, budget: int | None) -> None:
        self.number = number
        self.pid = 0
        self.data = data
        self.control = control
        self.board = board
        self.state = State.STARTING
        self.born = monotonic()
        self.jobs: deque[Job] = deque()
        """Sent and not reported as ended, in order."""
        self.received = 0
        """How many jobs have ended; the index of the first in ``jobs``."""
        self.told = 0
        """How many jobs have been reported as started."""
        self.budget = budget
        """Jobs that it may still be given, where a child runs a limited number."""
        self.retiring = False
        self.sent_at = 0.0
        self.left_at = 0.0
        self.epoch = 0
        self.recalled_at: float | None = None
        """Since when it is being recalled from, while what it has started is not certain."""
        self.answered = True
        """Whether it has taken note of the last recall."""
        self.seen_stage = 0
        self.verdict: tuple[int, TaskQError] | None = None
        """The job for which it was killed, and the error for it."""
        self.reason = ""
        """Why it was killed, where that was no single job's doing."""
        self.killed = False
        self.killed_at = 0.0
        self.lost_at: float | None = None
        """Since when its sockets are closed."""
        self.abandoned = False
        """Whether nobody asks any more what becomes of its jobs."""
        self.asked_at: float | None = None
        """Since when it owes an answer."""
        self.asked = 0
        self.pinged_at = 0.0
        self.reported = False
        self.requested_at = 0.0

    # --------------------------------------------------------------------------------------------------- its jobs

    @property
    def open(self) -> bool:
        """Whether it may be given jobs."""
        return (
            self.state is State.READY
            and self.recalled_at is None
            and self.answered
            and not self.retiring
            and not self.killed
            and self.lost_at is None
            and not self.data.pending
            and self.budget != 0
        )

    def give(self, jobs: Sequence[Job], now: float) -> None:
        """Send it jobs."""
        self.jobs.extend(jobs)
        if self.budget is not None:
            self.budget -= len(jobs)
        self.sent_at = now
        self.data.send(jobs_frame(jobs))

    def started(self) -> int:
        """Return how many jobs it has started, as far as it is known."""
        return self.board.slots[STARTED]

    def age(self, now: float) -> float:
        """Return for how long its last job runs."""
        return now - self.board.times[SINCE]

    def running(self) -> Job | None:
        """Return the job that it runs now."""
        at = self.started() - 1 - self.received
        return self.jobs[at] if 0 <= at < len(self.jobs) and self.board.ended(self.received) <= at else None

    def unstarted(self) -> int:
        """Return how many jobs it holds that it has not started."""
        return len(self.jobs) - max(0, self.started() - self.received)

    def note_stage(self) -> bool:
        """Note which ends stand on the board, for ``take_staged`` a moment later; whether there are new ones."""
        self.seen_stage = self.board.slots[STAGED]
        return self.board.ended(self.received) > 0

    def take_staged(self) -> list[Ended]:
        """Return the ends that stood on the board at the last ``note_stage``."""
        return self.board.staged(self.received, self.seen_stage)

    def has(self, count: int) -> None:
        """Take note of so many ends, and have the child know."""
        for _ in range(count):
            self.jobs.popleft()
        self.received += count
        self.board.slots[TAKEN] = self.received

    # ------------------------------------------------------------------------------------------------ taking back

    def recall(self, now: float) -> None:
        """Begin to take back what it has not started; ``settle_recall`` says what that is, RECALL_S later."""
        self.epoch += 1
        self.board.slots[STOP] = self.epoch
        self.data.send(frame(DROP))
        self.answered = False
        self.recalled_at = now

    def settle_recall(self, started: int | None = None) -> list[Job]:
        """Return the jobs that it will not start, in order; ``started`` is its own word, if it has come."""
        self.recalled_at = None
        return self.cut(self.started() if started is None else started)

    def cut(self, started: int) -> list[Job]:
        """Take the jobs from it that come after the first ``started`` ones."""
        keep = max(0, started - self.received)
        jobs = self.jobs
        back = [jobs.pop() for _ in range(len(jobs) - keep)]
        back.reverse()
        if self.budget is not None:
            self.budget += len(back)
        return back

    # ---------------------------------------------------------------------------------------- messages, signals

    def leave(self) -> None:
        """Tell it to end once it has run what it has."""
        self.retiring = True
        self.data.send(frame(EXIT))

    def ping(self, now: float) -> None:
        """Ask whether it is alive."""
        self.asked += 1
        if self.asked_at is None:
            self.asked_at = now
        self.pinged_at = now
        self.control.send(encoded_frame(PING, Control(self.asked)))

    def ask_stack(self, number: int) -> None:
        """Ask where its main thread is."""
        self.control.send(encoded_frame(STACKS, Control(number)))

    def interrupt(self, why: int, now: float) -> None:
        """Have its running job interrupted; repeated by the limits' watch until the child has acted."""
        slots = self.board.slots
        slots[TARGET] = self.started()
        slots[WHY] = why
        slots[REQUESTED] = slots[REQUESTED] + 1
        self.nudge(now)

    def nudge(self, now: float) -> None:
        """Send the signal that makes it look at its board."""
        self.requested_at = now
        try:
            os.kill(self.pid, signal.SIGALRM)
        except ProcessLookupError:
            pass

    def kill(self, reason: str = "") -> None:
        """End it by force; its end is then reported by the fork server."""
        if not self.killed:
            self.reason = self.reason or reason
            if self.pid:
                self.killed = True
                self.killed_at = monotonic()
                kill_group(self.pid)

    def abandon(self) -> None:
        """Kill it and forget its jobs."""
        self.abandoned = True
        self.jobs.clear()
        self.kill("did not give way")

    def close(self) -> None:
        """Close what leads to it."""
        self.data.close()
        self.control.close()
        self.board.close()
