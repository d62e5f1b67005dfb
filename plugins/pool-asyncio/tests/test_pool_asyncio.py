"""What the kit does not know of: the tasks that jobs share, the watchdog, the choice of a loop."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import subprocess
import sys
import threading
import time

import pytest

from taskq.errors import ConfigError, TaskFailure, WorkerError
from taskq.spi import DONE, Job, Outcome, PoolConfig, TaskLimits
from taskq_pool_asyncio.options import AsyncioOptions
from taskq_pool_asyncio.plugin import taskq_pool

PATIENCE_S = 20.0
SUCCESS = Outcome(DONE, "SUCCESS")
seen: contextvars.ContextVar[int] = contextvars.ContextVar("seen", default=0)


class FakeRuntime:
    """Runs the coroutine functions that it is given, by key."""

    def __init__(self):
        self.bodies = {}

    async def execute_async(self, job):
        await self.bodies[job.key]()
        return SUCCESS

    def execute(self, job):
        self.bodies[job.key]()
        return SUCCESS

    def is_async(self, task):
        return task != "sync"

    def limits(self, task):
        return TaskLimits()


class FakeSink:
    def __init__(self):
        self.ends = {}
        self.changed = threading.Condition()

    def _note(self, ends):
        with self.changed:
            self.ends.update(ends)
            self.changed.notify_all()

    def started(self, keys):
        pass

    def finished(self, batch):
        self._note({finished.key: finished.outcome for finished in batch})

    def returned(self, keys):
        self._note(dict.fromkeys(keys, "returned"))

    def crashed(self, running, unstarted, reason):
        self._note(dict.fromkeys(running, reason))

    def aborted(self, keys, error):
        self._note(dict.fromkeys(keys, error))

    def wait_for(self, *keys):
        with self.changed:
            assert self.changed.wait_for(lambda: set(keys) <= self.ends.keys(), PATIENCE_S), self.ends


@pytest.fixture(params=["asyncio", "uvloop"])
def start(request):
    pools = []

    def start(concurrency=4, **options):
        if request.param == "uvloop":
            pytest.importorskip("uvloop")
        options = AsyncioOptions(loop=request.param, **options)
        pool = taskq_pool("asyncio").factory(PoolConfig(concurrency=concurrency, options=options, name="w1"))
        runtime, sink = FakeRuntime(), FakeSink()
        pool.start(runtime, sink)
        pools.append(pool)
        return pool, runtime, sink

    yield start
    for pool in pools:
        pool.stop(time.monotonic())


def run(pool, runtime, sink, *bodies, task="t"):
    first = len(runtime.bodies)
    keys = list(range(first, first + len(bodies)))
    runtime.bodies.update(zip(keys, bodies, strict=True))
    assert pool.submit([Job(key, b"", task, "q", 1) for key in keys]) == len(keys)
    sink.wait_for(*keys)
    return [sink.ends[key] for key in keys]


def test_the_loop_is_the_one_that_was_chosen(start, request):
    loops = []

    async def look():
        loops.append(type(asyncio.get_running_loop()).__module__.partition(".")[0])

    run(*start(), look)
    assert loops == [request.node.callspec.params["start"]]


def test_a_task_that_never_waits_leaves_nothing_to_the_next(start):
    """Context variables, cancellations, callbacks and references on the current task are a job's own."""
    traces, kept, called = [], {}, []

    async def leave_context():
        traces.append(seen.get())
        seen.set(1)

    async def cancel_itself():
        asyncio.current_task().cancel()

    async def call_back():
        asyncio.current_task().add_done_callback(lambda task: called.append(task))

    async def keep():
        kept[asyncio.current_task()] = 1

    async def wait():
        traces.append((seen.get(), asyncio.current_task() in kept, asyncio.current_task().cancelling()))
        await asyncio.sleep(0)

    rig = start(1)
    for leave in (leave_context, cancel_itself, call_back, keep, leave_context):
        assert run(*rig, leave, wait) == [SUCCESS, SUCCESS]
    assert traces[0] == 0
    assert traces[-2] == 0
    assert [trace for trace in traces if isinstance(trace, tuple)] == [(0, False, 0)] * 5
    assert len(called) == 1


def test_what_needs_a_task_of_its_own_works(start):
    """``timeout`` and ``TaskGroup`` work from a task's first step on."""
    found = []

    async def time_out():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(PATIENCE_S)
        found.append("timeout")

    async def group():
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.sleep(0))
        found.append("group")

    async def at_once():
        async with asyncio.timeout(PATIENCE_S):  # noqa: ASYNC100  on purpose
            pass
        async with asyncio.TaskGroup():
            pass
        found.append("at once")

    assert run(*start(), time_out, group, at_once, at_once) == [SUCCESS] * 4
    assert sorted(found) == ["at once", "at once", "group", "timeout"]


def test_a_cancellation_that_nobody_asked_for_is_a_failure(start):
    async def stray():
        asyncio.current_task().cancel()
        await asyncio.sleep(PATIENCE_S)

    (end,) = run(*start(), stray)
    assert isinstance(end, TaskFailure)
    assert "nobody had asked" in str(end)


def test_a_task_that_blocks_the_loop_is_warned_of_once(start, caplog):
    async def block_the_loop():
        time.sleep(0.6)  # noqa: ASYNC251  on purpose

    with caplog.at_level(logging.WARNING, "taskq.pool.asyncio"):
        assert run(*start(block_warning_s=0.1), block_the_loop) == [SUCCESS]
    assert len(caplog.records) == 1
    assert "task t [0]" in caplog.text
    assert "in block_the_loop" in caplog.text


def test_a_task_that_awaits_is_not_warned_of(start, caplog):
    async def wait():
        await asyncio.sleep(0.5)

    with caplog.at_level(logging.WARNING, "taskq.pool.asyncio"):
        assert run(*start(block_warning_s=0.1), wait) == [SUCCESS]
    assert not caplog.records


def test_ends_are_reported_while_the_loop_is_blocked(start):
    pool, runtime, sink = start(2)
    gate = threading.Event()

    async def block():
        gate.wait(PATIENCE_S)

    async def quick():
        pass

    runtime.bodies.update({0: quick, 1: block})
    try:
        pool.submit([Job(0, b"", "t", "q", 1), Job(1, b"", "t", "q", 1)])
        sink.wait_for(0)
        assert 1 not in sink.ends
    finally:
        gate.set()


def test_a_blocked_loop_leaves_the_others_alone(start):
    pool, runtime, sink = start(4, loops=2)
    gate = threading.Event()

    async def block():
        gate.wait(PATIENCE_S)

    async def quick():
        await asyncio.sleep(0)

    runtime.bodies.update({0: block, **dict.fromkeys(range(1, 20), quick)})
    try:
        pool.submit([Job(0, b"", "t", "q", 1)])
        for key in range(1, 20):
            pool.submit([Job(key, b"", "t", "q", 1)])
            sink.wait_for(key)
    finally:
        gate.set()


def test_long_functions_get_a_thread_each_although_short_ones_did_not(start):
    pool, runtime, sink = start(50)
    for _ in range(20):
        run(pool, runtime, sink, *[lambda: None] * 50, task="sync")
    gate = threading.Event()
    first = len(runtime.bodies)
    runtime.bodies.update(dict.fromkeys(range(first, first + 50), lambda: gate.wait(PATIENCE_S)))
    pool.submit([Job(key, b"", "sync", "q", 1) for key in range(first, first + 50)])
    deadline = time.monotonic() + PATIENCE_S
    while len(pool.crew.running) < 50:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    gate.set()
    sink.wait_for(*range(first, first + 50))


def test_starting_twice_is_an_error(start):
    pool, runtime, sink = start()
    with pytest.raises(WorkerError, match="twice"):
        pool.start(runtime, sink)


def test_a_missing_uvloop_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)
    config = PoolConfig(concurrency=1, options=AsyncioOptions(loop="uvloop"))
    with pytest.raises(ConfigError, match="pip install uvloop"):
        taskq_pool("asyncio").factory(config)
    taskq_pool("asyncio").factory(PoolConfig(concurrency=1, options=AsyncioOptions()))


def test_the_plugin_module_imports_no_driver():
    code = "import sys, taskq_pool_asyncio.plugin; sys.exit('asyncio' in sys.modules or 'uvloop' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
