"""The prefork pool: what the worker's threads call. The rest happens on the supervisor's thread."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import monotonic
from typing import Final

from taskq.errors import ConfigError, TaskRevoked, WorkerError
from taskq.spi import Job, PoolConfig, PoolSink, Running, Runtime
from taskq_pool_prefork.crew import Crew
from taskq_pool_prefork.launcher import make_setup
from taskq_pool_prefork.limits import LEAVE_S, Watch
from taskq_pool_prefork.member import State
from taskq_pool_prefork.protocol import CANCEL, INTERRUPT, SINCE
from taskq_pool_prefork.supervisor import Supervisor

GIVE_WAY_S: Final = 1.0
"""Time that interrupted tasks have at the end."""
STACKS_S: Final = 1.0


class PreforkPool:
    """Runs jobs in ``concurrency`` child processes.

    Each accepted job is reported exactly once: by ``finished``, ``aborted`` or ``crashed``, by ``returned`` when it was
    cancelled or the pool stopped before it started, or in what ``take_back`` or ``stop`` return.
    """

    def __init__(self, config: PoolConfig) -> None:
        if config.concurrency < 1:
            raise ConfigError(
                f"The prefork pool was asked for a concurrency of {config.concurrency}; it needs at least 1 process."
            )
        self._config = config
        self._lock = threading.RLock()
        self._crew = Crew(config.concurrency)
        self._supervisor: Supervisor | None = None
        self._accepting = False
        self._stopped: list[int] | None = None

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        """Start the fork server and the children; return when they are ready.

        Raises:
            WorkerError: started before; the application cannot be imported or a start hook fails in a child, or that
                takes longer than the option start_timeout.
        """
        options = self._config.options
        setup = make_setup(self._config, runtime)
        with self._lock:
            if self._supervisor is not None or self._stopped is not None:
                raise WorkerError("The prefork pool was started twice; make a new pool for a new start.")
            self._crew.sink = sink
            watch = Watch(self._crew, runtime, options.child_unresponsive, options.start_timeout)
            supervisor = self._supervisor = Supervisor(
                self._crew, watch, setup, self._lock, self._config.name, options.start_method
            )
            supervisor.start()
            supervisor.changed.wait_for(
                lambda: supervisor.started or supervisor.failure is not None or supervisor.ended, options.start_timeout
            )
            failure = supervisor.failure
            if failure is None and not supervisor.started:
                failure = WorkerError(
                    f"The children of the prefork pool were not ready within {options.start_timeout:g} s "
                    "(start_timeout): the application takes long to import, or its start hooks do."
                )
            if failure is None:
                self._accepting = True
                return
            supervisor.end()
        supervisor.join(LEAVE_S)
        self._stopped = []
        raise failure

    def free(self) -> int:
        """Return the slots less the accepted jobs that have not been reported."""
        return self._crew.slots - len(self._crew.held) if self._accepting else 0

    def submit(self, jobs: Sequence[Job]) -> int:
        """Accept as many jobs as there are free slots, and some 50 ms of work more by the run times seen."""
        crew, supervisor = self._crew, self._supervisor
        with self._lock:
            if not self._accepting or supervisor is None or supervisor.ended or not crew.members:
                return 0
            count = min(len(jobs), crew.room())
            if count <= 0:
                return 0
            crew.accept(jobs if count == len(jobs) else jobs[:count])
            crew.hand_out()
            supervisor.bring()
        return count

    def take_back(self, limit: int) -> Sequence[int]:
        """Give up to ``limit`` unstarted jobs, last accepted first; waits 2 ms where children hold them."""
        crew = self._crew
        keys: list[int] = []
        if limit <= 0:
            return keys
        with self._lock:
            if len(crew.ready) < limit:
                crew.recall_all()
            while crew.ready and len(keys) < limit:
                keys.append(crew.ready.pop().key)
            crew.forget(keys)
            crew.hand_out()
        return keys

    def resize(self, concurrency: int) -> int:
        """Change the number of children, at least 1; one too many ends after its job."""
        with self._lock:
            if self._accepting:
                self._crew.slots = max(1, concurrency)
                assert self._supervisor is not None
                self._supervisor.wake()
            return self._crew.slots

    def cancel(self, keys: Sequence[int], *, hard: bool = False) -> Sequence[int]:
        """Return unstarted jobs to the sink; interrupt running ones by TaskCancelled or, ``hard``, kill their child."""
        crew, supervisor = self._crew, self._supervisor
        with self._lock:
            wanted = {key for key in keys if key in crew.held}
            if not wanted or supervisor is None or supervisor.ended:
                return []
            waiting = {job.key for job in crew.ready}
            running = {job.key for m in crew.members.values() if (job := m.running()) is not None}
            if wanted - waiting - running:
                crew.recall_all()
            returned = [job.key for job in crew.ready if job.key in wanted]
            if returned:
                gone = set(returned)
                kept = [job for job in crew.ready if job.key not in gone]
                crew.ready.clear()
                crew.ready.extend(kept)
                crew.forget(returned)
            acted = list(returned)
            for member in crew.members.values():
                job = member.running()
                if job is None or job.key not in wanted or member.killed:
                    continue
                acted.append(job.key)
                if hard:
                    member.verdict = (job.key, TaskRevoked(f"task {job.task} was terminated; its process was killed"))
                    member.kill()
                else:
                    member.interrupt(CANCEL, monotonic())
            crew.hand_out()
            supervisor.wake()
        if returned:
            crew.sink.returned(returned)
        return acted

    def running(self, *, stacks: bool = False) -> Sequence[Running]:
        """Return what runs now, the oldest first; ``stacks`` asks the children, which may take up to a second."""
        supervisor = self._supervisor
        if supervisor is None:
            return []
        with self._lock:
            found = {m: job for m in self._crew.members.values() if (job := m.running()) is not None}
            runs = {m: Running(job.key, m.board.times[SINCE], f"process {m.pid}") for m, job in found.items()}
        if stacks and runs:
            texts = supervisor.stacks(list(runs), STACKS_S)
            for member, run in runs.items():
                run.stack = texts.get(member.number) or None
        return sorted(runs.values(), key=lambda run: run.since)

    def stop(self, deadline: float) -> Sequence[int]:
        """Stop as ``taskq.spi.Pool`` says: children that are still in a task a second after the deadline are killed."""
        crew, supervisor = self._crew, self._supervisor
        with self._lock:
            self._accepting = False
            if self._stopped is not None:
                return self._stopped
            if supervisor is None:
                self._stopped = []
                return self._stopped
            supervisor.closing = True
            crew.recall_all()
            returned = [job.key for job in crew.ready]
            crew.ready.clear()
            crew.forget(returned)
            supervisor.wake()
        if returned:
            crew.sink.returned(returned)
        self._stopped = self._end_jobs(supervisor, deadline)
        self._end_children(supervisor)
        return self._stopped

    def _end_jobs(self, supervisor: Supervisor, deadline: float) -> list[int]:
        """Wait for running jobs, interrupt them at the deadline, give up a second later."""
        crew = self._crew

        def over() -> bool:
            return not crew.held or supervisor.ended

        with self._lock:
            if not supervisor.changed.wait_for(over, max(0.0, deadline - monotonic())):
                for member in crew.members.values():
                    if member.running() is not None:
                        member.interrupt(INTERRUPT, monotonic())
                supervisor.wake()
                supervisor.changed.wait_for(over, GIVE_WAY_S)
            unfinished = list(crew.held)
            for member in crew.members.values():
                if member.jobs:
                    member.abandon()
            crew.held.clear()
        return unfinished

    def _end_children(self, supervisor: Supervisor) -> None:
        """Have the children run their stop hooks and end; kill those that do not."""
        crew = self._crew
        with self._lock:
            for member in list(crew.members.values()):
                if member.state is State.STARTING:
                    member.kill("not needed")
                elif member.state is State.READY and not member.killed:
                    member.leave()
            supervisor.wake()
            if not supervisor.changed.wait_for(lambda: not crew.members or supervisor.ended, LEAVE_S):
                for member in crew.members.values():
                    member.kill("its stop hooks did not end")
                supervisor.changed.wait_for(lambda: not crew.members or supervisor.ended, 1.0)
            supervisor.end()
        supervisor.join(LEAVE_S)
