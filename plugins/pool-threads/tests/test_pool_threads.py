"""What is special about the threads pool: one queue, wake-ups by worth, a watcher that sleeps."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time

import pytest

from taskq.errors import ConfigError, WorkerError
from taskq.spi import DONE, Finished, Job, NoOptions, Outcome, PoolConfig, TaskLimits
from taskq_pool_threads import pool as driver
from taskq_pool_threads.plugin import taskq_pool

SUCCESS = Outcome(DONE, "SUCCESS")
PATIENCE_S = 20.0


class FakeRuntime:
    """Jobs wait for their event, if they have one."""

    def __init__(self):
        self.events = {}
        self.threads = {}

    def execute(self, job):
        self.threads[job.key] = threading.current_thread()
        if job.key in self.events:
            assert self.events[job.key].wait(PATIENCE_S)
        return SUCCESS

    def limits(self, task):
        return TaskLimits()

    def is_async(self, task):
        return False


class FakeSink:
    def __init__(self):
        self.ended = set()
        self.batches = []
        self.threads = []

    def started(self, keys):
        pass

    def finished(self, batch):
        self.batches.append([finished.key for finished in batch])
        self.threads.append(threading.current_thread().name)
        self.ended.update(finished.key for finished in batch)

    def returned(self, keys):
        pass

    def wait_for(self, keys):
        deadline = time.monotonic() + PATIENCE_S
        missing = set(keys)
        while missing := missing - self.ended:
            assert time.monotonic() < deadline, f"never reported: {missing}"
            time.sleep(0.001)


def job(key):
    return Job(key, b"", "t", "q", 1)


def feed(pool, sink, jobs):
    """Give all jobs as the pool takes them, and wait for their ends."""
    deadline = time.monotonic() + PATIENCE_S
    rest = list(jobs)
    while rest:
        rest = rest[pool.submit(rest) :]
        assert time.monotonic() < deadline
        time.sleep(0.001)
    sink.wait_for(job.key for job in jobs)


@pytest.fixture
def start():
    pools = []

    def start(concurrency=4):
        pool = taskq_pool("threads").factory(PoolConfig(concurrency=concurrency, options=NoOptions(), name="w1"))
        runtime, sink = FakeRuntime(), FakeSink()
        pool.start(runtime, sink)
        pools.append((pool, runtime))
        return pool, runtime, sink

    yield start
    for pool, runtime in pools:
        for event in runtime.events.values():
            event.set()
        assert not pool.stop(time.monotonic() + PATIENCE_S)


def test_a_concurrency_below_one_is_refused():
    with pytest.raises(ConfigError, match="concurrency of 0; it needs at least 1"):
        taskq_pool("threads").factory(PoolConfig(concurrency=0, options=NoOptions()))


def test_starting_twice_is_an_error(start):
    pool, runtime, sink = start()
    with pytest.raises(WorkerError, match="twice"):
        pool.start(runtime, sink)


def test_a_system_without_threads_is_told(monkeypatch):
    pool = taskq_pool("threads").factory(PoolConfig(concurrency=3, options=NoOptions(), name="w2"))
    begin, started = threading.Thread.start, []

    def fail_at_the_third(thread):
        if len(started) == 3:  # the watcher and two of three
            raise RuntimeError("can't start new thread")
        started.append(thread)
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", fail_at_the_third)
    with pytest.raises(WorkerError, match=r"could start 2 of 3 threads: can't start new thread.*Lower the concurrency"):
        pool.start(FakeRuntime(), FakeSink())
    for thread in started:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_threads_are_named_and_do_not_keep_the_process(start):
    pool, runtime, sink = start()
    pool.submit([job(1)])
    sink.wait_for([1])
    assert runtime.threads[1].name.startswith("w1-pool-")
    assert runtime.threads[1].daemon


def test_a_stuck_task_does_not_keep_the_process_from_ending():
    code = (
        "import threading, time\n"
        "runs = threading.Event()\n"
        "from taskq.spi import *\n"
        "from taskq_pool_threads.plugin import taskq_pool\n"
        "class Runtime:\n"
        "    def execute(self, job): runs.set(); time.sleep(600)\n"
        "    def limits(self, task): return TaskLimits()\n"
        "    def is_async(self, task): return False\n"
        "class Sink:\n"
        "    def started(self, keys): pass\n"
        "pool = taskq_pool('threads').factory(PoolConfig(concurrency=1, options=None))\n"
        "pool.start(Runtime(), Sink())\n"
        "pool.submit([Job(1, b'', 't', 'q', 1)])\n"
        "assert runs.wait(10)\n"
        "assert pool.stop(time.monotonic() + 0.2) == [1]\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=20).returncode == 0


def test_tiny_jobs_wake_few_threads_and_long_ones_all(start):
    pool, runtime, sink = start(8)
    for first in range(0, 2000, 100):
        feed(pool, sink, [job(key) for key in range(first, first + 100)])
    assert pool._typical < 0.0005
    waiting = [job(key) for key in range(5000, 5008)]
    runtime.events = {key: threading.Event() for key in range(5000, 5008)}
    assert pool.submit(waiting) == 8  # believed to be worth one thread; the watcher finds out that they are not
    deadline = time.monotonic() + PATIENCE_S
    while not runtime.threads.keys() >= runtime.events.keys():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert len({runtime.threads[key] for key in runtime.events}) == 8


def test_nothing_is_taken_ahead_of_tasks_that_are_known_to_be_long(start):
    pool, _, _ = start(4)
    pool._typical = 1.0
    batch = [job(key) for key in range(100)]
    assert pool.submit(batch) == 4
    pool._typical = 0.01
    assert pool.submit(batch[4:]) >= 10


def test_an_idle_pool_sleeps(start, monkeypatch):
    """The watcher has nothing to look after once all is reported."""
    pool, _, sink = start()
    feed(pool, sink, [job(key) for key in range(50)])
    looks = []
    unattended = pool._unattended
    monkeypatch.setattr(pool, "_unattended", lambda: looks.append(1) or unattended())
    deadline = time.monotonic() + PATIENCE_S
    while pool._watching:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    looks.clear()
    time.sleep(0.1)
    assert looks == []


def test_a_long_job_does_not_keep_reports_back(start):
    pool, runtime, sink = start(1)
    runtime.events[3] = threading.Event()
    pool.submit([job(1), job(2), job(3)])
    sink.wait_for([1, 2])
    assert 3 not in sink.ended


def test_a_report_that_fails_is_logged(start, caplog):
    pool, _, sink = start(1)
    calls = []
    original = sink.finished

    def fail_once(batch):
        calls.append(batch)
        if len(calls) == 1:
            raise ValueError("no")
        original(batch)

    sink.finished = fail_once
    with caplog.at_level(logging.ERROR, "taskq.pool.threads"):
        pool.submit([job(1)])
        deadline = time.monotonic() + PATIENCE_S
        while pool.free() < 1 or not caplog.records:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    assert isinstance(calls[0][0], Finished)
    assert "failed to take a report" in caplog.text
    assert "ValueError: no" in caplog.text
    pool.submit([job(2)])
    sink.wait_for([2])


def test_a_sink_that_hangs_does_not_keep_the_pool_from_stopping(start):
    pool, _, sink = start(1)
    hang = threading.Event()
    entered = threading.Event()
    sink.finished = lambda batch: (entered.set(), hang.wait(PATIENCE_S * 2))
    pool.submit([job(1)])
    assert entered.wait(PATIENCE_S)
    begin = time.monotonic()
    pool.stop(begin)
    assert time.monotonic() - begin < PATIENCE_S
    hang.set()


def test_resize_is_clamped_to_one_thread(start):
    pool, _, sink = start(2)
    assert pool.resize(0) == pool.resize(-3) == 1
    pool.submit([job(1)])
    sink.wait_for([1])
    assert pool.free() == 1


def test_limits_are_what_the_readme_says():
    assert (driver.FLUSH_S, driver.FLUSH_JOBS, driver.CHUNK_S, driver.AHEAD_S) == (0.005, 128, 0.002, 0.05)
    assert driver.AHEAD_JOBS == 1024


def test_the_plugin_module_does_not_import_the_driver():
    code = "import sys, taskq_pool_threads.plugin; sys.exit('taskq_pool_threads.pool' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
