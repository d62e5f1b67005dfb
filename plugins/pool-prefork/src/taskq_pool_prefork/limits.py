"""What the parent watches: starts, ends behind a long job, hard limits, recalls, children that do not answer."""

from __future__ import annotations

import logging
import platform
from time import sleep
from typing import Final

from taskq.errors import TimeLimitExceeded
from taskq.spi import Job, Runtime
from taskq_pool_prefork.crew import MUTE_S, Crew
from taskq_pool_prefork.member import Member, State
from taskq_pool_prefork.processes import LOST_SOCKETS
from taskq_pool_prefork.protocol import ACTED, RECALL_S, REQUESTED, STARTED, TARGET

log = logging.getLogger("taskq.pool.prefork")

TICK_S: Final = 0.01
"""How often is looked at children that have jobs one behind another: they send no word of each end."""
SEEN_S: Final = 50e-6
"""Between reading on a board how much stands there and reading it; see RECALL_S."""
STRICT: Final = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")
"""Whether processors here see each other's writes in their order, so that no time need pass."""
TELL_S: Final = 0.02
"""A job that runs for this long is reported as started; a shorter one when it has ended."""
NUDGE_S: Final = 0.02
"""How often an interrupt is repeated until the child has acted."""
PING_S: Final = 5.0
"""How often a child is asked for a sign of life while it runs one job."""
SILENT_S: Final = 10.0
"""Silence after which a child is reported; one that runs nothing is replaced then."""
LOST_S: Final = 1.0
"""A child whose sockets are closed ends within this time by itself."""
LEAVE_S: Final = 5.0
"""Time for a child's stop hooks."""
ASLEEP_S: Final = 1.0
"""Being late by this much means that this process itself did not run, so that nobody's silence counts."""


class Watch:
    """Looks at children; the caller holds the pool's lock."""

    def __init__(self, crew: Crew, runtime: Runtime, unresponsive: float | None, start_timeout: float) -> None:
        self._crew = crew
        self._runtime = runtime
        self._hard: dict[str, float | None] = {}
        self._unresponsive = unresponsive
        self.start_timeout = start_timeout
        self._ping = PING_S if unresponsive is None else min(PING_S, unresponsive / 3)
        self._due = 0.0

    def look(self, now: float) -> float:
        """Act on what is due; return when to look again (``time.monotonic``; infinity for never)."""
        crew = self._crew
        if self._due and now - self._due > ASLEEP_S:
            for member in crew.members.values():
                if member.asked_at is not None:
                    member.asked_at += now - self._due
        self._collect()
        due = float("inf")
        for member in list(crew.members.values()):
            due = min(due, self._look_at(member, now))
        self._due = due if due < float("inf") else 0.0
        return due

    def _collect(self) -> None:
        """Take the ends that children have noted on their boards."""
        noted = [m for m in self._crew.members.values() if m.jobs and m.note_stage()]
        if noted:
            if not STRICT:
                sleep(SEEN_S)
            for member in noted:
                ends = member.take_staged()
                if ends:
                    self._crew.ended(member, ends)

    def _look_at(self, member: Member, now: float) -> float:
        if member.killed:
            return now + 1.0
        if member.lost_at is not None:
            if now >= member.lost_at + LOST_S:
                member.kill(f"{LOST_SOCKETS} and was killed")
            return max(member.lost_at + LOST_S, now + 0.01)
        if member.state is State.STARTING:
            end = member.born + self.start_timeout
            if now >= end:
                member.kill(f"it was not ready within {self.start_timeout:g} s (start_timeout)")
            return max(end, now + 1.0)
        if member.state is State.LEAVING:
            if now >= member.left_at + LEAVE_S:
                log.warning("child %d does not end %g s after its last task; it is killed", member.pid, LEAVE_S)
                member.kill("its stop hooks did not end")
            return max(member.left_at + LEAVE_S, now + 0.1)
        due = float("inf")
        if member.recalled_at is not None:
            if now - member.recalled_at >= RECALL_S:
                self._crew.back(member.settle_recall())
            else:
                due = member.recalled_at + RECALL_S
        if member.board.slots[STARTED] > member.received:
            return min(due, self._look_at_running(member, now))
        if member.jobs:
            due = min(due, now + MUTE_S / 2)
            if member.answered and now - member.sent_at > MUTE_S:
                member.recall(now)
                due = now + RECALL_S
        if not member.answered:
            due = min(due, self._look_at_mute(member, now))
        elif member.asked_at is not None:
            member.asked_at = None
        return due

    def _look_at_running(self, member: Member, now: float) -> float:
        crew = self._crew
        started = member.board.slots[STARTED]
        at = started - 1 - member.received
        if not 0 <= at < len(member.jobs):
            return now + TICK_S
        job, age = member.jobs[at], member.age(now)
        if member.board.slots[STARTED] != started:
            return now + TICK_S
        due = now + TICK_S if len(member.jobs) > 1 else float("inf")
        if started > member.told:
            if age >= TELL_S:
                crew.tell_started(member)
            else:
                due = min(due, now + max(TELL_S - age, TICK_S))
        if member.answered and len(member.jobs) > at + 1 and age >= crew.patience():
            member.recall(now)
            due = now + RECALL_S
        hard = self._hard[job.task] if job.task in self._hard else self._limit(job)
        if hard is not None:
            if age >= hard and not member.board.ended(member.received):
                text = f"task {job.task} ran longer than its time limit of {hard:g} s; its process was ended"
                member.verdict = (job.key, TimeLimitExceeded(text))
                member.kill()
                return now + 1.0
            due = min(due, now + max(hard - age, 0.001))
        if member.board.slots[REQUESTED] != member.board.slots[ACTED] and member.board.slots[TARGET] == started:
            if now - member.requested_at >= NUDGE_S:
                member.nudge(now)
            due = min(due, now + NUDGE_S)
        return min(due, self._look_for_life(member, now, age, f"task {job.task}"))

    def _limit(self, job: Job) -> float | None:
        hard = self._hard[job.task] = self._runtime.limits(job.task).hard
        return hard

    def _look_for_life(self, member: Member, now: float, age: float, what: str) -> float:
        """Ask a child in a long job for a sign of life, and act on its silence."""
        if age < self._ping:
            return now + self._ping - age
        if member.pinged_at <= now - self._ping:
            member.ping(now)
        silent = 0.0 if member.asked_at is None else now - member.asked_at
        limit = self._unresponsive
        if limit is not None and silent >= limit:
            member.kill(f"did not answer for {silent:.1f} s (child_unresponsive) and was killed")
            return now + 1.0
        if silent >= SILENT_S and not member.reported:
            member.reported = True
            log.warning(
                "child %d has not answered for %.0f s in %s: it was stopped, or its code holds the interpreter; %s",
                member.pid, silent, what,
                "it is killed by the task's time limit, or by the option child_unresponsive" if limit is None
                else f"it is killed after {limit:g} s",
            )  # fmt: skip
        return now + min(self._ping, 1.0)

    def _look_at_mute(self, member: Member, now: float) -> float:
        """Replace a child that neither runs anything nor answers: nothing is lost by it."""
        if member.asked_at is None:
            member.ping(now)
        assert member.asked_at is not None
        patience = min(SILENT_S, self._unresponsive or SILENT_S)
        if now - member.asked_at >= patience:
            log.warning("child %d takes no tasks and does not answer; it is replaced", member.pid)
            member.kill("takes no tasks")
        return max(now + 0.01, member.asked_at + patience)
