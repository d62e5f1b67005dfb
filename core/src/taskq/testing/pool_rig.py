"""The test bench of the pool suite: a sink that remembers everything, jobs to watch, and the kernel's part."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from taskq.errors import TaskQError
from taskq.message import Job, Outcome
from taskq.spi import Finished, Pool, PoolConfig, PoolSpec, SupportsInline
from taskq.testing.base import eventually, within
from taskq.testing.pool_runtime import HEAD, KitRuntime, encode

if TYPE_CHECKING:
    from taskq.testing.pools_running import PoolBase


class InlinePool(Pool, SupportsInline, Protocol):
    """A pool that runs on the worker's thread; ``finished`` is what a ``run`` that raised had finished."""

    finished: list[Finished]


class RecordingSink:
    """Remembers what a pool reports, in order."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.calls: list[tuple[str, tuple[int, ...]]] = []
        self.outcomes: dict[int, Finished] = {}
        self.reasons: list[str] = []
        self.errors: dict[int, TaskQError] = {}
        """Why jobs were aborted."""
        self.on_finished: Callable[[], None] = lambda: None
        self.raises = 0
        """How many of the next calls raise, after they were recorded."""
        self.asked: list[bytes] = []
        self.unanswered: list[Callable[[], None]] = []
        """Answers that were held back, to be given by calling them."""
        self.holds_answers = False
        self.problems: list[BaseException] = []
        """What was raised where an answer was given."""

    def _record(self, what: str, keys: Iterable[int]) -> None:
        with self.changed:
            self.calls.append((what, tuple(keys)))
            fails = self.raises > 0
            self.raises -= fails
            self.changed.notify_all()
        if fails:
            raise RuntimeError("the kit's sink fails on purpose")

    def started(self, keys: Sequence[int]) -> None:
        self._record("started", keys)

    def finished(self, batch: Sequence[Finished]) -> None:
        self.outcomes.update({finished.key: finished for finished in batch})
        self.on_finished()
        self._record("finished", [finished.key for finished in batch])

    def returned(self, keys: Sequence[int]) -> None:
        self._record("returned", keys)

    def crashed(self, running: Sequence[int], unstarted: Sequence[int], reason: str) -> None:
        self.reasons.append(reason)
        if unstarted:
            self._record("unstarted", unstarted)
        self._record("crashed", running)

    def aborted(self, keys: Sequence[int], error: TaskQError) -> None:
        self.errors.update(dict.fromkeys(keys, error))
        self._record("aborted", keys)

    def request(self, data: bytes, reply: Callable[[bytes], None]) -> None:
        """Answer on another thread, as the kernel does."""

        def answer() -> None:
            try:
                reply(b"answer to " + data)
            except BaseException as error:
                self.problems.append(error)

        with self.changed:
            self.asked.append(data)
            if self.holds_answers:
                self.unanswered.append(answer)
                return
        threading.Thread(target=answer, name="kit: answer", daemon=True).start()

    def reported(self, *whats: str) -> list[int]:
        """Return the keys reported in these ways, in order, repeats included; without ``whats``: all ends."""
        whats = whats or ("finished", "returned", "crashed", "unstarted", "aborted")
        with self.changed:
            return [key for what, keys in self.calls if what in whats for key in keys]

    def count(self, what: str) -> int:
        with self.changed:
            return sum(1 for called, _ in self.calls if called == what)

    def wait_for(self, keys: Iterable[int], seconds: float) -> set[int]:
        """Wait until all these keys have ended in some way; return those that have not."""
        missing = set(keys)
        deadline = time.monotonic() + seconds
        with self.changed:
            seen = 0
            while True:
                for what, ended in self.calls[seen:]:
                    if what != "started":
                        missing.difference_update(ended)
                seen = len(self.calls)
                left = deadline - time.monotonic()
                if not missing or left <= 0:
                    return missing
                self.changed.wait(left)


class Unshippable:
    """Stands for a header or delivery, which are of use in the worker's process alone."""

    def __reduce__(self) -> Any:
        raise TypeError("a job's header and delivery stay in the worker's process; a child gets neither")


class PoolBench:
    """One pool at work, with its sink and its jobs."""

    def __init__(self, rig: PoolRig, pool: Pool, concurrency: int, runtime: KitRuntime) -> None:
        self.rig = rig
        self.pool = pool
        self.inline = cast("InlinePool", pool)
        self.concurrency = concurrency
        self.runtime = runtime
        self.sink = RecordingSink()
        self._stopped = False

    # ------------------------------------------------------------------------------------------- jobs

    def job(self, action: str, *arguments: Any, task: str = "kit.task") -> Job:
        payload, hidden = encode(action, *arguments), Unshippable()
        return Job(self.rig.next_key(), payload, task, "kit", 1, len(HEAD), hidden, hidden)

    def jobs(self, count: int, action: str = "noop", *arguments: Any) -> list[Job]:
        return [self.job(action, *arguments) for _ in range(count)]

    def ran(self) -> Counter[int]:
        """Return how often each key was started, by the jobs' own account."""
        return Counter(int(line.split()[0]) for line in self.runtime.lines("runs"))

    def where(self) -> dict[int, tuple[int, int]]:
        """Return key → (process, thread)."""
        found: dict[int, tuple[int, int]] = {}
        for line in self.runtime.lines("runs"):
            key, process, thread = map(int, line.split())
            found[key] = process, thread
        return found

    def saw(self, job: Job) -> list[str]:
        """Return the names of the exceptions that were raised inside a job."""
        return [line.split()[1] for line in self.runtime.lines("saw") if line.split()[0] == str(job.key)]

    def running(self, jobs: Sequence[Job]) -> set[int]:
        """Return the keys of those that have begun and not ended, by the jobs' own account."""
        return {job.key for job in jobs} & (self.ran().keys() - {int(line) for line in self.runtime.lines("ended")})

    def until_running(self, *jobs: Job) -> None:
        """Wait until all these jobs have begun."""
        keys = {job.key for job in jobs}
        eventually(
            self.rig.patience_s, "jobs that a free slot could take have begun", lambda: keys <= self.ran().keys()
        )

    def open(self, gate: str = "all") -> None:
        """Let the jobs that wait at a gate go on."""
        (self.runtime.folder / gate).touch()

    # ------------------------------------------------------------------------------------------- the kernel's part

    def submit(self, jobs: Sequence[Job]) -> int:
        """Submit once; the pool must neither block nor accept more than it was given."""
        count = within(self.rig.patience_s, "submit", lambda: self.pool.submit(jobs))
        assert 0 <= count <= len(jobs), f"submit was given {len(jobs)} jobs and accepted {count}"
        return count

    def accept(self, *jobs: Job) -> None:
        """Submit jobs that the pool has slots for."""
        count = self.submit(jobs)
        assert count == len(jobs), f"submit accepted {count} of {len(jobs)} jobs, although there were slots for all"

    def give(self, jobs: Sequence[Job]) -> None:
        """Submit all the jobs, as the pool takes them; the kernel, too, comes again when jobs have ended."""
        deadline = time.monotonic() + self.rig.patience_s * 2
        rest = list(jobs)
        while rest:
            with self.sink.changed:
                calls = len(self.sink.calls)
            rest = rest[self.submit(rest) :]
            if rest:
                with self.sink.changed:
                    self.sink.changed.wait_for(lambda calls=calls: len(self.sink.calls) > calls, 0.05)  # type: ignore[misc]
            assert time.monotonic() < deadline, f"submit accepts no more: {len(rest)} are left, {self.accounts(jobs)}"

    def feed(self, jobs: Sequence[Job]) -> None:
        """Have all the jobs run, and wait until they have ended."""
        if self.rig.spec.capabilities.inline:
            queue = deque(jobs)
            while queue:
                before = len(queue)
                self.sink.finished(self.inline.run(queue, 0.05))
                assert len(queue) < before, "run() returned without having run a job"
        else:
            self.give(jobs)
            self.wait_for(*jobs)

    def wait_for(self, *jobs: Job) -> None:
        """Wait until these jobs were reported as ended."""
        missing = self.sink.wait_for([job.key for job in jobs], self.rig.patience_s)
        assert not missing, f"jobs {sorted(missing)} were not reported; {self.accounts(jobs)}"

    def accounts(self, jobs: Sequence[Job]) -> str:
        """Say for an assertion's message what became of jobs."""
        keys = {job.key for job in jobs}
        ended = keys & set(self.sink.reported())
        return f"{len(keys & self.ran().keys())} of {len(keys)} began, {len(ended)} were reported"

    def check_once(self, jobs: Sequence[Job], *, gone: Iterable[int] = ()) -> None:
        """Check that each of these jobs has exactly one end; ``gone`` have one that the sink is not told of."""
        expected = Counter(job.key for job in jobs)
        found = Counter(key for key in [*self.sink.reported(), *gone] if key in expected)
        lost, double = expected - found, found - expected
        assert not lost, f"jobs without an end: {sorted(lost)[:10]}"
        assert not double, f"jobs with more than one end: {sorted(double)[:10]}"
        again = [key for key, times in self.ran().items() if times > 1]
        assert not again, f"jobs that ran more than once: {again[:10]}"

    def outcome(self, job: Job) -> Outcome:
        assert job.key in self.sink.outcomes, f"job {job.key} was not reported as finished"
        return self.sink.outcomes[job.key].outcome

    def state(self, job: Job) -> str:
        """Return the state that a job ended in, or the type of the error for which the pool ended it."""
        if job.key in self.sink.errors:
            return type(self.sink.errors[job.key]).__name__
        return self.outcome(job).state

    def stop(self, seconds: float | None = None) -> Sequence[int]:
        """Stop the pool, giving running jobs this time; on this thread, as the kernel does it on its main one."""
        self._stopped = True
        patience = self.rig.patience_s
        begin = time.monotonic()
        unfinished = list(self.pool.stop(begin + (patience if seconds is None else seconds)))
        took, limit = time.monotonic() - begin, patience * 2 + (seconds or 0.0)
        assert took < limit, f"stop(deadline) did not return within {limit:g} s, but after {took:.1f} s"
        return unfinished

    def close(self) -> None:
        self.open()
        if not self._stopped:
            self.stop()


class PoolRig:
    """One test's pools."""

    def __init__(self, suite: PoolBase, folder: Path) -> None:
        self.suite = suite
        self.spec: PoolSpec = suite.load_spec()
        self.patience_s = suite.patience_s
        self.quiet_s = suite.quiet_s
        self._folder = folder
        self._benches: list[PoolBench] = []
        self._runtimes = 0
        self._key = 0

    def next_key(self) -> int:
        self._key += 1
        return self._key

    @property
    def concurrency(self) -> int:
        """The suite's number of slots, as far as the pool takes so many."""
        most = self.spec.capabilities.max_concurrency
        return self.suite.concurrency if most is None else min(self.suite.concurrency, most)

    def config(self, concurrency: int | None = None, **recycle: int) -> PoolConfig:
        """Return what a pool is made with; ``recycle`` are fields of PoolConfig."""
        slots = self.concurrency if concurrency is None else concurrency
        return PoolConfig(concurrency=slots, options=self.suite.options_for(self.spec), name="kit", **recycle)

    def make(self, concurrency: int | None = None, **recycle: int) -> Pool:
        """Make a pool that is not started."""
        return self.spec.factory(self.config(concurrency, **recycle))

    def runtime(
        self, asynchronous: bool | None = None, limits: Mapping[str, tuple[float | None, float | None]] | None = None
    ) -> KitRuntime:
        """Make a runtime with a folder of its own; ``limits`` are those of the tasks ``kit.NAME``."""
        folder = self._folder / f"pool{self._runtimes}"
        self._runtimes += 1
        folder.mkdir()
        named = {f"kit.{name}": pair for name, pair in (limits or {}).items()}
        return KitRuntime(folder, named, self.suite.asynchronous if asynchronous is None else asynchronous)

    def start(
        self,
        concurrency: int | None = None,
        *,
        asynchronous: bool | None = None,
        recycle: Mapping[str, int] | None = None,
        **limits: tuple[float | None, float | None],
    ) -> PoolBench:
        """Start a pool, on this thread; ``limits`` are soft and hard limits of the tasks ``kit.NAME``."""
        slots = self.concurrency if concurrency is None else concurrency
        runtime = self.runtime(asynchronous, limits)
        bench = PoolBench(self, self.make(slots, **(recycle or {})), slots, runtime)
        self._benches.append(bench)
        begin = time.monotonic()
        bench.pool.start(runtime, bench.sink)
        took, limit = time.monotonic() - begin, self.patience_s * 4
        assert took < limit, f"start did not return within {limit:g} s, but after {took:.1f} s"
        return bench

    def close(self) -> None:
        for bench in self._benches:
            bench.close()
