"""What every pool must do, part 3: other processes and the worker's, recycling, inspection, output, signals."""

from __future__ import annotations

import os
import pickle  # noqa: TID251  to a process of the test's own, never from a broker
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from taskq.message import Job
from taskq.spi import Running, Support, SupportsInspect
from taskq.testing.base import eventually
from taskq.testing.pool_alone import Plan
from taskq.testing.pool_rig import PoolBench, PoolRig
from taskq.testing.pool_runtime import HEAD, KitRuntime, encode
from taskq.testing.pools_limits import KINDS
from taskq.testing.pools_running import PoolBase, handing_off, of_kind

MEGABYTE = 1 << 20


def _separate(bench: PoolBench) -> PoolBench:
    """Skip where jobs run in the worker's own process."""
    jobs = bench.jobs(bench.concurrency)
    bench.feed(jobs)
    if any(process == os.getpid() for process, _ in bench.where().values()):
        pytest.skip("jobs run in the worker's process")
    return bench


def _is_alive(process: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state not in "ZX"


class Alone:
    """A worker's process of its own, in a process group of its own."""

    def __init__(self, rig: PoolRig, actions: list[tuple[Any, ...]]) -> None:
        self.patience_s = rig.patience_s * 2
        self.runtime = rig.runtime()
        # what leaves this process has no header and no delivery
        self.jobs = [Job(key, encode(*action), "kit.task", "kit", 1, len(HEAD)) for key, action in enumerate(actions)]
        runtime = KitRuntime(self.runtime.folder, {}, rig.suite.asynchronous, 0)
        plan = Plan(rig.spec.factory, rig.config(), runtime, self.jobs, self.patience_s)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "taskq.testing.pool_alone"], env=environment, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self.process.stdin is not None
        self.process.stdin.write(pickle.dumps(plan))
        self.process.stdin.flush()
        self.until("the pool has taken its jobs", lambda: self.runtime.lines("ready"))

    def until(self, what: str, check: Any) -> None:
        def look() -> Any:
            if self.process.poll() is not None and not check():
                pytest.fail(f"the worker's process ended with {self.process.returncode}: {self._errors()}")
            return check()

        eventually(self.patience_s, what, look)

    def _errors(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode(errors="replace")[-2000:]

    def until_running(self, count: int) -> None:
        self.until("its jobs run", lambda: len(self.runtime.lines("runs")) >= count)

    def end(self, how: str) -> tuple[str, str]:
        """Have it end in some way; return what was written."""
        try:
            out, err = self.process.communicate(how.encode() + b"\n", timeout=self.patience_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the worker's process did not end within {self.patience_s:g} s after {how!r}")
        return out.decode(), err.decode()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()

    def processes(self) -> set[int]:
        """Return the processes that ran jobs or were started for them, without the worker's."""
        found = {int(line.split()[1]) for line in self.runtime.lines("runs")}
        return (found | {int(line) for line in self.runtime.lines("start")}) - {self.process.pid}


@contextmanager
def alone(rig: PoolRig, *actions: tuple[Any, ...]) -> Iterator[Alone]:
    """Run jobs in a worker's process of their own."""
    one = Alone(rig, list(actions))
    try:
        yield one
    finally:
        (one.runtime.folder / "all").touch()
        one.close()
        for process in one.processes():
            if _is_alive(process):
                os.kill(process, signal.SIGKILL)


class AbilityTests(PoolBase):
    """Processes of a pool's own, and what can be seen from outside."""

    # ------------------------------------------------------------------------------------------ asking the worker

    def test_a_child_asks_its_worker(self, rig: PoolRig) -> None:
        """Check that where jobs run in other processes, ``Runtime.start`` gets a ``call`` that works at once, and that
        what tasks ask reaches ``sink.request`` and is answered: from all slots and several threads at the same time,
        while other jobs run.
        """
        bench = _separate(rig.start())
        processes = bench.runtime.lines("start")
        assert bench.runtime.lines("hello") == ["answer to hello"] * len(processes), "runtime.start() got no call"
        jobs = [*bench.jobs(bench.concurrency, "ask", 100, 20), *bench.jobs(2, "ask", 100, 10, 4), *bench.jobs(30)]
        bench.feed(jobs)
        bench.check_once(jobs)
        assert {bench.outcome(job).state for job in jobs} == {"SUCCESS"}
        assert not bench.sink.problems

    def test_large_questions_and_answers(self, rig: PoolRig) -> None:
        """Check that questions and answers of 1 MB arrive whole, and hold up no other job."""
        bench = _separate(rig.start())
        jobs = [*bench.jobs(bench.concurrency, "ask", MEGABYTE, 3), *bench.jobs(20), *bench.jobs(2, "ask", 10, 10)]
        bench.feed(jobs)
        bench.check_once(jobs)
        assert {bench.outcome(job).state for job in jobs} == {"SUCCESS"}

    def test_a_slow_answer_holds_up_nobody(self, rig: PoolRig) -> None:
        """Check that jobs run and end while another one waits for its answer, and that the answer comes in the end."""
        bench = _separate(rig.start())
        if bench.concurrency < 2:
            pytest.skip("one slot")
        bench.sink.holds_answers = True
        asking = bench.jobs(bench.concurrency - 1, "ask", 100, 1)
        bench.accept(*asking)
        eventually(self.patience_s, "the questions have arrived", lambda: len(bench.sink.unanswered) == len(asking))
        others = bench.jobs(40)
        bench.feed(others)
        assert not {job.key for job in asking} & set(bench.sink.reported())
        for answer in reversed(bench.sink.unanswered):
            answer()
        bench.wait_for(*asking)
        bench.check_once([*asking, *others])
        assert {bench.outcome(job).state for job in asking} == {"SUCCESS"}

    def test_an_answer_for_a_dead_child_is_dropped(self, rig: PoolRig) -> None:
        """Check that an answer does no harm whose child has died meanwhile."""
        bench = _separate(rig.start())
        bench.sink.holds_answers = True
        asking = bench.job("ask", 100, 1)
        bench.accept(asking)
        eventually(self.patience_s, "the question has arrived", lambda: bench.sink.unanswered)
        os.kill(bench.where()[asking.key][0], signal.SIGKILL)
        bench.wait_for(asking)
        bench.sink.unanswered[0]()
        bench.sink.holds_answers = False
        after = [*bench.jobs(10), *bench.jobs(4, "ask", 100, 2)]
        bench.feed(after)
        bench.check_once([asking, *after])
        assert not bench.sink.problems, "giving the answer raised an error"
        assert {bench.outcome(job).state for job in after} == {"SUCCESS"}

    # ------------------------------------------------------------------------------------------ children

    def test_a_stopped_child_holds_up_nobody(self, rig: PoolRig) -> None:
        """Check that jobs run on the other slots while a child is stopped (SIGSTOP) in the middle of its job."""
        bench = _separate(rig.start())
        if bench.concurrency < 2:
            pytest.skip("one slot")
        slow = bench.job("wait", "gate")
        bench.accept(slow)
        bench.until_running(slow)
        process = bench.where()[slow.key][0]
        os.kill(process, signal.SIGSTOP)
        try:
            time.sleep(self.quiet_s)
            others = [*bench.jobs(30), *bench.jobs(2, "big", 2 * MEGABYTE), *bench.jobs(30)]
            bench.feed(others)
        finally:
            os.kill(process, signal.SIGCONT)
        bench.open("gate")
        bench.wait_for(slow)
        bench.check_once([slow, *others])

    def test_children_end_after_their_share(self, rig: PoolRig) -> None:
        """Check that no child runs more than ``max_tasks_per_child`` jobs, if ``recycle`` is declared, that none is
        lost over it or said to have crashed, and that each child's hooks run.
        """
        bench = self._recycling(rig).start(2, recycle={"max_tasks_per_child": 5})
        jobs = [*bench.jobs(30), *bench.jobs(4, "sleep", 0.02), *bench.jobs(30)]
        bench.feed(jobs)
        bench.check_once(jobs)
        shares = Counter(process for process, _ in bench.where().values())
        assert max(shares.values()) <= 5, f"a child ran {max(shares.values())} jobs, not 5 at most"
        assert not bench.sink.reported("crashed"), "a child that ends after its share has not crashed"
        bench.stop()
        assert sorted(bench.runtime.lines("start")) == sorted(bench.runtime.lines("stop"))

    def test_children_end_when_they_have_grown(self, rig: PoolRig) -> None:
        """Check that a child that takes more than ``max_memory_per_child`` after a job is replaced, if ``recycle`` is
        declared, and one that does not stays.
        """
        bench = self._recycling(rig).start(1, recycle={"max_memory_per_child": 200 * MEGABYTE})
        jobs = bench.jobs(10)
        bench.feed(jobs)
        grown = bench.job("grow", 210)
        bench.feed([grown])
        after = bench.jobs(10)
        bench.feed(after)
        bench.check_once([*jobs, grown, *after])
        where = {key: process for key, (process, _) in bench.where().items()}
        assert len({where[job.key] for job in [*jobs, grown]}) == 1, "a child was replaced that had not grown"
        assert bench.outcome(grown).state == "SUCCESS"
        assert where[grown.key] not in {where[job.key] for job in after[1:]}, "a child that had grown stayed"
        assert not bench.sink.reported("crashed")

    def _recycling(self, rig: PoolRig) -> PoolRig:
        if not rig.spec.capabilities.recycle:
            pytest.skip("recycle is not declared")
        return rig

    # ------------------------------------------------------------------------------------------ inspection

    @KINDS
    def test_running_jobs_are_shown(self, rig: PoolRig, kind: str) -> None:
        """Check that ``running`` shows each running job, and no other, the oldest first, with the time of its start,
        where it runs, and, if asked for, a stack with the task's function (an ``async def`` one where the pool runs
        those natively).
        """
        bench = of_kind(handing_off(rig), kind).start(asynchronous=kind == "async def")
        pool = self._inspected(bench)
        assert list(pool.running()) == []
        moments = [time.monotonic()]
        jobs = bench.jobs(bench.concurrency, "wait", "gate")
        for job in jobs:
            bench.accept(job)
            bench.until_running(job)
            moments.append(time.monotonic())
        bench.submit(bench.jobs(2))
        shown = list(pool.running())
        assert [one.key for one in shown] == [job.key for job in jobs]
        for one, before, after in zip(shown, moments, moments[1:], strict=False):
            assert before - 0.01 <= one.since <= after + 0.01, "a running job's start is not when it began"
        assert all(one.where for one in shown)
        # a job says that it runs a moment before it is in the function that waits
        eventually(self.patience_s, "stacks are shown", lambda: all(f in text for f, text in self._stacks(pool, kind)))
        self._check_stacks(list(pool.running(stacks=True)), jobs, kind)
        bench.open("gate")
        bench.wait_for(*jobs)
        eventually(self.patience_s, "nothing runs any more", lambda: not pool.running(stacks=True))
        bench.stop()
        assert list(pool.running()) == []

    def test_an_inline_pool_shows_its_job(self, rig: PoolRig) -> None:
        """Check the same of an inline pool, asked by another thread."""
        bench = rig.start()
        if not rig.spec.capabilities.inline:
            pytest.skip("not an inline pool")
        pool = self._inspected(bench)
        job, begin = bench.job("wait", "gate"), time.monotonic()
        shown: list[list[Running]] = []

        def look() -> None:
            bench.until_running(job)
            shown.append(list(pool.running()))
            shown.append(list(pool.running(stacks=True)))
            bench.open("gate")

        watcher = threading.Thread(target=look, name="kit: watcher", daemon=True)
        watcher.start()
        bench.feed([*bench.jobs(2), job])
        watcher.join(self.patience_s)
        for found in shown:
            assert [one.key for one in found] == [job.key]
            assert begin <= found[0].since <= time.monotonic()
            assert found[0].where
        self._check_stacks(shown[1], [job], "async def" if self.asynchronous else "def")
        assert list(pool.running()) == []

    def test_inspecting_disturbs_nobody(self, rig: PoolRig) -> None:
        """Check that ``running`` may be asked all the time while jobs come and go."""
        bench = handing_off(rig).start()
        pool = self._inspected(bench)
        shown: list[int] = []
        problems: list[BaseException] = []
        over = threading.Event()

        def look() -> None:
            while not over.is_set():
                try:
                    shown.extend(one.key for one in pool.running(stacks=len(shown) % 2 == 0))
                except BaseException as error:
                    problems.append(error)
                    return
                time.sleep(0.001)

        watcher = threading.Thread(target=look, name="kit: watcher", daemon=True)
        watcher.start()
        jobs = bench.jobs(300)
        try:
            bench.feed(jobs)
        finally:
            over.set()
            watcher.join(self.patience_s)
        assert not problems, f"running() raised {problems[0]!r}"
        bench.check_once(jobs)
        assert not set(shown) - {job.key for job in jobs}

    def _inspected(self, bench: PoolBench) -> SupportsInspect:
        if not isinstance(bench.pool, SupportsInspect):
            pytest.skip("the pool cannot tell what runs")
        return bench.pool

    def _function(self, kind: str) -> str:
        native = self.load_spec().capabilities.async_tasks is Support.NATIVE
        return "_wait" if kind == "def" else "_wait_async" if native else "_run_coroutine"

    def _stacks(self, pool: SupportsInspect, kind: str) -> list[tuple[str, str]]:
        return [(self._function(kind), one.stack or "") for one in pool.running(stacks=True)]

    def _check_stacks(self, shown: list[Running], jobs: list[Job], kind: str) -> None:
        assert {one.key for one in shown} == {job.key for job in jobs}
        function = self._function(kind)
        for one in shown:
            assert function in (one.stack or ""), f"the stack does not show the task's function: {one.stack}"

    # ------------------------------------------------------------------------------------------ the process around it

    def test_what_a_task_prints_goes_through(self, rig: PoolRig) -> None:
        """Check that a task's standard output and error are the worker's own."""
        with alone(rig, ("print", "a line of a task"), ("print", "a line of a task"), ("noop",)) as one:
            one.until("the jobs are reported", lambda: len(one.runtime.lines("reported")) == 3)
            out, err = one.end("stop")
        assert out.count("a line of a task") == 2  # of two processes, whose line ends may come late
        assert err.count("A LINE OF A TASK") == 2

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_signals_are_the_workers(self, rig: PoolRig, number: signal.Signals) -> None:
        """Check that a signal to all processes of the worker, as Ctrl-C and service managers send it, ends no job: what
        it means is for the worker to say.
        """
        with alone(rig, ("noop",), ("wait", "gate")) as one:
            one.until_running(2)
            one.until("one of them has ended", lambda: one.runtime.lines("reported"))
            os.killpg(one.process.pid, number)
            time.sleep(self.quiet_s)
            (one.runtime.folder / "gate").touch()
            one.until("the jobs have ended", lambda: len(one.runtime.lines("reported")) == 2)
            assert sorted(one.runtime.lines("reported")) == ["SUCCESS 0", "SUCCESS 1"]
            one.end("stop")
            assert one.runtime.lines("stopped") == ["[]"]

    def test_no_child_outlives_its_worker(self, rig: PoolRig) -> None:
        """Check that the pool's processes end when the worker's process is killed, those that run a job, too."""
        if rig.spec.capabilities.inline:
            pytest.skip("an inline pool has no processes")
        with alone(rig, ("stubborn", "never"), ("noop",), ("noop",)) as one:
            one.until_running(3)
            processes = one.processes()
            if not processes:
                pytest.skip("jobs run in the worker's process")
            one.process.kill()
            one.process.wait(self.patience_s)
            eventually(self.patience_s, "no child is left", lambda: not [p for p in processes if _is_alive(p)])

    def test_a_running_job_does_not_keep_the_process(self, rig: PoolRig) -> None:
        """Check that a process which ends without stopping its pool does end, whatever runs, and leaves none behind."""
        if rig.spec.capabilities.inline:
            pytest.skip("the job runs on the thread that would end the process")
        with alone(rig, ("stubborn", "never"), ("noop",)) as one:
            one.until_running(2)
            processes = one.processes()
            one.end("leave")
            eventually(self.patience_s, "no child is left", lambda: not [p for p in processes if _is_alive(p)])
