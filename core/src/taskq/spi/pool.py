"""The pool interface: where and how jobs run.

A pool moves jobs; it decides nothing. The runtime decodes, runs and encodes (in the child process where there is one),
never raises for what a task does, and is part of this interface. The sink is called in batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from msgspec import Struct

from taskq.errors import TaskQError
from taskq.message import Job, Outcome


class Finished(Struct, gc=False):
    """A job ended with an outcome; ``elapsed`` is the run's time in seconds."""

    key: int
    outcome: Outcome
    elapsed: float


class TaskLimits(Struct, frozen=True):
    """Time limits of one task in seconds; None for no limit."""

    soft: float | None = None
    hard: float | None = None


class Running(Struct, gc=False):
    """A job that runs now, for a dump of what runs where.

    ``since`` by ``time.monotonic``; ``where`` names the thread, process or coroutine; ``stack`` is its text, if known.
    """

    key: int
    since: float
    where: str
    stack: str | None = None


class Runtime(Protocol):
    """The application side of a pool: the same in every process.

    It can be pickled where the application can be imported (WorkerError elsewhere); what comes out in another process
    imports the application again, or takes the one that a preloaded parent has imported.
    """

    def execute(self, job: Job) -> Outcome:
        """Run one job on this thread and return how it ended.

        Raises nothing but what ``interrupt`` or the pool raised here to end the task: TaskInterrupted always, another
        error only when it struck outside the task. The pool reports it by ``PoolSink.aborted``, TaskInterrupted as an
        outcome RELEASED.
        """
        ...

    async def execute_async(self, job: Job) -> Outcome:
        """As ``execute``, on the running event loop; a ``def`` task is run on a thread.

        A task that lets a cancellation through raises CancelledError here; whoever cancelled knows the reason.
        """
        ...

    def interrupt(self, error: BaseException, thread: int | None = None) -> bool:
        """End what runs on a thread by ``error``; a task may catch it to clean up.

        On the calling thread (None; for signal handlers) raise it in a ``def`` task. An ``async def`` task is
        cancelled, there or on the thread with this ``threading.get_ident``, and ``execute`` then sees ``error``.
        Return False where another thread runs a ``def`` task, which only the pool can interrupt, or nothing; and on any
        thread while the event loop of an ``async def`` task is being set up: try again soon.
        """
        ...

    def is_async(self, task: str) -> bool:
        """Whether a task is ``async def``."""
        ...

    def limits(self, task: str) -> TaskLimits:
        """Return a task's time limits."""
        ...

    def tasks(self) -> Sequence[str]:
        """Return the names of the tasks known now; more may be declared later."""
        ...

    def start(self, call: Callable[[bytes], bytes] | None = None) -> None:
        """Run the start hooks of this process (a child's; the kernel calls it in the worker's own). Once.

        ``call`` sends a request to the worker's process (``PoolSink.request``) and waits for the answer; any thread may
        use it. With it, what tasks send and read goes through the worker's connections; without it, this process opens
        its own.
        """
        ...

    def stop(self) -> None:
        """Run the stop hooks of this process. Once."""
        ...


class PoolSink(Protocol):
    """Where a pool reports; every method may be called by any thread and never blocks for long."""

    def started(self, keys: Sequence[int]) -> None:
        """These jobs have begun to run."""
        ...

    def finished(self, batch: Sequence[Finished]) -> None:
        """These jobs have ended, in whatever way, and their slots are free."""
        ...

    def returned(self, keys: Sequence[int]) -> None:
        """These accepted jobs did not start and will not; the kernel hands them back, uncounted."""
        ...

    def crashed(self, running: Sequence[int], unstarted: Sequence[int], reason: str) -> None:
        """A process died: ``running`` were on it, ``unstarted`` only waited there."""
        ...

    def aborted(self, keys: Sequence[int], error: TaskQError) -> None:
        """The pool ended these running jobs, and their slots are free: the kernel makes the outcome from ``error``.

        SoftTimeLimitExceeded and TimeLimitExceeded fail the task by its own rules (retries, dead letters); TaskRevoked
        makes it REVOKED.
        """
        ...

    def request(self, data: bytes, reply: Callable[[bytes], None]) -> None:
        """Pass a request of ``Runtime.start``'s ``call`` on; ``reply`` is called once, soon or later, on any thread."""
        ...


class Pool(Protocol):
    """Runs jobs with a fixed or variable concurrency."""

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        """Start threads or processes.

        Blocking: until jobs can be taken. Threads: the worker's main thread. Idempotence: no. Order: first.
        Errors: WorkerError.
        """
        ...

    def free(self) -> int:
        """Return how many jobs could start at once now (slots less accepted jobs; negative when it holds more).

        Blocking: no. Threads: any. Idempotence: yes. Order: free. Errors: none.
        """
        ...

    def submit(self, jobs: Sequence[Job]) -> int:
        """Accept a prefix of ``jobs`` and return its length; the rest stays with the kernel. Never waits.

        A pool accepts more than it has slots for (a short queue of its own), so that no slot idles between batches.

        Blocking: no. Threads: intake. Idempotence: no. Order: jobs start in the order given. Errors: none.
        """
        ...

    def take_back(self, limit: int) -> Sequence[int]:
        """Give up to ``limit`` accepted jobs that have not started, last accepted first; their keys are forgotten.

        Blocking: no. Threads: any. Idempotence: no. Order: free. Errors: none.
        """
        ...

    def resize(self, concurrency: int) -> int:
        """Change the number of slots; return the number in force (unchanged where the pool cannot).

        Blocking: no; running jobs end first. Threads: any. Idempotence: yes. Order: after start. Errors: none.
        """
        ...

    def cancel(self, keys: Sequence[int], *, hard: bool = False) -> Sequence[int]:
        """Stop jobs: unstarted ones at once, running ones by the declared capability; return those it could act on.

        Unstarted ones are reported to ``sink.returned``.

        Blocking: no. Threads: any. Idempotence: yes. Order: free. Errors: none.
        """
        ...

    def stop(self, deadline: float) -> Sequence[int]:
        """Take nothing more, let running jobs end until ``deadline`` (``time.monotonic``), then give up.

        Unstarted jobs go to ``sink.returned`` at once. At the deadline, what can be interrupted is (TaskInterrupted,
        CancelledError), and has about a second to give way; its outcome is RELEASED. Return the keys of the jobs that
        have not ended; every other has been reported to the sink.
        Blocking: until the deadline. Threads: the worker's main thread. Idempotence: yes. Order: last. Errors: none.
        """
        ...


@runtime_checkable
class SupportsInline(Protocol):
    """A pool that runs jobs on the worker's own thread, without a hand-off.

    ``finished`` holds, after ``run`` was left by an exception, what had finished until then; empty after one that
    returned.
    """

    finished: list[Finished]

    def run(self, jobs: deque[Job], slice_s: float) -> list[Finished]:
        """Pop jobs from the left and run them until none is left or ``slice_s`` seconds have passed; at least one.

        Another thread may take jobs from the right at any time. Blocking: as long as a job runs. Threads: the worker's
        main thread. Idempotence: no. Order: as given. Errors: TaskInterrupted, after which the running job is
        unfinished.
        """
        ...


@runtime_checkable
class SupportsInspect(Protocol):
    """A pool that can tell what it runs."""

    def running(self, *, stacks: bool = False) -> Sequence[Running]:
        """Return the jobs that run now, the oldest first.

        Blocking: no; with ``stacks`` up to a second. Threads: any. Idempotence: yes. Order: free. Errors: none.
        """
        ...
