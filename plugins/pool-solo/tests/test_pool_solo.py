"""What is special about the solo pool: it is inline."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import deque

import pytest

from taskq.errors import NotSupported, TaskInterrupted, WorkerError
from taskq.spi import DONE, Job, NoOptions, Outcome, PoolConfig, SupportsInline, TaskLimits
from taskq_pool_solo.plugin import taskq_pool

SUCCESS = Outcome(DONE, "SUCCESS")


class FakeRuntime:
    def __init__(self, behave=lambda job: SUCCESS):
        self.ran = []
        self.behave = behave

    def tasks(self):
        return ["t"]

    def limits(self, task):
        return TaskLimits()

    def execute(self, job):
        self.ran.append((job.key, threading.get_ident()))
        return self.behave(job)


class FakeSink:
    def __init__(self):
        self.calls = []

    def crashed(self, running, unstarted, reason):
        self.calls.append((list(running), list(unstarted), reason))


def started(behave=lambda job: SUCCESS):
    pool = taskq_pool("solo").factory(PoolConfig(concurrency=1, options=NoOptions()))
    runtime, sink = FakeRuntime(behave), FakeSink()
    pool.start(runtime, sink)
    return pool, runtime, sink


def jobs(n):
    return deque(Job(key, b"", "t", "q", 1) for key in range(n))


def raising(key, error):
    def behave(job):
        if job.key == key:
            raise error
        return SUCCESS

    return behave


@pytest.mark.parametrize("concurrency", [0, 2, 8])
def test_another_concurrency_is_refused(concurrency):
    with pytest.raises(NotSupported, match=rf"concurrency of {concurrency}\b.*set it to 1"):
        taskq_pool("solo").factory(PoolConfig(concurrency=concurrency, options=NoOptions()))


def test_runs_everything_in_order_on_the_calling_thread():
    pool, runtime, _ = started()
    assert isinstance(pool, SupportsInline)
    queue = jobs(5)
    finished = pool.run(queue, 60)
    assert [f.key for f in finished] == [0, 1, 2, 3, 4]
    assert all(f.outcome is SUCCESS and f.elapsed >= 0 for f in finished)
    assert runtime.ran == [(key, threading.get_ident()) for key in range(5)]
    assert not queue
    assert pool.run(queue, 60) == []


def test_at_least_one_job_runs_however_short_the_slice():
    pool, _, _ = started()
    queue = jobs(3)
    assert [f.key for f in pool.run(queue, 0.0)] == [0]
    assert [job.key for job in queue] == [1, 2]


def test_jobs_taken_from_the_right_meanwhile_do_not_run():
    queue = jobs(4)

    def steal(job):
        while queue:
            queue.pop()
        return SUCCESS

    pool, runtime, _ = started(steal)
    assert [f.key for f in pool.run(queue, 60)] == [0]
    assert [key for key, _ in runtime.ran] == [0]


@pytest.mark.parametrize("error", [TaskInterrupted(), KeyboardInterrupt()])
def test_an_interruption_keeps_what_has_finished(error):
    pool, _, _ = started(raising(2, error))
    queue = jobs(5)
    with pytest.raises(type(error)):
        pool.run(queue, 60)
    assert [f.key for f in pool.finished] == [0, 1]
    assert [job.key for job in queue] == [3, 4]
    assert pool.free() == 1
    pool.run(queue, 60)
    assert pool.finished == []


def test_a_runtime_that_raises_loses_its_own_job_only():
    pool, _, sink = started(raising(1, ValueError("broken")))
    assert [f.key for f in pool.run(jobs(3), 60)] == [0, 2]
    ((running, unstarted, reason),) = sink.calls
    assert (running, unstarted) == ([1], [])
    assert "ValueError: broken" in reason


def test_it_is_busy_while_it_runs():
    seen = []
    pool, _, _ = started(lambda job: seen.append(pool.free()) or SUCCESS)
    assert pool.free() == 1
    pool.run(jobs(1), 60)
    assert seen == [0]
    assert pool.free() == 1
    assert pool.stop(0.0) == ()
    assert pool.free() == 0


def test_it_does_not_run_before_start_nor_after_stop():
    pool = taskq_pool("solo").factory(PoolConfig(concurrency=1, options=NoOptions()))
    assert pool.free() == 0
    with pytest.raises(WorkerError):
        pool.run(jobs(1), 60)
    pool.start(FakeRuntime(), FakeSink())
    with pytest.raises(WorkerError, match="twice"):
        pool.start(FakeRuntime(), FakeSink())
    pool.stop(0.0)
    with pytest.raises(WorkerError):
        pool.run(jobs(1), 60)


def test_the_plugin_module_does_not_import_the_driver():
    code = "import sys, taskq_pool_solo.plugin; sys.exit('taskq_pool_solo.pool' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
