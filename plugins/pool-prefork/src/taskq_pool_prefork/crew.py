"""The crew: which jobs wait, which child has which, and who gets the next. All calls hold the pool's lock."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from time import monotonic, sleep
from typing import Any, Final

from taskq.errors import SoftTimeLimitExceeded, TaskQError, TaskRevoked
from taskq.message import FINISHED
from taskq.spi import Finished, Job
from taskq_pool_prefork.member import Member, State
from taskq_pool_prefork.protocol import BROKE, RECALL_S, SOFT_LIMIT, STARTED, Ended

log = logging.getLogger("taskq.pool.prefork")

CHUNK_JOBS: Final = 256
CHUNK_BYTES: Final = 1 << 20
"""Payload that goes to a child in one frame, as far as it is more than one job."""
AHEAD_S: Final = 0.05
"""Work that is accepted beyond the free slots, and that a child has beyond its running job."""
AHEAD_JOBS: Final = 1024
QUEUED_S: Final = 0.02
"""Jobs that take longer than this are not given to a busy child: having its next one at hand saves it little."""
EVEN_S: Final = 0.004
"""Work that waits in a child, from which on it is taken back for another one that has nothing to do."""
STUCK_S: Final = 0.004
"""A job that runs for this long, and for several times longer than jobs usually do, holds up those behind it."""
MUTE_S: Final = 0.05
"""A child that has not begun what it was given after this time loses it again."""

Report = tuple[Callable[..., None], tuple[Any, ...]]


class Crew:
    """The children and the jobs."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.members: dict[int, Member] = {}
        self.ready: deque[Job] = deque()
        self.held: dict[int, Job] = {}
        """Accepted and not reported, in the order of acceptance."""
        self.typical = 0.0
        """Seconds that a job takes; 0 while nothing is known."""
        self.begun: list[int] = []
        self.done: list[Finished] = []
        self.reports: list[Report] = []
        """What the sink is to be told once the lock is free, after what has begun and what is done."""
        self.queued = False
        """Whether a child has jobs behind another one."""
        self.sink: Any = None

    # ------------------------------------------------------------------------------------------------ accepting

    def room(self) -> int:
        """Return how many more jobs are accepted."""
        typical = self.typical
        ahead = min(AHEAD_JOBS, int(self.slots * AHEAD_S / typical)) if typical else self.slots
        return self.slots + ahead - len(self.held)

    def accept(self, jobs: Sequence[Job]) -> None:
        """Take jobs in."""
        self.held.update({job.key: job for job in jobs})
        self.ready.extend(jobs)

    def forget(self, keys: Iterable[int]) -> None:
        """Let go of jobs."""
        pop = self.held.pop
        for key in keys:
            pop(key, None)

    def back(self, jobs: Sequence[Job]) -> None:
        """Put jobs that a child did not start before all others."""
        self.ready.extendleft(reversed(jobs))

    def patience(self) -> float:
        """Return for how long a job may run before those behind it go elsewhere, in seconds."""
        return min(max(STUCK_S, 3 * self.typical), QUEUED_S)

    # --------------------------------------------------------------------------------------------- handing out

    def hand_out(self) -> None:
        """Give waiting jobs to children that can take them soon."""
        ready = self.ready
        if not ready:
            return
        now = monotonic()
        typical = self.typical
        deepest = 1 + min(2 * CHUNK_JOBS, int(AHEAD_S / typical)) if typical and typical <= QUEUED_S else 1
        patience = self.patience()
        takers: list[tuple[int, int, Member]] = []
        busy = soon = 0
        for member in self.members.values():
            count = len(member.jobs)
            if count:
                busy += 1
            if not member.open or 2 * count > deepest:
                soon += not member.answered and not member.killed and member.age(now) <= patience
                continue
            if count:
                running = member.board.slots[STARTED] > member.received
                if (member.age(now) if running else now - member.sent_at) > patience:
                    continue
            takers.append((count, member.number, member))
        if not takers:
            return
        takers.sort()
        room = self.slots - busy
        for place, (count, _, member) in enumerate(takers):
            if not ready:
                return
            if not count:
                if room <= 0:
                    continue  # the pool was made smaller, and others are still at work
                room -= 1
            # those from which jobs are just taken back will be free for some of them, too
            share = -(-len(ready) // (len(takers) - place + soon))
            self._give(member, min(share, CHUNK_JOBS, deepest - count), now)

    def even_out(self, now: float) -> float:
        """Take back what waits in the child that has most of it, where another one has nothing to do.

        Returns when to look again (``time.monotonic``; infinity for never).
        """
        members = self.members.values()
        if self.ready or not self.queued or sum([bool(m.jobs) for m in members]) >= self.slots:
            return float("inf")
        free = [m for m in members if m.open]
        if all(m.jobs for m in free):
            return float("inf")
        most = max(free, key=Member.unstarted)
        if most.unstarted() * self.typical <= EVEN_S:
            return float("inf")
        most.recall(now)
        return now + RECALL_S

    def _give(self, member: Member, count: int, now: float) -> None:
        if member.budget is not None:
            count = min(count, member.budget)
        ready = self.ready
        size = 0
        for number, job in enumerate(islice(ready, count)):
            size += len(job.payload)
            if size > CHUNK_BYTES and number:
                count = number
                break
        self.queued = self.queued or count > 1 or bool(member.jobs)
        member.give([ready.popleft() for _ in range(count)], now)

    # ------------------------------------------------------------------------------------------------ coming back

    def ended(self, member: Member, ends: Sequence[Ended]) -> None:
        """Take note of jobs that have ended, in the order in which the child was given them."""
        count = len(ends)
        first = member.received
        member.has(count)
        if member.told < member.received:
            self.begun += [e.key for e in ends[member.told - first :]]
            member.told = member.received
        finished = [Finished(e.key, e.outcome or FINISHED, e.elapsed) for e in ends if e.fault is None]
        self.done += finished
        held = self.held
        for e in ends:
            del held[e.key]
        seen = sum([e.elapsed for e in ends]) / count
        typical = self.typical
        # quicker to believe that jobs are short: what gets stuck behind a long one is taken back
        self.typical = typical + (seen - typical) * (0.5 if seen < typical else 0.2) if typical else max(seen, 1e-6)
        if len(finished) < count:
            for e in ends:
                if e.fault is not None:
                    self._fault(e.key, *e.fault)

    def _fault(self, key: int, what: str, text: str) -> None:
        if what == BROKE:
            self.reports.append((self.sink.crashed, ([key], [], text)))
        else:
            error: TaskQError = SoftTimeLimitExceeded(text) if what == SOFT_LIMIT else TaskRevoked(text)
            self.reports.append((self.sink.aborted, ([key], error)))

    def take_reports(self) -> list[Report]:
        """Return what the sink is to be told, each beginning before its end."""
        reports = self.reports
        if self.done:
            reports.insert(0, (self.sink.finished, (self.done,)))
        if self.begun:
            reports.insert(0, (self.sink.started, (self.begun,)))
        self.begun, self.done, self.reports = [], [], []
        return reports

    def tell_started(self, member: Member) -> None:
        """Report what has begun and was not reported yet."""
        begun = [job.key for job in islice(member.jobs, max(0, member.told - member.received), None)]
        begun = begun[: member.started() - max(member.told, member.received)]
        if begun:
            member.told = max(member.told, member.received) + len(begun)
            self.begun += begun

    def died(self, member: Member, reason: str) -> None:
        """Take note of a child's end: what ran on it is lost, what only waited there runs elsewhere."""
        if member.abandoned:
            return
        staged = member.board.staged(member.received)
        if staged:
            self.ended(member, staged)
        self.back(member.cut(member.started()))
        self.tell_started(member)
        running = list(member.jobs)
        member.jobs.clear()
        self.forget([job.key for job in running])
        if member.verdict is not None:
            key, error = member.verdict
            if any(job.key == key for job in running):
                self.reports.append((self.sink.aborted, ([key], error)))
                running = [job for job in running if job.key != key]
        if running:
            tasks = ", ".join(dict.fromkeys(job.task for job in running))
            self.reports.append((self.sink.crashed, ([job.key for job in running], [], f"{reason} in task {tasks}")))

    # ------------------------------------------------------------------------------------------------ recalling

    def recall_all(self) -> None:
        """Have all jobs that have not started in ``ready``, in the order of acceptance. Waits RECALL_S if it must."""
        now = monotonic()
        asked = [m for m in self.members.values() if m.recalled_at is None and m.answered and m.unstarted()]
        for member in asked:
            member.recall(now)
        waiting = [m for m in self.members.values() if m.recalled_at is not None]
        if not waiting:
            return
        sleep(RECALL_S)
        for member in waiting:
            self.back(member.settle_recall())
        if len(waiting) > 1:
            waiting_keys = {job.key for job in self.ready}
            self.ready = deque(job for key, job in self.held.items() if key in waiting_keys)

    def all_ready(self) -> bool:
        """Whether every child can take jobs."""
        members = self.members.values()
        return len(members) >= self.slots and all(m.state is State.READY for m in members)
