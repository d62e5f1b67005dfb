"""Thread pools and solo pools, each broken in one way, and the tests of the kit that must see it."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from time import monotonic, perf_counter
from typing import Any, ClassVar

from taskq.errors import ConfigError, TaskInterrupted
from taskq.message import DONE, Job, Outcome
from taskq.spi import Finished, PoolConfig, PoolSink, Runtime
from taskq_pool_solo.pool import SoloPool
from taskq_pool_threads.pool import ThreadsPool

ONCE = "test_every_job_runs_and_ends_once"


class Threads(ThreadsPool):
    """A sound pool, to break."""

    caught_by: ClassVar[tuple[str, ...]] = ()


class Wrapped:
    """A runtime or sink with some methods replaced."""

    def __init__(self, wrapped: Any, **methods: Any) -> None:
        self._wrapped = wrapped
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)


# ------------------------------------------------------------------------------------------------ running


class DropsAJob(Threads):
    caught_by = (ONCE,)

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        def finished(batch: Sequence[Finished]) -> None:
            sink.finished([f for f in batch if f.key % 97])

        super().start(runtime, Wrapped(sink, finished=finished))


class ReportsTwice(Threads):
    caught_by = (ONCE,)

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        def finished(batch: Sequence[Finished]) -> None:
            sink.finished(batch)
            if again := [f for f in batch if f.key % 97 == 0]:
                sink.finished(again)

        super().start(runtime, Wrapped(sink, finished=finished))


class RunsTwice(Threads):
    caught_by = (ONCE,)

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        def execute(job: Job) -> Outcome:
            if job.key % 97 == 0:
                runtime.execute(job)
            return runtime.execute(job)

        super().start(Wrapped(runtime, execute=execute), sink)


class MixesUpOutcomes(Threads):
    caught_by = (ONCE,)

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        def finished(batch: Sequence[Finished]) -> None:
            outcomes = [f.outcome for f in batch][::-1]
            sink.finished([Finished(f.key, o, f.elapsed) for f, o in zip(batch, outcomes, strict=True)])

        super().start(runtime, Wrapped(sink, finished=finished))


class LastComeFirstServed(Threads):
    caught_by = ("test_jobs_start_in_the_order_given",)

    def submit(self, jobs: Sequence[Job]) -> int:
        count = super().submit([])
        with self._change:
            room = max(0, self._slots + 20 - len(self._held))
            taken = jobs[:room]
            self._held.update(job.key for job in taken)
            self._ready.extendleft(taken)
            count = len(taken)
        self._wake_some()
        return count


class CountsMilliseconds(Threads):
    caught_by = ("test_elapsed_is_the_time_of_the_run",)

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        def finished(batch: Sequence[Finished]) -> None:
            sink.finished([Finished(f.key, f.outcome, f.elapsed * 1000) for f in batch])

        super().start(runtime, Wrapped(sink, finished=finished))


class CountsTheWait(Threads):
    caught_by = ("test_elapsed_is_the_time_of_the_run",)

    def submit(self, jobs: Sequence[Job]) -> int:
        self.__dict__.setdefault("given", {}).update({job.key: perf_counter() for job in jobs})
        return super().submit(jobs)

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        def finished(batch: Sequence[Finished]) -> None:
            now = perf_counter()
            sink.finished([Finished(f.key, f.outcome, now - self.given[f.key]) for f in batch])

        super().start(runtime, Wrapped(sink, finished=finished))


class Mortal(Threads):
    """Its threads can end without a word."""

    def _work(self, me: Any) -> None:
        try:
            super()._work(me)
        except SystemExit:
            pass


class DiesOfTheRuntime(Mortal):
    caught_by = ("test_a_runtime_that_raises_costs_one_job",)

    def _broken_runtime(self, job: Job, error: BaseException) -> None:
        raise SystemExit


class CallsABrokenRunDone(Threads):
    caught_by = ("test_a_runtime_that_raises_costs_one_job",)

    def _broken_runtime(self, job: Job, error: BaseException) -> None:
        self._done.append(Finished(job.key, Outcome(DONE, "SUCCESS"), 0.0))


class DoneWhenInterrupted(Threads):
    caught_by = ("test_an_interrupted_job_is_not_done",)

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        def execute(job: Job) -> Outcome:
            try:
                return runtime.execute(job)
            except TaskInterrupted:
                return Outcome(DONE, "FAILURE")

        super().start(Wrapped(runtime, execute=execute), sink)


class RunsTheStartHooks(Threads):
    caught_by = ("test_start_hooks_are_for_other_processes",)

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        runtime.start()
        super().start(runtime, sink)


# ------------------------------------------------------------------------------------------------ slots and reports


class TakesNoSlotsForAnAnswer(Threads):
    caught_by = ("test_a_pool_without_slots_is_refused",)

    def __init__(self, config: PoolConfig) -> None:
        super().__init__(PoolConfig(concurrency=max(1, config.concurrency), options=None))


class BlocksInSubmit(Threads):
    caught_by = ("test_submit_takes_a_prefix_and_does_not_wait",)

    def submit(self, jobs: Sequence[Job]) -> int:
        done = 0
        deadline = monotonic() + 5
        while done < len(jobs) and monotonic() < deadline and not self._stopping:
            done += super().submit(jobs[done:])
            time.sleep(0.001)
        return done


class TakesAll(Threads):
    caught_by = ("test_submit_takes_a_prefix_and_does_not_wait",)

    def submit(self, jobs: Sequence[Job]) -> int:
        with self._change:
            self._held.update(job.key for job in jobs)
            self._ready.extend(jobs)
        self._wake_some()
        return len(jobs)


class TakesASuffix(Threads):
    caught_by = ("test_submit_takes_a_prefix_and_does_not_wait",)

    def submit(self, jobs: Sequence[Job]) -> int:
        room = self._slots * 2 - len(self._held)
        return super().submit(jobs[-room:]) if room > 0 else 0


class NeverFrees(Threads):
    caught_by = ("test_free_is_exact",)

    def free(self) -> int:
        self.__dict__.setdefault("ever", set()).update(self._held)
        return self._slots - len(self.__dict__["ever"])


class FreesTooLate(Threads):
    caught_by = ("test_a_slot_is_free_when_its_job_is_reported",)

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        def finished(batch: Sequence[Finished]) -> None:
            keys = {f.key for f in batch}
            self._held.update(keys)
            sink.finished(batch)
            self._held.difference_update(keys)

        super().start(runtime, Wrapped(sink, finished=finished))


class NeverBelowZero(Threads):
    caught_by = ("test_free_is_exact",)

    def free(self) -> int:
        return max(0, super().free())


class OneThreadForAll(Threads):
    caught_by = ("test_all_slots_run_at_the_same_time_and_no_more", "test_a_slow_job_holds_nothing_back")

    def _grow(self, count: int) -> None:
        super()._grow(1)


class TwiceAsManyThreads(Threads):
    caught_by = ("test_all_slots_run_at_the_same_time_and_no_more",)

    def _grow(self, count: int) -> None:
        super()._grow(count * 2)


class SitsOnAChunk(Threads):
    """Each thread takes ten jobs to itself."""

    caught_by = ("test_a_slow_job_holds_nothing_back",)

    def _work(self, me: Any) -> None:
        class Chunked:
            def __init__(self, ready: deque[Job]) -> None:
                self.ready, self.own = ready, deque[Job]()

            def popleft(self) -> Job:
                while len(self.own) < 10 and self.ready:
                    self.own.append(self.ready.popleft())
                return self.own.popleft()

        pool = Wrapped(self, _ready=Chunked(self._ready))
        Threads.__mro__[1]._work(pool, me)  # type: ignore[attr-defined]


class ReportsOneByOne(Threads):
    caught_by = ("test_reports_come_in_batches",)

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        def finished(batch: Sequence[Finished]) -> None:
            for one in batch:
                sink.finished([one])

        super().start(runtime, Wrapped(sink, finished=finished))


class WaitsForAFullerReport(Threads):
    caught_by = ("test_a_lone_job_is_reported_at_once",)

    def _deliver(self) -> None:
        if len(self._done) < 5:
            time.sleep(0.06)
        super()._deliver()


class ReportsAtTheEndOfALongJob(Threads):
    caught_by = ("test_what_a_slot_has_finished_is_reported_while_its_next_job_runs",)

    def _flush(self) -> None:
        if len(self._done) == len(self._held):
            super()._flush()


class NeverSaysStarted(Threads):
    caught_by = ("test_started_comes_before_finished",)

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        super().start(runtime, Wrapped(sink, started=lambda keys: None))


class SaysStartedAfterwards(Threads):
    caught_by = ("test_started_comes_before_finished",)

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        def finished(batch: Sequence[Finished]) -> None:
            sink.finished(batch)
            sink.started([f.key for f in batch])

        super().start(runtime, Wrapped(sink, started=lambda keys: None, finished=finished))


class DiesOfTheSink(Mortal):
    caught_by = ("test_a_sink_that_raises_does_not_stop_the_pool",)

    def _tell(self, method: Any, *arguments: Any) -> None:
        try:
            method(*arguments)
        except Exception:
            raise SystemExit from None


# ------------------------------------------------------------------------------------------------ control


class TakesBackWhatRuns(Threads):
    caught_by = ("test_take_back_never_takes_what_runs",)

    def take_back(self, limit: int) -> Sequence[int]:
        return list(set(self._held))[:limit]


class TakesBackAndRuns(Threads):
    caught_by = ("test_take_back_gives_the_last_unstarted_jobs", "test_take_back_never_takes_what_runs")

    def take_back(self, limit: int) -> Sequence[int]:
        keys = [job.key for job in list(self._ready)[::-1][:limit]]
        self._held.difference_update(keys)
        return keys


class TakesBackTheFirst(Threads):
    caught_by = ("test_take_back_gives_the_last_unstarted_jobs",)

    def take_back(self, limit: int) -> Sequence[int]:
        with self._change:
            keys = [self._ready.popleft().key for _ in range(min(limit, len(self._ready)))]
            self._held.difference_update(keys)
        return keys


class TakesBackNothing(Threads):
    caught_by = ("test_take_back_gives_the_last_unstarted_jobs",)

    def take_back(self, limit: int) -> Sequence[int]:
        return []


class CancelsWithoutAWord(Threads):
    caught_by = ("test_cancel_stops_unstarted_jobs",)

    def cancel(self, keys: Sequence[int], *, hard: bool = False) -> Sequence[int]:
        sink, self._sink = self._sink, Wrapped(self._sink, returned=lambda keys: None)
        try:
            return super().cancel(keys, hard=hard)
        finally:
            self._sink = sink


class CancelsInVain(Threads):
    caught_by = ("test_cancel_stops_unstarted_jobs",)

    def cancel(self, keys: Sequence[int], *, hard: bool = False) -> Sequence[int]:
        return []


class SaysItCancelledWhatRuns(Threads):
    caught_by = ("test_cancel_of_running_jobs_is_as_declared",)

    def cancel(self, keys: Sequence[int], *, hard: bool = False) -> Sequence[int]:
        super().cancel(keys)
        return list(keys)


class ResizesInVain(Threads):
    caught_by = ("test_resize_up", "test_resize_down", "test_resize_while_jobs_run")

    def resize(self, concurrency: int) -> int:
        return self._slots


class SaysItResized(Threads):
    caught_by = ("test_resize_up", "test_resize_down")

    def resize(self, concurrency: int) -> int:
        return concurrency


class ResizesUpOnly(Threads):
    caught_by = ("test_resize_down",)

    def resize(self, concurrency: int) -> int:
        if concurrency < self._slots:
            self._slots = concurrency
            return concurrency
        return super().resize(concurrency)


class AcceptsAfterStop(Threads):
    caught_by = ("test_nothing_is_taken_after_stop",)

    def stop(self, deadline: float) -> Sequence[int]:
        found = super().stop(deadline)
        self._accepting = True
        return found


class StopsAtOnce(Threads):
    caught_by = ("test_stop_lets_running_jobs_end",)

    def stop(self, deadline: float) -> Sequence[int]:
        return super().stop(monotonic())


class StopsWhenAllIsDone(Threads):
    caught_by = ("test_stop_gives_up_at_the_deadline",)

    def stop(self, deadline: float) -> Sequence[int]:
        return super().stop(deadline + 25)


class ForgetsWhatIsUnfinished(Threads):
    caught_by = ("test_stop_gives_up_at_the_deadline",)

    def stop(self, deadline: float) -> Sequence[int]:
        super().stop(deadline)
        return []


class ForgetsWhatIsUnstarted(Threads):
    caught_by = ("test_stop_gives_up_at_the_deadline",)

    def stop(self, deadline: float) -> Sequence[int]:
        self._sink = Wrapped(self._sink, returned=lambda keys: None)
        return super().stop(deadline)


class ReportsAfterStop(Threads):
    caught_by = ("test_stop_gives_up_at_the_deadline",)

    def stop(self, deadline: float) -> Sequence[int]:
        found = super().stop(deadline)
        self._closed = False
        return found


class LeavesThreadsBehind(Threads):
    caught_by = ("test_nothing_is_left_behind",)

    def stop(self, deadline: float) -> Sequence[int]:
        with self._change:
            self._accepting = False
        while self._held and monotonic() < deadline:
            time.sleep(0.005)
        return list(self._held)


class RaisesWhenStoppedTwice(Threads):
    caught_by = ("test_stopping_twice_or_unstarted_does_no_harm",)

    def stop(self, deadline: float) -> Sequence[int]:
        if self._closed:
            raise ConfigError("stopped before")
        return super().stop(deadline)


# ------------------------------------------------------------------------------------------------ limits and context


class KeepsNoLimit(Threads):
    caught_by = ("test_soft_limit", "test_soft_limit_outside_the_task", "test_limits_of_pools_side_by_side")

    def _keep_limits(self) -> float | None:
        return None


class LimitsEverybody(Threads):
    caught_by = ("test_soft_limit", "test_soft_limit_strikes_no_other")

    def _soft_limit(self, task: str) -> float | None:
        limits = [soft for name in self._runtime.tasks() if (soft := self._runtime.limits(name).soft)]
        return limits[0] * 0.05 if limits else None


class OnlySaysThatItTold(Threads):
    caught_by = (
        "test_cancel_of_running_jobs_is_as_declared",
        "test_a_task_may_resist_its_cancellation",
        "test_hard_cancel_is_as_declared",
        "test_stop_interrupts_what_runs",
    )

    def _strike(self, thread: Any, job: Job, error: type[BaseException]) -> bool:
        return True


class CallsLimitsCrashes(Threads):
    caught_by = ("test_soft_limit_outside_the_task",)

    def _aborted(self, job: Job, error: Any) -> None:
        self._broken_runtime(job, error)


class InterruptsWithoutAnOutcome(Threads):
    caught_by = ("test_stop_interrupts_what_runs",)

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        def finished(batch: Sequence[Finished]) -> None:
            sink.finished([f for f in batch if f.outcome.kind == DONE])

        super().start(runtime, Wrapped(sink, finished=finished))


class SharesAContext(Threads):
    caught_by = ("test_context_variables_end_with_their_job",)

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        super().start(Wrapped(runtime, execute=runtime._run), sink)  # type: ignore[attr-defined]


class LeavesWithItsJob(Threads):
    caught_by = ("test_a_job_that_exits_costs_nothing",)

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        def execute(job: Job) -> Outcome:
            outcome = runtime.execute(job)
            if "SystemExit" in (outcome.reason or ""):
                raise SystemExit
            return outcome

        super().start(Wrapped(runtime, execute=execute), sink)


class SharesItsJobs(Threads):
    caught_by = ("test_pools_side_by_side",)
    everybodys: ClassVar[deque[Job]] = deque()

    def __init__(self, config: PoolConfig) -> None:
        super().__init__(config)
        self._ready = self.everybodys


class ForgetsItsJobsWhenResized(Threads):
    caught_by = ("test_resize_by_another_thread",)

    def resize(self, concurrency: int) -> int:
        if len(self._ready) > 1:
            self._ready.pop()
        return super().resize(concurrency)


class ShowsTheYoungestFirst(Threads):
    caught_by = ("test_running_jobs_are_shown",)

    def running(self, *, stacks: bool = False) -> Any:
        return list(super().running(stacks=stacks))[::-1]


class ShowsNoStacks(Threads):
    caught_by = ("test_running_jobs_are_shown",)

    def running(self, *, stacks: bool = False) -> Any:
        return super().running()


class FailsWhenLookedAt(Threads):
    caught_by = ("test_inspecting_disturbs_nobody",)

    def running(self, *, stacks: bool = False) -> Any:
        if len(self._held) > 20:
            raise KeyError("a job has just ended")
        return super().running(stacks=stacks)


# ------------------------------------------------------------------------------------------------ inline


class Solo(SoloPool):
    """A sound inline pool, to break."""

    caught_by: ClassVar[tuple[str, ...]] = ()


class TakesTwoSlots(Solo):
    caught_by = ("test_more_slots_than_declared_are_refused",)

    def __init__(self, config: PoolConfig) -> None:
        super().__init__(PoolConfig(concurrency=1, options=None))


class IgnoresTheSlice(Solo):
    caught_by = ("test_inline_returns_after_its_slice",)

    def run(self, jobs: deque[Job], slice_s: float) -> list[Finished]:
        return super().run(jobs, 1e9)


class NeedsASlice(Solo):
    caught_by = ("test_inline_returns_after_its_slice",)

    def run(self, jobs: deque[Job], slice_s: float) -> list[Finished]:
        return super().run(jobs, slice_s) if slice_s else []


class TakesFromTheRight(Solo):
    caught_by = ("test_jobs_start_in_the_order_given", "test_inline_runs_on_the_callers_thread")

    def run(self, jobs: deque[Job], slice_s: float) -> list[Finished]:
        finished = []
        while jobs:
            finished += super().run(deque([jobs.pop()]), slice_s)
        return finished


class LosesWhatWasFinished(Solo):
    caught_by = ("test_inline_keeps_what_was_finished_before_an_interruption",)

    def run(self, jobs: deque[Job], slice_s: float) -> list[Finished]:
        try:
            return super().run(jobs, slice_s)
        except TaskInterrupted:
            self.finished = []
            raise


class HidesWhatIsFinished(Solo):
    caught_by = ("test_inline_shows_what_is_finished_while_a_job_runs",)

    def run(self, jobs: deque[Job], slice_s: float) -> list[Finished]:
        finished: list[Finished] = []
        while jobs:
            finished += super().run(jobs, 0.0)
        return finished


class SwallowsTheInterruption(Solo):
    caught_by = ("test_inline_keeps_what_was_finished_before_an_interruption",)

    def run(self, jobs: deque[Job], slice_s: float) -> list[Finished]:
        try:
            return super().run(jobs, slice_s)
        except TaskInterrupted:
            return self.finished


class HandsOff(Solo):
    caught_by = ("test_inline_runs_on_the_callers_thread",)

    def run(self, jobs: deque[Job], slice_s: float) -> list[Finished]:
        box: list[list[Finished]] = []
        thread = threading.Thread(target=lambda: box.append(super(HandsOff, self).run(jobs, slice_s)))
        thread.start()
        thread.join()
        return box[0]


class CountsBeforehand(Solo):
    """Looks how many there are, then takes as many, although a thief is about."""

    caught_by = ("test_inline_shares_its_jobs_with_a_thief",)

    def run(self, jobs: deque[Job], slice_s: float) -> list[Finished]:
        finished = []
        for _ in range(len(jobs)):
            job = jobs.popleft()
            finished += super().run(deque([job]), slice_s)
        return finished


class AlwaysFree(Solo):
    caught_by = ("test_inline_is_busy_while_it_runs",)

    def free(self) -> int:
        return 1


class StaysBusy(Solo):
    caught_by = ("test_inline_is_busy_while_it_runs",)

    def run(self, jobs: deque[Job], slice_s: float) -> list[Finished]:
        try:
            return super().run(jobs, slice_s)
        except TaskInterrupted:
            self._running = True
            raise


class HoldsJobs(Solo):
    caught_by = ("test_inline_pools_hold_nothing",)

    def submit(self, jobs: Sequence[Job]) -> int:
        return len(jobs)


class KeepsTheLastLimit(Solo):
    """A limit goes on after its job has ended."""

    caught_by = ("test_soft_limit", "test_soft_limit_strikes_no_other")

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "_until" or value != float("inf") or "_until" not in self.__dict__:
            super().__setattr__(name, value)


class NeverRings(Solo):
    caught_by = ("test_limits_of_pools_side_by_side", "test_cancel_of_an_inline_job")

    def _struck(self, number: int, frame: Any) -> None:
        pass


class TakesTheSignalAway(Solo):
    """Leaves the process without a handler when it stops, whoever has it."""

    caught_by = ("test_limits_of_pools_side_by_side",)

    def stop(self, deadline: float) -> Sequence[int]:
        signal.signal(signal.SIGURG, signal.SIG_DFL)
        return super().stop(deadline)


class ShowsWhatHasEnded(Solo):
    caught_by = ("test_an_inline_pool_shows_its_job",)

    def running(self, *, stacks: bool = False) -> Any:
        found = super().running(stacks=stacks) or self.__dict__.get("last", ())
        self.__dict__["last"] = found
        return found


THREADS = [mutant for mutant in globals().values() if isinstance(mutant, type) and issubclass(mutant, Threads)][1:]
SOLO = [mutant for mutant in globals().values() if isinstance(mutant, type) and issubclass(mutant, Solo)][1:]
