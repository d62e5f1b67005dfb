"""What every pool must do, part 1: starting, running jobs, slots, reports."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from taskq.errors import ConfigError
from taskq.message import DONE, Job
from taskq.spi import PoolSpec, Support, SupportsInline
from taskq.testing.base import Suite, eventually, select
from taskq.testing.pool_rig import PoolRig
from taskq.testing.pool_runtime import HEAD, special


def handing_off(rig: PoolRig) -> PoolRig:
    if rig.spec.capabilities.inline:
        pytest.skip("an inline pool takes no jobs by submit")
    return rig


def of_kind(rig: PoolRig, kind: str) -> PoolRig:
    """Skip where the pool does not run tasks of a kind, ``def`` or ``async def``."""
    caps = rig.spec.capabilities
    if kind == "async def" and caps.async_tasks is Support.NO:
        pytest.skip("async_tasks=NO")
    if kind == "def" and not caps.sync_tasks:
        pytest.skip("sync_tasks is not declared")
    return rig


def _own_children() -> set[str]:
    """Return the process ids of this process's children, where the system tells."""
    found = set()
    for task in Path("/proc/self/task").glob("*/children"):
        try:
            found.update(task.read_text().split())
        except FileNotFoundError:
            pass
    return found


class PoolBase(Suite):
    """What an author may set, and the fixture that all pool tests use."""

    name: ClassVar[str]
    """The pool's name, as its entry point is named."""
    concurrency: ClassVar[int] = 4
    """Slots in the tests; at least 2 unless the pool takes only one."""
    asynchronous: ClassVar[bool] = False
    """Whether the kit's tasks are ``async def``: for pools that run those best."""

    def load_spec(self) -> PoolSpec:
        spec: PoolSpec = select("pool", self.name)
        return spec

    @pytest.fixture
    def rig(self, tmp_path: Path) -> Iterator[PoolRig]:
        rig = PoolRig(self, tmp_path)
        yield rig
        rig.close()


class RunningTests(PoolBase):
    """Starting and stopping, running jobs, slots, reports."""

    # ------------------------------------------------------------------------------------------ spec, start, stop

    def test_capabilities_fit_together(self, rig: PoolRig) -> None:
        """Check each capability against the others and against the pool's methods."""
        caps = rig.spec.capabilities
        pool = rig.make()
        assert rig.spec.name == self.name, f"the hook answered {rig.spec.name!r} when asked for {self.name!r}"
        assert caps.inline == isinstance(pool, SupportsInline), "inline is declared exactly by pools that have run()"
        assert not caps.inline or caps.max_concurrency == 1, "an inline pool runs one job at a time: max_concurrency=1"
        assert not (caps.inline and caps.isolation), "an inline pool cannot outlive a crash of its own process"
        assert caps.sync_tasks or caps.async_tasks is not Support.NO, "the pool declares that it runs no task at all"

    @pytest.mark.parametrize("concurrency", [0, -1])
    def test_a_pool_without_slots_is_refused(self, rig: PoolRig, concurrency: int) -> None:
        """Check that the factory raises a ConfigError for a concurrency below 1."""
        with pytest.raises(ConfigError):
            rig.make(concurrency)

    def test_more_slots_than_declared_are_refused(self, rig: PoolRig) -> None:
        """Check that the factory raises a ConfigError (NotSupported) for a concurrency above ``max_concurrency``."""
        most = rig.spec.capabilities.max_concurrency
        if most is None:
            pytest.skip("no max_concurrency")
        with pytest.raises(ConfigError, match=str(most + 1)):
            rig.make(most + 1)

    def test_stopping_twice_or_unstarted_does_no_harm(self, rig: PoolRig) -> None:
        """Check that ``stop`` works on a pool that was not started, and that a second ``stop`` changes nothing."""
        assert not rig.make().stop(time.monotonic())
        bench = rig.start()
        assert not bench.stop()
        assert not bench.stop()

    def test_nothing_is_taken_after_stop(self, rig: PoolRig) -> None:
        """Check that a stopped pool accepts nothing, has no free slot, and still answers every call."""
        bench = rig.start()
        bench.stop()
        pool = bench.pool
        assert bench.submit(bench.jobs(2)) == 0, "a stopped pool accepted jobs"
        assert pool.free() <= 0, "a stopped pool says that it has free slots"
        assert not pool.take_back(5)
        assert not pool.cancel([1, 2])
        pool.resize(2)
        assert not bench.ran()

    def test_nothing_is_left_behind(self, rig: PoolRig) -> None:
        """Check that ``stop`` ends and joins every thread and process of the pool, and closes its pipes."""

        def left() -> tuple[set[threading.Thread], set[str], int]:
            threads = {thread for thread in threading.enumerate() if not thread.name.startswith("kit: ")}
            files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
            return threads, _own_children(), files

        first = rig.start()  # a pool may start a helper that lives as long as the process (a fork server): not a leak
        first.feed(first.jobs(4))
        first.stop()
        threads, children, files = left()
        for _ in range(3):
            bench = rig.start()
            bench.feed(bench.jobs(20))
            bench.stop()

        def clean() -> bool:
            now = left()
            return now[0] <= threads and now[1] <= children and now[2] <= files

        eventually(self.patience_s, "threads, child processes and open files are as few as before", clean)

    def test_start_hooks_are_for_other_processes(self, rig: PoolRig) -> None:
        """Check that ``runtime.start()`` and ``stop()`` run once in each child process, never in the worker's own."""
        bench = rig.start()
        bench.feed(bench.jobs(8))
        processes = {process for process, _ in bench.where().values()}
        bench.stop()
        for hook in ("start", "stop"):
            calls = bench.runtime.lines(hook)
            assert str(os.getpid()) not in calls, f"the pool called runtime.{hook}() in the worker's process"
            assert len(calls) == len(set(calls)), f"runtime.{hook}() ran more than once in a child process"
        missing = {str(process) for process in processes - {os.getpid()}} - set(bench.runtime.lines("start"))
        assert not missing, "a child process ran jobs without runtime.start() before"

    # ------------------------------------------------------------------------------------------ running

    def test_every_job_runs_and_ends_once(self, rig: PoolRig) -> None:
        """Check that no job is dropped, run twice, reported twice, or reported with another job's outcome."""
        bench = rig.start()
        jobs = bench.jobs(300)
        bench.feed(jobs)
        bench.check_once(jobs)
        assert bench.ran().keys() == {job.key for job in jobs}, "jobs were reported that never ran"
        for job in jobs:
            outcome = bench.outcome(job)
            assert (outcome.kind, outcome.state) == (DONE, "SUCCESS")
            assert outcome.result == str(job.key).encode(), f"job {job.key} got the outcome of job {outcome.result!r}"

    def test_jobs_start_in_the_order_given(self, rig: PoolRig) -> None:
        """Check that one slot runs the jobs in the order in which ``submit`` got them."""
        bench = rig.start(1)
        jobs = bench.jobs(60)
        bench.feed(jobs)
        assert [int(line.split()[0]) for line in bench.runtime.lines("runs")] == [job.key for job in jobs]

    def test_elapsed_is_the_time_of_the_run(self, rig: PoolRig) -> None:
        """Check that ``Finished.elapsed`` is in seconds, per job, and without the time that a job waited."""
        bench = rig.start(1)
        slow = bench.job("sleep", 0.2)
        quick = bench.jobs(20)
        begin = time.monotonic()
        bench.feed([slow, *quick])
        total = time.monotonic() - begin
        elapsed = {job.key: bench.sink.outcomes[job.key].elapsed for job in [slow, *quick]}
        assert 0.19 <= elapsed[slow.key] <= total, f"a job of 0.2 s is said to have taken {elapsed[slow.key]:.3f} s"
        assert all(seconds >= 0.0 for seconds in elapsed.values())
        assert sum(elapsed.values()) <= total * 1.01, "the times of jobs that ran one after the other exceed their sum"

    def test_a_runtime_that_raises_costs_one_job(self, rig: PoolRig) -> None:
        """Check that an exception out of ``runtime.execute``, which may not be, ends that job only, as crashed."""
        bench = rig.start()
        bad = bench.jobs(3, "error")
        good = bench.jobs(20)
        bench.feed([*good[:10], *bad, *good[10:]])
        bench.check_once([*bad, *good])
        assert set(bench.sink.reported("crashed")) == {job.key for job in bad}
        assert all("ValueError" in reason for reason in bench.sink.reasons), "the reason does not say what was raised"
        assert not set(bench.sink.reported("finished")) & {job.key for job in bad}

    def test_asynchronous_tasks_run(self, rig: PoolRig) -> None:
        """Check that ``async def`` tasks run to their end, if ``async_tasks`` is declared."""
        if rig.spec.capabilities.async_tasks is Support.NO:
            pytest.skip("async_tasks=NO")
        bench = rig.start(asynchronous=True)
        jobs = bench.jobs(10, "sleep", 0.01)
        bench.feed(jobs)
        bench.check_once(jobs)

    def test_a_job_arrives_whole(self, rig: PoolRig) -> None:
        """Check that the runtime gets what ``submit`` was given, except ``header`` and ``delivery``, which need not be
        fit to leave the worker's process.
        """
        bench = rig.start()
        plain = bench.job("facts")
        large = bench.job("facts", "x" * 3_000_000)
        other = bench.job("facts", task="kit.\u00fc")
        other.queue, other.deliveries = "kit \U0001f980", 7
        bench.feed([plain, large, other])
        head = HEAD.decode()
        for job in (plain, large, other):
            facts = json.loads(bench.outcome(job).result or b"null")
            assert facts == [head, job.task, job.queue, job.deliveries]

    def test_outcomes_arrive_whole(self, rig: PoolRig) -> None:
        """Check that outcomes of each kind are reported as the runtime returned them, with their follow-ups."""
        bench = rig.start()
        kinds = ["dead", "retry", "released"]
        jobs = [bench.job("special", kind) for kind in kinds]
        bench.feed(jobs)
        bench.check_once(jobs)
        for job, kind in zip(jobs, kinds, strict=True):
            assert bench.outcome(job) == special(kind)

    def test_text_that_is_no_text_costs_nothing(self, rig: PoolRig) -> None:
        """Check that an outcome whose reason holds lone surrogates, as names of files do, is reported like others."""
        bench = rig.start()
        odd, others = bench.job("special", "not text"), bench.jobs(10)
        bench.feed([*others[:5], odd, *others[5:]])
        bench.check_once([odd, *others])
        found = bench.outcome(odd)
        assert (found.kind, found.state, found.result) == (DONE, "FAILURE", b"\xff")
        assert (found.reason or "").startswith("file ")

    def test_large_outcomes_hold_up_nobody(self, rig: PoolRig) -> None:
        """Check that outcomes of 8 MB arrive whole, and the small ones between them, too."""
        bench = rig.start()
        large, small = bench.jobs(3, "big", 8 << 20), bench.jobs(60)
        bench.feed([*small[:20], large[0], *small[20:40], *large[1:], *small[40:]])
        bench.check_once([*large, *small])
        for job in large:
            text = str(job.key).encode()
            assert bench.outcome(job).result == text * ((8 << 20) // len(text)), "a large outcome was damaged"
        for job in small:
            assert bench.outcome(job).result == str(job.key).encode()

    @pytest.mark.parametrize("kind", ["def", "async def"])
    def test_context_variables_end_with_their_job(self, rig: PoolRig, kind: str) -> None:
        """Check that what a job sets in context variables is not seen by another one, earlier, later or beside it."""
        bench = of_kind(rig, kind).start(asynchronous=kind == "async def")
        jobs = bench.jobs(60, "remember")
        bench.feed(jobs)
        bench.check_once(jobs)
        assert {bench.outcome(job).state for job in jobs} == {"SUCCESS"}, "a context variable outlived its job"

    def test_a_job_that_exits_costs_nothing(self, rig: PoolRig) -> None:
        """Check that ``sys.exit`` in a task fails it, and neither ends the worker nor costs a slot."""
        bench = rig.start()
        leaving, others = [bench.job("leave", status) for status in (0, 1, "bye", None)], bench.jobs(30)
        bench.feed([*leaving, *others])
        bench.check_once([*leaving, *others])
        assert {bench.outcome(job).state for job in leaving} == {"FAILURE"}
        assert bench.pool.free() == bench.concurrency

    def test_pools_side_by_side(self, rig: PoolRig) -> None:
        """Check that two pools in one process do not disturb each other, also when one of them stops."""
        one, two = rig.start(), rig.start()
        first, second = one.jobs(60), two.jobs(60)
        for begin in range(0, 60, 20):
            batches = (one, first[begin : begin + 20]), (two, second[begin : begin + 20])
            for bench, batch in batches:
                if rig.spec.capabilities.inline:
                    bench.feed(batch)
                else:
                    bench.give(batch)
            for bench, batch in batches:
                bench.wait_for(*batch)
        one.check_once(first)
        two.check_once(second)
        assert not set(one.sink.reported()) & {job.key for job in second}, "a job was reported by another pool"
        assert not one.stop()
        after = two.jobs(20)
        two.feed(after)
        two.check_once(after)

    # ------------------------------------------------------------------------------------------ slots

    def test_free_is_exact(self, rig: PoolRig) -> None:
        """Check that ``free`` is the slots less the accepted jobs, also right after ``submit``; it may be negative."""
        bench = handing_off(rig).start()
        slots = bench.concurrency
        assert bench.pool.free() == slots
        jobs = bench.jobs(slots, "wait", "gate")
        for number, job in enumerate(jobs, 1):
            bench.accept(job)
            assert bench.pool.free() == slots - number
        extra = bench.submit(bench.jobs(50))
        assert bench.pool.free() == -extra
        bench.open("gate")
        bench.wait_for(*jobs)
        eventually(self.patience_s, "all slots are free again", lambda: bench.pool.free() == slots)

    def test_a_slot_is_free_when_its_job_is_reported(self, rig: PoolRig) -> None:
        """Check that a job's slot counts as free by the time the sink hears ``finished``: the kernel asks then."""
        bench = handing_off(rig).start()
        seen: list[int] = []
        bench.sink.on_finished = lambda: seen.append(bench.pool.free())
        for _ in range(20):
            job = bench.job("noop")
            bench.accept(job)
            bench.wait_for(job)
        assert seen == [bench.concurrency] * 20

    def test_submit_takes_a_prefix_and_does_not_wait(self, rig: PoolRig) -> None:
        """Check that ``submit`` returns at once when all slots are taken, that what it accepts is bounded, and that the
        jobs it accepted are the first of those given.
        """
        bench = handing_off(rig).start()
        running = bench.jobs(bench.concurrency, "wait", "gate")
        bench.accept(*running)
        bench.until_running(*running)
        accepted: list[Job] = []
        for _ in range(200):
            batch = bench.jobs(100)
            count = bench.submit(batch)
            accepted += batch[:count]
            if count < len(batch):
                break
        else:
            pytest.fail("20,000 jobs accepted with all slots taken: the pool's own queue must be short")
        assert not bench.ran().keys() & {job.key for job in accepted}, "jobs run, although every slot is taken"
        bench.open("gate")
        bench.wait_for(*running, *accepted)
        bench.check_once([*running, *accepted])
        assert bench.ran().keys() == {job.key for job in [*running, *accepted]}, "jobs beyond the accepted prefix ran"

    def test_all_slots_run_at_the_same_time_and_no_more(self, rig: PoolRig) -> None:
        """Check that as many jobs run at once as there are slots, and no more."""
        bench = handing_off(rig).start()
        jobs = bench.jobs(bench.concurrency, "wait", "gate")
        bench.accept(*jobs)
        bench.until_running(*jobs)
        more = bench.jobs(20, "wait", "gate")
        more = more[: bench.submit(more)]
        time.sleep(self.quiet_s)
        assert not bench.running(more), f"more than {bench.concurrency} jobs run at the same time"
        bench.open("gate")
        bench.wait_for(*jobs, *more)
        bench.check_once([*jobs, *more])

    def test_a_slow_job_holds_nothing_back(self, rig: PoolRig) -> None:
        """Check that short jobs that stand behind long ones in a batch run on the free slots, whatever run times the
        pool has learned before.
        """
        bench = handing_off(rig).start()
        if bench.concurrency < 2:
            pytest.skip("one slot")
        bench.feed(bench.jobs(300))  # now the pool believes that jobs are short
        for slow_count, position in ((1, 0), (bench.concurrency - 1, 0), (bench.concurrency - 1, 3)):
            gate = f"gate-{slow_count}-{position}"
            slow = bench.jobs(slow_count, "wait", gate)
            short = bench.jobs(30)
            bench.give([*short[:position], *slow, *short[position:]])
            bench.wait_for(*short)
            assert not {job.key for job in slow} & set(bench.sink.reported())
            bench.open(gate)
            bench.wait_for(*slow)

    def test_what_a_slot_has_finished_is_reported_while_its_next_job_runs(self, rig: PoolRig) -> None:
        """Check that finished jobs are not kept for a fuller report when a long job comes next on the same slot."""
        bench = handing_off(rig).start(1)
        bench.feed(bench.jobs(300))
        short, slow = bench.jobs(10), bench.job("wait", "gate")
        bench.give([*short, slow])
        bench.wait_for(*short)
        bench.until_running(slow)
        bench.open("gate")
        bench.wait_for(slow)

    def test_a_lone_job_is_reported_at_once(self, rig: PoolRig) -> None:
        """Check that a pool that has nothing else to do neither waits for more jobs nor for a fuller report.

        It goes by the quicker third of 50 jobs, one by one: such a pool waits most times, a busy machine does not.
        """
        bench = handing_off(rig).start()
        took = []
        for _ in range(50):
            job = bench.job("noop")
            begin = time.monotonic()
            bench.accept(job)
            bench.wait_for(job)
            took.append(time.monotonic() - begin)
        typical = sorted(took)[len(took) // 3]
        assert typical < 0.04, f"a lone job took {typical:.3f} s"

    def test_reports_come_in_batches(self, rig: PoolRig) -> None:
        """Check that a flood of short jobs is reported many at a time, not with a call of the sink for each."""
        bench = handing_off(rig).start()
        jobs = bench.jobs(1000)
        bench.feed(jobs)
        bench.check_once(jobs)
        calls = bench.sink.count("finished")
        assert calls <= len(jobs) // 2, f"{calls} reports for {len(jobs)} jobs"

    def test_started_comes_before_finished(self, rig: PoolRig) -> None:
        """Check that every job that ran is reported as started, once, before its end; a long one while it runs."""
        bench = handing_off(rig).start()
        slow = bench.job("wait", "gate")
        bench.accept(slow)
        eventually(
            self.patience_s, "a running job is reported as started", lambda: slow.key in bench.sink.reported("started")
        )
        jobs = bench.jobs(100)
        bench.feed(jobs)
        bench.open("gate")
        bench.wait_for(slow)
        jobs.append(slow)
        assert sorted(bench.sink.reported("started")) == sorted(job.key for job in jobs)
        began: set[int] = set()
        for what, keys in bench.sink.calls:
            if what == "started":
                began.update(keys)
            else:
                early = set(keys) - began
                assert not early, f"jobs {sorted(early)[:5]} were reported as {what} before they were as started"

    def test_a_sink_that_raises_does_not_stop_the_pool(self, rig: PoolRig) -> None:
        """Check that an exception out of a sink's method is logged, and that the pool runs and reports what follows."""
        bench = handing_off(rig).start()
        bench.sink.raises = 6
        for _ in range(10):
            jobs = bench.jobs(bench.concurrency)
            bench.feed(jobs)
        assert bench.sink.raises == 0
        assert bench.pool.free() == bench.concurrency
