"""What every pool must do, part 2: time limits, cancelling what runs, interrupting it when the pool stops."""

from __future__ import annotations

import random
import threading
import time
import warnings
from typing import Final

import pytest

from taskq.errors import SoftTimeLimitExceeded, TaskQError, TaskRevoked, TimeLimitExceeded
from taskq.message import RELEASED, Job
from taskq.spi import Support
from taskq.testing.base import SOAK, UndeclaredAbility, eventually, seed
from taskq.testing.pool_rig import PoolBench, PoolRig
from taskq.testing.pools_running import PoolBase, handing_off, of_kind

KINDS = pytest.mark.parametrize("kind", ["def", "async def"])
REPORTED = pytest.mark.filterwarnings("always::taskq.testing.UndeclaredAbility")
_ENDED_BY: Final[dict[type[TaskQError], set[str]]] = {
    SoftTimeLimitExceeded: {"SoftTimeLimitExceeded", "FAILURE"},
    TimeLimitExceeded: {"TimeLimitExceeded", "FAILURE"},
    TaskRevoked: {"TaskRevoked", "REVOKED"},
}
"""Why a pool ends a job: as which it is reported, by ``aborted`` or by the outcome of a task that was told."""


def _limited(rig: PoolRig, kind: str, ability: Support) -> PoolRig:
    """Skip where a pool cannot do this to tasks of this kind."""
    of_kind(rig, kind)
    if ability is Support.NO:
        pytest.skip("declared as NO")
    if kind == "def" and not rig.spec.capabilities.limits_sync:
        pytest.skip("limits_sync=False")
    return rig


def _start(rig: PoolRig, kind: str, slots: int | None = None, **limits: tuple[float | None, float | None]) -> PoolBench:
    bench = rig.start(slots, asynchronous=kind == "async def", recycle=None, **limits)
    bench.feed(bench.jobs(3))  # so that starting a process does not count
    return bench


def _check_ended(bench: PoolBench, job: Job, why: type[TaskQError]) -> None:
    found = bench.state(job)
    assert found in _ENDED_BY[why], f"the job ended as {found}, not by {why.__name__}"
    assert job.key not in bench.sink.reported("crashed"), "what a pool ends on purpose is not a crash"


def _report(rig: PoolRig, what: str) -> None:
    warnings.warn(f"{rig.spec.name} can do what it does not declare: {what}", UndeclaredAbility, stacklevel=2)


class LimitTests(PoolBase):
    """Limits, cancelling, interrupting: as declared, and for the right job only."""

    # ------------------------------------------------------------------------------------------ limits

    @KINDS
    def test_soft_limit(self, rig: PoolRig, kind: str) -> None:
        """Check that a task that runs past its soft limit is told inside, by SoftTimeLimitExceeded or the cancellation
        of its coroutine, if ``soft_limit`` is declared; that one which does not catch it fails; and that no other task
        is told, neither a shorter one nor the next on the same slot.
        """
        bench = _start(_limited(rig, kind, rig.spec.capabilities.soft_limit), kind, 1, limited=(1.0, None))
        over = bench.job("until_limit", self.patience_s, task="kit.limited")
        careless = bench.job("wait", "never", task="kit.limited")
        short = [bench.job("until_limit", 0.03, task="kit.limited") for _ in range(5)]
        free = bench.job("until_limit", 1.3)
        jobs = [over, short[0], careless, *short[1:], free]
        bench.feed(jobs)
        bench.check_once(jobs)
        assert bench.outcome(over).state == "LIMIT", "a task ran past its soft limit"
        _check_ended(bench, careless, SoftTimeLimitExceeded)
        for job in [*short, free]:
            assert bench.outcome(job).state == "SUCCESS", "a soft limit struck a task that kept it, or has none"

    def test_soft_limit_outside_the_task(self, rig: PoolRig) -> None:
        """Check that a soft limit that strikes in the runtime, before or after the task's own code, ends the job by
        ``aborted`` with SoftTimeLimitExceeded: not as a crash, and not as a runtime that broke its contract.
        """
        bench = _start(_limited(rig, "def", rig.spec.capabilities.soft_limit), "def", 1, limited=(0.3, None))
        outside, after = bench.job("outside", "never", task="kit.limited"), bench.jobs(5)
        bench.feed([outside, *after])
        bench.check_once([outside, *after])
        assert isinstance(bench.sink.errors.get(outside.key), SoftTimeLimitExceeded)

    @KINDS
    def test_soft_limit_strikes_no_other(self, rig: PoolRig, kind: str) -> None:
        """Check that a limit that passes just when its task ends does not strike the next one on the slot."""
        bench = _start(_limited(rig, kind, rig.spec.capabilities.soft_limit), kind, 1, limited=(0.03, None))
        chance = random.Random(seed())
        jobs, free = [], []
        for _ in range(200 if SOAK else 13):
            free += [bench.job("until_limit", 0.004), bench.job("noop")]
            for follower in free[-2:]:
                jobs += [bench.job("until_limit", chance.uniform(0.025, 0.032), task="kit.limited"), follower]
            bench.feed(jobs[-4:])
        bench.check_once(jobs)
        assert {bench.state(job) for job in free} == {"SUCCESS"}, "a limit struck a task that has none"

    @KINDS
    def test_hard_limit(self, rig: PoolRig, kind: str) -> None:
        """Check that a task that runs past its hard limit is ended, if that is declared, and no other; where it is
        NATIVE, also one that catches whatever is raised in it.
        """
        support = rig.spec.capabilities.hard_limit
        bench = _start(_limited(rig, kind, support), kind, limited=(None, 1.5), both=(0.2, 1.5))
        resists = "stubborn" if support is Support.NATIVE else "wait"
        over = [bench.job(resists, "never", task="kit.limited")]
        if support is Support.NATIVE and rig.spec.capabilities.soft_limit is not Support.NO:
            over.append(bench.job("stubborn", "never", task="kit.both"))
        others = [bench.job("sleep", 0.05, task="kit.limited"), bench.job("sleep", 2.0)]
        jobs = [*over, *others, *bench.jobs(10)]
        bench.feed(jobs)
        bench.check_once(jobs)
        for job in over:
            _check_ended(bench, job, TimeLimitExceeded)
        for job in others:
            assert bench.outcome(job).state == "SUCCESS"
        if not rig.spec.capabilities.inline:
            eventually(self.patience_s, "all slots are free", lambda: bench.pool.free() == bench.concurrency)

    @REPORTED
    @KINDS
    def test_undeclared_limits(self, rig: PoolRig, kind: str) -> None:
        """Report soft limits that are kept without being declared."""
        caps = of_kind(rig, kind).spec.capabilities
        if caps.soft_limit is not Support.NO and (kind == "async def" or caps.limits_sync):
            pytest.skip("declared")
        bench = _start(rig, kind, 1, limited=(0.1, None))
        job = bench.job("until_limit", 0.3, task="kit.limited")
        bench.feed([job])
        if bench.state(job) != "SUCCESS":
            _report(rig, f"soft_limit of {kind} tasks")

    # ------------------------------------------------------------------------------------------ cancelling

    @REPORTED
    @KINDS
    def test_cancel_of_running_jobs_is_as_declared(self, rig: PoolRig, kind: str) -> None:
        """Check that ``cancel`` ends a running job that does not resist, where ``cancel_running`` is declared: the task
        is told inside (TaskCancelled, or the cancellation of its coroutine), and it is reported by ``aborted`` with
        TaskRevoked, or with the outcome of a task that was told; that it runs on, and is not among the returned keys,
        where not; and that jobs beside it run on.
        """
        caps = of_kind(handing_off(rig), kind).spec.capabilities
        bench = _start(rig, kind)
        job, beside = bench.job("wait", "gate"), bench.jobs(bench.concurrency - 1, "wait", "gate")
        bench.accept(job, *beside)
        bench.until_running(job, *beside)
        acted = list(bench.pool.cancel([job.key]))
        if caps.cancel_running is not Support.NO and (kind == "async def" or caps.limits_sync):
            assert acted == [job.key]
            bench.wait_for(job)
            _check_ended(bench, job, TaskRevoked)
            assert bench.saw(job), "the task was not told, so that it could not clean up"
        else:
            time.sleep(self.quiet_s)
            if job.key in bench.sink.reported():
                assert acted, "a running job was ended, although cancel says that it could not act on it"
                _report(rig, f"cancel_running of {kind} tasks")
            else:
                assert not acted, "cancel says that it acted on a running job, which runs on"
        assert not bench.sink.reported() or not set(bench.sink.reported()) & {other.key for other in beside}
        bench.open("gate")
        bench.wait_for(job, *beside)
        after = bench.jobs(10)
        bench.feed(after)
        bench.check_once([job, *beside, *after])
        assert {bench.outcome(other).state for other in [*beside, *after]} == {"SUCCESS"}
        assert not bench.pool.cancel([job.key]), "a job that has ended was cancelled"

    @KINDS
    def test_a_task_may_resist_its_cancellation(self, rig: PoolRig, kind: str) -> None:
        """Check that ``cancel`` without ``hard`` leaves a task alone that catches what it is told, until it ends."""
        caps = handing_off(rig).spec.capabilities
        bench = _start(_limited(rig, kind, caps.cancel_running), kind)
        job = bench.job("stubborn", "gate")
        bench.accept(job)
        bench.until_running(job)
        assert list(bench.pool.cancel([job.key])) == [job.key]
        eventually(self.patience_s, "the task is told", lambda: bench.saw(job))
        time.sleep(self.quiet_s)
        assert job.key not in bench.sink.reported()
        bench.open("gate")
        bench.wait_for(job)
        assert bench.outcome(job).state == "SUCCESS"

    @KINDS
    def test_hard_cancel_is_as_declared(self, rig: PoolRig, kind: str) -> None:
        """Check that ``cancel(hard=True)`` ends a running job: at once, even one that resists, where ``terminate`` is
        declared, and one that does not resist where ``cancel_running`` is; and that its slot is free then.
        """
        caps = of_kind(handing_off(rig), kind).spec.capabilities
        if not caps.terminate:
            _limited(rig, kind, caps.cancel_running)
        bench = _start(rig, kind)
        job = bench.job("stubborn" if caps.terminate else "wait", "never")
        bench.accept(job)
        bench.until_running(job)
        waiting = bench.jobs(3)
        waiting = waiting[: bench.submit(waiting)]
        assert list(bench.pool.cancel([job.key], hard=True)) == [job.key]
        bench.wait_for(job, *waiting)
        _check_ended(bench, job, TaskRevoked)
        eventually(self.patience_s, "all slots are free", lambda: bench.pool.free() == bench.concurrency)
        slots = bench.jobs(bench.concurrency, "wait", "gate")
        bench.accept(*slots)
        bench.until_running(*slots)
        bench.open("gate")
        bench.wait_for(*slots)
        bench.check_once([job, *waiting, *slots])

    @KINDS
    def test_cancel_strikes_no_other(self, rig: PoolRig, kind: str) -> None:
        """Check that cancelling a job at any moment of its life, also just when it ends, does not strike another."""
        caps = handing_off(rig).spec.capabilities
        bench = _start(_limited(rig, kind, caps.cancel_running), kind, 1)
        chance = random.Random(seed())
        jobs, bystanders = [], []
        for _ in range(1000 if SOAK else 60):
            victim = bench.job("sleep", 0.001)
            after = bench.jobs(2)
            bench.give([victim, *after])
            time.sleep(chance.uniform(0.0, 0.003))
            for _ in range(3):
                bench.pool.cancel([victim.key])
            jobs += [victim, *after]
            bystanders += after
            bench.wait_for(victim, *after)
        bench.check_once(jobs)
        reported = set(bench.sink.reported("finished"))
        struck = [job for job in bystanders if job.key not in reported or bench.state(job) != "SUCCESS"]
        assert not struck, f"{len(struck)} jobs were struck by the cancellation of another"

    @KINDS
    def test_cancel_of_an_inline_job(self, rig: PoolRig, kind: str) -> None:
        """Check that another thread can cancel what an inline pool runs, where ``cancel_running`` is declared, and that
        neither a task that resists nor the jobs after it are ended.
        """
        caps = rig.spec.capabilities
        if not caps.inline:
            pytest.skip("not an inline pool")
        bench = _start(_limited(rig, kind, caps.cancel_running), kind)
        gentle, stubborn, last = bench.job("wait", "never"), bench.job("stubborn", "gate"), bench.jobs(3)
        acted: list[int] = []
        failures: list[BaseException] = []

        def cancel() -> None:
            try:
                for job in (gentle, stubborn):
                    bench.until_running(job)
                    acted.extend(bench.pool.cancel([job.key]))
                eventually(self.patience_s, "the task is told", lambda: bench.saw(stubborn))
            except pytest.fail.Exception as failed:
                failures.append(failed)
            bench.open()

        thread = threading.Thread(target=cancel, name="kit: canceller", daemon=True)
        thread.start()
        bench.feed([gentle, stubborn, *last])
        thread.join(self.patience_s)
        assert not failures, f"cancelling had no effect: {failures[0]}"
        assert acted == [gentle.key, stubborn.key]
        _check_ended(bench, gentle, TaskRevoked)
        assert bench.saw(gentle), "the task was not told, so that it could not clean up"
        assert {bench.outcome(job).state for job in [stubborn, *last]} == {"SUCCESS"}
        assert not bench.pool.cancel([gentle.key]), "a job that has ended was cancelled"

    # ------------------------------------------------------------------------------------------ stopping

    @KINDS
    def test_stop_interrupts_what_runs(self, rig: PoolRig, kind: str) -> None:
        """Check that at ``stop``'s deadline, running tasks are told (TaskInterrupted, or the cancellation of their
        coroutine) where ``cancel_running`` is declared; that those which give way are reported as RELEASED and are not
        unfinished; that those which do not are; and that nothing is reported later.
        """
        caps = handing_off(rig).spec.capabilities
        bench = _start(_limited(rig, kind, caps.cancel_running), kind)
        stubborn = bench.jobs(1, "stubborn", "gate")
        gentle = bench.jobs(bench.concurrency - 1, "wait", "gate")
        bench.accept(*stubborn, *gentle)
        bench.until_running(*stubborn, *gentle)
        unfinished = bench.stop(0.2)
        assert unfinished == [stubborn[0].key]
        for job in gentle:
            assert bench.saw(job) in (["TaskInterrupted"], ["CancelledError"]), "a task was not told of the end"
            assert bench.outcome(job).kind == RELEASED
        bench.check_once([*stubborn, *gentle], gone=unfinished)
        reported = len(bench.sink.calls)
        bench.open("gate")
        time.sleep(self.quiet_s)
        assert len(bench.sink.calls) == reported, "jobs were reported after stop had returned"

    def test_limits_of_pools_side_by_side(self, rig: PoolRig) -> None:
        """Check that a pool keeps its limits after another one in the same process has stopped."""
        kind = "async def" if self.asynchronous else "def"
        _limited(rig, kind, rig.spec.capabilities.soft_limit)
        one, two = (_start(rig, kind, 1, limited=(0.2, None)) for _ in range(2))
        one.stop()
        over, after = two.job("until_limit", self.patience_s, task="kit.limited"), two.job("noop")
        two.feed([over, after])
        assert two.outcome(over).state == "LIMIT"
        assert two.outcome(after).state == "SUCCESS"
