"""Pools of processes, each broken in one way, and the tests of the kit that must see it."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from msgspec.structs import replace

from core.tests.kit_components.process_pool import Child, ProcessPool
from taskq.errors import TaskInterrupted, TaskQError
from taskq.message import Job, Outcome
from taskq.spi import PoolConfig, PoolSink, Running, Runtime
from taskq.testing.pool_runtime import KitRuntime


class Processes(ProcessPool):
    """A sound pool, to break."""

    caught_by: ClassVar[tuple[str, ...]] = ()
    runtime: ClassVar[type[KitRuntime]] = KitRuntime

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        runtime.__class__ = self.runtime
        super().start(runtime, sink)


# ------------------------------------------------------------------------------------------------ crashes


class SaysThatNoneRan(Processes):
    """Counts a crash as if the job had only waited in the process."""

    caught_by = ("test_a_crash_is_isolated",)

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        crashed = sink.crashed

        def none_ran(running: Any, unstarted: Any, reason: str) -> None:
            crashed([], [*running, *unstarted], reason)

        sink.crashed = none_ran  # type: ignore[method-assign]
        super().start(runtime, sink)


class LosesASlotWithEachCrash(Processes):
    caught_by = ("test_a_crash_is_isolated",)

    def _replace(self, one: Child, seconds: float) -> None:
        one.end(seconds)
        self._children.remove(one)

    def _fit(self) -> None:
        pass


class TrustsItsChildren(Processes):
    """Gives an answer to a child that has died."""

    caught_by = ("test_an_answer_for_a_dead_child_is_dropped",)

    def _ended(self, one: Child) -> None:
        super()._ended(one)
        one.tell = lambda *message: one.pipe.send(message)  # type: ignore[method-assign]


# ------------------------------------------------------------------------------------------------ what is shipped


class ForgetsDeliveries(Processes):
    caught_by = ("test_a_job_arrives_whole",)

    def _shipped(self, job: Job) -> tuple[Any, ...]:
        return super()._shipped(replace(job, deliveries=1))


class ShipsTheBodyOnly(Processes):
    caught_by = ("test_a_job_arrives_whole",)

    def _shipped(self, job: Job) -> tuple[Any, ...]:
        return super()._shipped(replace(job, payload=job.payload[job.body :], body=0))


class ChangesOutcomes(Processes):
    def change(self, outcome: Outcome) -> Any:
        raise NotImplementedError

    def _take(self, one: Child, key: int, outcome: Any, elapsed: float, memory: int) -> None:
        super()._take(one, key, self.change(outcome) if isinstance(outcome, Outcome) else outcome, elapsed, memory)


class LosesFollowUps(ChangesOutcomes):
    caught_by = ("test_outcomes_arrive_whole",)

    def change(self, outcome: Outcome) -> Any:
        return replace(outcome, follow_ups=())


class CallsNothingEmpty(ChangesOutcomes):
    caught_by = ("test_outcomes_arrive_whole",)

    def change(self, outcome: Outcome) -> Any:
        return replace(outcome, result=outcome.result or None)


class InsistsOnText(ChangesOutcomes):
    caught_by = ("test_text_that_is_no_text_costs_nothing",)

    def change(self, outcome: Outcome) -> Any:
        try:
            (outcome.reason or "").encode()
        except UnicodeError:
            return "an outcome cannot be read"
        return outcome


class CutsLargeOutcomes(ChangesOutcomes):
    caught_by = ("test_large_outcomes_hold_up_nobody",)

    def change(self, outcome: Outcome) -> Any:
        return replace(outcome, result=outcome.result and outcome.result[: 1 << 20])


# ------------------------------------------------------------------------------------------------ asking


class Uncalled(KitRuntime):
    def start(self, call: Callable[[bytes], bytes] | None = None) -> None:
        super().start(None)


class GivesNoCall(Processes):
    caught_by = ("test_a_child_asks_its_worker",)
    runtime = Uncalled


class ChangesAnswers(Processes):
    caught_by = ("test_a_child_asks_its_worker", "test_large_questions_and_answers")

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        request = sink.request

        def cut(data: bytes, reply: Callable[[bytes], None]) -> None:
            request(data, lambda answer: reply(answer[:18]))

        sink.request = cut  # type: ignore[method-assign]
        super().start(runtime, sink)


class WaitsForTheAnswer(Processes):
    caught_by = ("test_a_slow_answer_holds_up_nobody",)

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        request = sink.request

        def wait(data: bytes, reply: Callable[[bytes], None]) -> None:
            answered = threading.Event()
            request(data, lambda answer: (reply(answer), answered.set())[0])
            answered.wait(2.5)

        sink.request = wait  # type: ignore[method-assign]
        super().start(runtime, sink)


# ------------------------------------------------------------------------------------------------ limits and ends


class IgnoresLimits(Processes):
    caught_by = ("test_soft_limit", "test_hard_limit", "test_soft_limit_outside_the_task")

    def start(self, runtime: Any, sink: PoolSink) -> None:
        runtime._limits = {}
        super().start(runtime, sink)


class CallsEveryEndACrash(Processes):
    caught_by = ("test_hard_limit", "test_soft_limit_outside_the_task", "test_hard_cancel_is_as_declared")

    def _not_done(self, key: int, why: TaskQError | str) -> None:
        super()._not_done(key, str(why))


class SaysThatItCancelled(Processes):
    caught_by = ("test_cancel_of_running_jobs_is_as_declared", "test_hard_cancel_is_as_declared")

    def cancel(self, keys: Sequence[int], *, hard: bool = False) -> Sequence[int]:
        return list(keys)


class CancelsByKilling(Processes):
    caught_by = ("test_cancel_of_running_jobs_is_as_declared", "test_a_task_may_resist_its_cancellation")

    def cancel(self, keys: Sequence[int], *, hard: bool = False) -> Sequence[int]:
        return super().cancel(keys, hard=True)


class CancelsSoftlyOnly(Processes):
    caught_by = ("test_hard_cancel_is_as_declared",)

    def cancel(self, keys: Sequence[int], *, hard: bool = False) -> Sequence[int]:
        return super().cancel(keys)


class NeverInterrupts(Processes):
    caught_by = ("test_stop_interrupts_what_runs",)

    def _tell_child(self, one: Child, error: type[BaseException]) -> None:
        if error is not TaskInterrupted:
            super()._tell_child(one, error)


# ------------------------------------------------------------------------------------------------ recycling


class NeverRecycles(Processes):
    caught_by = ("test_children_end_after_their_share", "test_children_end_when_they_have_grown")

    def __init__(self, config: PoolConfig) -> None:
        super().__init__(replace(config, max_tasks_per_child=None, max_memory_per_child=None))


class AlwaysRecycles(Processes):
    caught_by = ("test_children_end_when_they_have_grown",)

    def __init__(self, config: PoolConfig) -> None:
        super().__init__(replace(config, max_memory_per_child=1))


class RecyclesByKilling(Processes):
    caught_by = ("test_children_end_after_their_share",)

    def _replace(self, one: Child, seconds: float) -> None:
        super()._replace(one, 0.0)


# ------------------------------------------------------------------------------------------------ inspection


class ShowsNoStart(Processes):
    caught_by = ("test_running_jobs_are_shown",)

    def running(self, *, stacks: bool = False) -> Sequence[Running]:
        return [replace(one, since=time.monotonic()) for one in super().running(stacks=stacks)]


class ShowsTheYoungestFirst(Processes):
    caught_by = ("test_running_jobs_are_shown",)

    def running(self, *, stacks: bool = False) -> Sequence[Running]:
        return list(super().running(stacks=stacks))[::-1]


class ShowsWhatWaits(Processes):
    caught_by = ("test_running_jobs_are_shown",)

    def running(self, *, stacks: bool = False) -> Sequence[Running]:
        return [*super().running(stacks=stacks), *(Running(job.key, 0.0, "nowhere") for job in self._ready)]


class ShowsItsOwnStack(Processes):
    caught_by = ("test_running_jobs_are_shown",)

    def running(self, *, stacks: bool = False) -> Sequence[Running]:
        return [replace(one, stack="manager") for one in super().running(stacks=stacks)]


# ------------------------------------------------------------------------------------------------ the process around it


class Mortal(KitRuntime):
    def start(self, call: Callable[[bytes], bytes] | None = None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        super().start(call)


class TakesSignalsPersonally(Processes):
    caught_by = ("test_signals_are_the_workers",)
    runtime = Mortal


class Silent(KitRuntime):
    def start(self, call: Callable[[bytes], bytes] | None = None) -> None:
        sys.stdout = io.StringIO()
        super().start(call)


class SwallowsOutput(Processes):
    caught_by = ("test_what_a_task_prints_goes_through",)
    runtime = Silent


class Lasting(KitRuntime):
    def start(self, call: Callable[[bytes], bytes] | None = None) -> None:
        os._exit = lambda status: time.sleep(20.0)  # type: ignore[assignment,return-value]
        super().start(call)


class LeavesOrphans(Processes):
    caught_by = ("test_no_child_outlives_its_worker",)
    runtime = Lasting


class KeepsTheProcess(Processes):
    caught_by = ("test_a_running_job_does_not_keep_the_process",)

    def _kill(self) -> None:
        pass


PROCESSES = [mutant for mutant in globals().values() if isinstance(mutant, type) and issubclass(mutant, Processes)][1:]
