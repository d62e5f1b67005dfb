"""What every pool must do.

A plugin's test::

    class TestConformance(PoolSuite):
        name = "threads"

Pools that run on the worker's own thread (``inline``) are tested by the same class: tests of hand-off are skipped for
them, and those of ``run`` for the others.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import deque

import pytest

from taskq.errors import TaskInterrupted
from taskq.message import RELEASED, Job
from taskq.testing.base import eventually, within

pytest.register_assert_rewrite(
    *(f"taskq.testing.{name}" for name in ("pool_rig", "pools_abilities", "pools_limits", "pools_running"))
)

from taskq.testing.pool_rig import PoolRig  # noqa: E402  after the line above, so that its asserts explain themselves
from taskq.testing.pools_abilities import AbilityTests  # noqa: E402
from taskq.testing.pools_limits import LimitTests  # noqa: E402
from taskq.testing.pools_running import RunningTests, handing_off  # noqa: E402


def _inline(rig: PoolRig) -> PoolRig:
    if not rig.spec.capabilities.inline:
        pytest.skip("not an inline pool")
    return rig


class PoolSuite(RunningTests, LimitTests, AbilityTests):
    """All tests of a pool; subclass it, name the pool, and set ``options`` where it needs some."""

    # ------------------------------------------------------------------------------------------ taking back

    def test_take_back_gives_the_last_unstarted_jobs(self, rig: PoolRig) -> None:
        """Check that ``take_back`` gives at most what was asked, the last accepted first, frees their places, and that
        these jobs neither run nor are reported.
        """
        bench = handing_off(rig).start(1)
        bench.feed(bench.jobs(300))  # so that it queues several
        slow = bench.job("wait", "gate")
        bench.accept(slow)
        bench.until_running(slow)
        queued = bench.jobs(10)
        queued = queued[: bench.submit(queued)]
        if len(queued) < 3:
            pytest.skip(f"the pool queues {len(queued)} short jobs behind a running one")
        free = bench.pool.free()
        taken = list(bench.pool.take_back(2))
        assert taken == [queued[-1].key, queued[-2].key]
        assert bench.pool.free() == free + 2
        assert not bench.pool.take_back(0)
        rest = list(bench.pool.take_back(1000))
        assert rest == [job.key for job in reversed(queued[:-2])], "of unstarted jobs, take_back gives all it may"
        assert bench.pool.free() == 0
        bench.open("gate")
        bench.wait_for(slow)
        after = bench.jobs(5)
        bench.feed(after)
        assert not bench.ran().keys() & {job.key for job in queued}, "jobs ran that were taken back"
        assert not set(bench.sink.reported()) & {job.key for job in queued}, "jobs were reported that were taken back"

    def test_take_back_never_takes_what_runs(self, rig: PoolRig) -> None:
        """Check that every job is either taken back or run, never both and never neither, while threads take back as
        fast as jobs are submitted.
        """
        bench = handing_off(rig).start()
        given: list[Job] = []
        taken: list[int] = []
        over = threading.Event()

        def take() -> None:
            while not over.is_set() and len(taken) < 10_000:
                taken.extend(bench.pool.take_back(3))

        thief = threading.Thread(target=take, name="kit: thief", daemon=True)
        thief.start()
        try:
            for _ in range(150):
                batch = bench.jobs(20)
                given += batch[: bench.submit(batch)]
        finally:
            over.set()
            thief.join(self.patience_s)
        back = set(taken)
        ran = [job for job in given if job.key not in back]
        bench.wait_for(*ran)
        bench.stop()
        bench.check_once(given, gone=taken)
        both = bench.ran().keys() & back
        assert not both, f"jobs were taken back and ran: {sorted(both)[:10]}"

    def test_cancel_stops_unstarted_jobs(self, rig: PoolRig) -> None:
        """Check that ``cancel`` gives unstarted jobs back through ``sink.returned``, returns their keys, ignores keys
        that it does not know, and leaves the other jobs and their order alone.
        """
        bench = handing_off(rig).start(1)
        bench.feed(bench.jobs(300))
        slow = bench.job("wait", "gate")
        bench.accept(slow)
        bench.until_running(slow)
        queued = bench.jobs(6)
        queued = queued[: bench.submit(queued)]
        if len(queued) < 3:
            pytest.skip(f"the pool queues {len(queued)} short jobs behind a running one")
        victims = [queued[1].key, queued[-1].key]
        free = bench.pool.free()
        assert sorted(bench.pool.cancel([*victims, 10**9])) == victims
        assert bench.pool.free() == free + len(victims)
        assert not bench.pool.cancel(victims), "a second cancel of the same jobs has nothing to act on"
        bench.open("gate")
        bench.wait_for(slow, *queued)
        bench.check_once([slow, *queued])
        assert sorted(bench.sink.reported("returned")) == victims
        assert not bench.ran().keys() & set(victims), "cancelled jobs ran"
        order = [int(line.split()[0]) for line in bench.runtime.lines("runs")]
        kept = [job.key for job in queued if job.key not in victims]
        assert [key for key in order if key in kept] == kept

    # ------------------------------------------------------------------------------------------ resizing

    def test_resize_up(self, rig: PoolRig) -> None:
        """Check that after ``resize`` to more slots, as many jobs run at the same time, waiting ones at once."""
        bench = self._resizable(rig).start(2)
        jobs = bench.jobs(2, "wait", "gate")
        bench.accept(*jobs)
        bench.until_running(*jobs)
        waiting = bench.jobs(1, "wait", "gate")
        waiting = waiting[: bench.submit(waiting)]
        assert bench.pool.resize(4) == 4
        assert bench.pool.free() == 2 - len(waiting)
        more = bench.jobs(bench.pool.free(), "wait", "gate")
        bench.accept(*more)
        bench.until_running(*waiting, *more)
        assert bench.pool.free() == 0
        bench.open("gate")
        bench.wait_for(*jobs, *waiting, *more)
        bench.check_once([*jobs, *waiting, *more])

    def test_resize_down(self, rig: PoolRig) -> None:
        """Check that after ``resize`` to fewer slots, running jobs end undisturbed, and then no more run at a time."""
        bench = self._resizable(rig).start(4)
        jobs = bench.jobs(4, "wait", "gate")
        bench.accept(*jobs)
        bench.until_running(*jobs)
        assert bench.pool.resize(1) == 1
        assert bench.pool.free() == -3
        bench.open("gate")
        bench.wait_for(*jobs)
        eventually(self.patience_s, "one slot is free", lambda: bench.pool.free() == 1)
        bench.feed(bench.jobs(200))  # so that it takes short jobs ahead
        later = bench.jobs(4, "wait", "second gate")
        later = later[: bench.submit(later)]
        bench.until_running(later[0])
        time.sleep(self.quiet_s)
        assert len(bench.running(later)) == 1, "more jobs run at a time than the pool was resized to"
        bench.open("second gate")
        bench.wait_for(*later)
        assert bench.pool.resize(3) == 3
        last = bench.jobs(3, "wait", "third gate")
        bench.accept(*last)
        bench.until_running(*last)
        bench.open("third gate")
        bench.wait_for(*last)
        bench.check_once([*jobs, *later, *last])

    def test_resize_while_jobs_run(self, rig: PoolRig) -> None:
        """Check that no job is lost, run twice or left waiting while the number of slots changes all the time."""
        bench = self._resizable(rig).start(2)
        jobs = []
        for size in [1, 5, 2, 1, 8, 3, 1, 2] * 3:
            assert bench.pool.resize(size) == size
            batch = bench.jobs(15)
            bench.give(batch)
            jobs += batch
        bench.wait_for(*jobs)
        bench.check_once(jobs)
        eventually(self.patience_s, "both slots are free", lambda: bench.pool.free() == 2)

    def test_resize_by_another_thread(self, rig: PoolRig) -> None:
        """Check that no job is lost or run twice while another thread resizes as fast as it can."""
        bench = self._resizable(rig).start(2)
        over = threading.Event()
        sizes = random.Random(7)

        def resize() -> None:
            while not over.is_set():
                bench.pool.resize(sizes.randint(1, 4))
                time.sleep(0.005)

        resizer = threading.Thread(target=resize, name="kit: resizer", daemon=True)
        resizer.start()
        jobs = [bench.job("sleep", 0.002) for _ in range(150)]
        try:
            bench.feed(jobs)
        finally:
            over.set()
            resizer.join(self.patience_s)
        bench.check_once(jobs)
        assert bench.pool.resize(3) == 3
        eventually(self.patience_s, "all slots are free", lambda: bench.pool.free() == 3)

    def test_resize_that_is_not_declared_changes_nothing(self, rig: PoolRig) -> None:
        """Check that a pool without ``resize`` returns the number of slots it keeps."""
        if rig.spec.capabilities.resize:
            pytest.skip("resize is declared")
        bench = rig.start()
        assert bench.pool.resize(bench.concurrency + 1) == bench.concurrency
        assert bench.pool.free() == bench.concurrency

    def _resizable(self, rig: PoolRig) -> PoolRig:
        if not rig.spec.capabilities.resize:
            pytest.skip("resize is not declared")
        return handing_off(rig)

    # ------------------------------------------------------------------------------------------ stopping

    def test_stop_lets_running_jobs_end(self, rig: PoolRig) -> None:
        """Check that ``stop`` waits for running jobs until the deadline, and has reported them when it returns."""
        bench = handing_off(rig).start()
        jobs = bench.jobs(bench.concurrency, "wait", "gate")
        bench.accept(*jobs)
        bench.until_running(*jobs)
        opener = threading.Timer(self.quiet_s, bench.open, ["gate"])
        opener.start()
        unfinished = bench.stop()
        opener.join()
        assert not unfinished, "stop returned jobs that could end before the deadline"
        assert {bench.state(job) for job in jobs} == {"SUCCESS"}, "jobs were ended that could end by themselves"
        bench.check_once(jobs)

    def test_stop_gives_up_at_the_deadline(self, rig: PoolRig) -> None:
        """Check that ``stop`` returns soon after its deadline with the keys of the jobs that do not give way, that jobs
        which did not start are returned or among them, and that nothing is reported later.
        """
        bench = handing_off(rig).start()
        quick, slow = bench.jobs(20), bench.jobs(bench.concurrency, "stubborn", "gate")
        bench.feed(quick)
        bench.accept(*slow)
        bench.until_running(*slow)
        waiting = bench.jobs(10)
        waiting = waiting[: bench.submit(waiting)]
        unfinished = bench.stop(0.2)
        assert {job.key for job in slow} <= set(unfinished), "jobs that have not ended are not among the unfinished"
        assert not bench.ran().keys() & {job.key for job in waiting}, "stop started jobs that were waiting"
        reported = len(bench.sink.calls)
        bench.check_once([*quick, *slow, *waiting], gone=unfinished)
        bench.open("gate")
        time.sleep(self.quiet_s)
        assert len(bench.sink.calls) == reported, "jobs were reported after stop had returned"
        assert sorted(bench.stop(0.0)) == sorted(unfinished), "a second stop gives another answer"

    def test_an_interrupted_job_is_not_done(self, rig: PoolRig) -> None:
        """Check that a job that TaskInterrupted ended is released (an outcome RELEASED) or unfinished, but not done."""
        bench = handing_off(rig).start()
        jobs = bench.jobs(2, "interrupted")
        good = bench.jobs(5)
        bench.give([*jobs, *good])
        bench.wait_for(*good)
        unfinished = bench.stop()
        bench.check_once([*jobs, *good], gone=unfinished)
        for key in set(bench.sink.reported("finished")) & {job.key for job in jobs}:
            assert bench.sink.outcomes[key].outcome.kind == RELEASED

    # ------------------------------------------------------------------------------------------ crashes

    def test_a_crash_is_isolated(self, rig: PoolRig) -> None:
        """Check that a job that kills its process is reported by ``crashed``, if isolation is declared, with the jobs
        that only waited there apart, and that the pool goes on with as many slots.
        """
        if not rig.spec.capabilities.isolation:
            pytest.skip("isolation is not declared")
        bench = rig.start()
        bad, good = bench.jobs(2, "exit"), bench.jobs(40)
        bench.give([*good[:5], bad[0], *good[5:20], bad[1], *good[20:]])
        bench.wait_for(*bad, *good)
        bench.check_once([*bad, *good])
        assert {job.key for job in bad} <= set(bench.sink.reported("crashed"))
        ran = bench.ran().keys()
        assert not ran & set(bench.sink.reported("unstarted")), "a job is said to have waited, but it ran"
        assert not set(bench.sink.reported("crashed")) - ran, "a job is said to have run, but it only waited"
        slots = bench.jobs(bench.concurrency, "wait", "gate")
        eventually(self.patience_s, "all slots are free again", lambda: bench.pool.free() == bench.concurrency)
        bench.accept(*slots)
        bench.until_running(*slots)
        bench.open("gate")
        bench.wait_for(*slots)

    # ------------------------------------------------------------------------------------------ inline pools

    def test_inline_pools_hold_nothing(self, rig: PoolRig) -> None:
        """Check that an inline pool accepts nothing by ``submit``, has nothing to take back, and one slot."""
        bench = _inline(rig).start()
        assert bench.submit(bench.jobs(3)) == 0
        assert not bench.pool.take_back(3)
        assert not bench.pool.cancel([1])
        assert bench.pool.free() == 1

    def test_inline_runs_on_the_callers_thread(self, rig: PoolRig) -> None:
        """Check that ``run`` runs the jobs on the thread that calls it, in order, and returns their outcomes."""
        bench = _inline(rig).start()
        jobs = bench.jobs(10)
        finished = bench.inline.run(deque(jobs), 60.0)
        assert [f.key for f in finished] == [job.key for job in jobs]
        assert set(bench.where().values()) == {(os.getpid(), threading.get_ident())}
        assert bench.inline.run(deque(), 60.0) == []

    def test_inline_returns_after_its_slice(self, rig: PoolRig) -> None:
        """Check that ``run`` runs at least one job, and no further one after the time slice has passed."""
        bench = _inline(rig).start()
        queue = deque([*bench.jobs(2, "sleep", 0.05), *bench.jobs(3)])
        assert len(bench.inline.run(queue, 0.0)) == 1
        assert len(bench.inline.run(queue, 0.01)) == 1
        assert len(queue) == 3
        assert len(bench.inline.run(queue, 60.0)) == 3

    def test_inline_shares_its_jobs_with_a_thief(self, rig: PoolRig) -> None:
        """Check that another thread may take jobs from the right at any time: no error, no job lost or run twice."""
        bench = _inline(rig).start()
        for _ in range(30):
            jobs = bench.jobs(20)
            queue = deque(jobs)
            stolen: list[int] = []

            def steal(queue: deque[Job] = queue, stolen: list[int] = stolen) -> None:
                try:
                    while True:
                        stolen.append(queue.pop().key)
                        time.sleep(0)
                except IndexError:
                    pass

            thief = threading.Thread(target=steal, name="kit: thief", daemon=True)
            thief.start()
            ran: list[int] = []
            while queue:
                ran += [finished.key for finished in bench.inline.run(queue, 60.0)]
            thief.join(self.patience_s)
            assert sorted(ran + stolen) == [job.key for job in jobs]

    def test_inline_keeps_what_was_finished_before_an_interruption(self, rig: PoolRig) -> None:
        """Check that TaskInterrupted leaves ``run``, that the outcomes reached before are in the pool's attribute
        ``finished``, and that the jobs after the interrupted one are still in the deque.
        """
        bench = _inline(rig).start()
        jobs = [*bench.jobs(3), bench.job("interrupted"), *bench.jobs(2)]
        queue = deque(jobs)
        with pytest.raises(TaskInterrupted):
            bench.inline.run(queue, 60.0)
        assert [f.key for f in bench.inline.finished] == [job.key for job in jobs[:3]]
        assert list(queue) == jobs[4:]
        assert len(bench.inline.run(queue, 60.0)) == 2
        assert bench.inline.finished == []

    def test_inline_shows_what_is_finished_while_a_job_runs(self, rig: PoolRig) -> None:
        """Check that ``finished`` is the list that ``run`` goes on to fill and returns: the keeper takes from it what
        must not wait for the end of a long job.
        """
        bench = _inline(rig).start()
        early, slow = bench.jobs(3), bench.job("wait", "gate")
        taken: list[int] = []

        def take() -> None:
            bench.until_running(slow)
            found = bench.inline.finished
            taken.extend(finished.key for finished in found[:2])
            del found[:2]
            bench.open("gate")

        keeper = threading.Thread(target=take, name="kit: keeper", daemon=True)
        keeper.start()
        rest = within(self.patience_s * 2, "run", lambda: bench.inline.run(deque([*early, slow]), 60.0))
        keeper.join(self.patience_s)
        assert taken == [job.key for job in early[:2]]
        assert [finished.key for finished in rest] == [early[2].key, slow.key]

    def test_inline_is_busy_while_it_runs(self, rig: PoolRig) -> None:
        """Check that ``free`` is 0 while a job runs and 1 afterwards, also after an interruption."""
        bench = _inline(rig).start()
        job = bench.job("wait", "gate")
        seen: list[int] = []

        def look() -> None:
            bench.until_running(job)
            seen.append(bench.pool.free())
            bench.open("gate")

        watcher = threading.Thread(target=look, name="kit: watcher", daemon=True)
        watcher.start()
        within(self.patience_s * 2, "run", lambda: bench.inline.run(deque([job]), 60.0))
        watcher.join(self.patience_s)
        assert seen == [0]
        with pytest.raises(TaskInterrupted):
            bench.inline.run(deque([bench.job("interrupted")]), 60.0)
        assert bench.pool.free() == 1
