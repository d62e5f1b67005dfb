"""What tasks and outsiders do to a child, and what becomes of the task: the table in the README, line by line."""

from __future__ import annotations

import os
import signal
import time

import pytest

from taskq.errors import ResultTooLarge, SoftTimeLimitExceeded, TaskDead, TaskFailure, TaskRevoked, TimeLimitExceeded
from taskq_pool_prefork.protocol import Board

PATIENCE_S = 20.0
pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks at processes through /proc")

ON_BOTH = pytest.mark.parametrize("site", ["sqlite", pytest.param("redis", marks=pytest.mark.server)], indirect=True)


def works(site, count=6):
    """Check that the pool goes on."""
    results = [site.send("echo", f"after-{i}") for i in range(count)]
    assert [r.get(timeout=PATIENCE_S) for r in results] == [f"after-{i}" for i in range(count)]


def died_thrice(site, task, *args):
    """Send a task that kills its process: it is tried as often as deliveries are allowed, then dead."""
    result = site.send(task, *args)
    with pytest.raises(TaskDead):
        result.get(timeout=PATIENCE_S)
    assert [int(deliveries) for (deliveries,) in site.notes(task)] == [1, 2, 3]


CRASHES = """
    @app.task
    def segfault():
        note("segfault", current_request().deliveries)
        ctypes.string_at(0)

    @app.task
    def exits_hard():
        note("exits_hard", current_request().deliveries)
        os._exit(7)

    @app.task
    def killed():
        note("killed", current_request().deliveries)
        os.kill(os.getpid(), signal.SIGKILL)

    @app.task
    def closes_everything(stay):
        note("closes_everything", current_request().deliveries)
        os.closerange(3, 4096)
        if stay:
            time.sleep(60)

    @app.task
    def reuses_everything():
        victim = open(os.path.join(HERE, "victim"), "ab")
        for descriptor in range(3, 100):
            if descriptor != victim.fileno():
                os.dup2(victim.fileno(), descriptor)
"""


@ON_BOTH
@pytest.mark.parametrize("task", ["segfault", "exits_hard", "killed"])
def test_a_task_that_kills_its_process_is_dead_after_its_deliveries(site, task):
    site.start(CRASHES)
    others = [site.send("echo", i) for i in range(30)]
    died_thrice(site, task)
    assert [r.get(timeout=PATIENCE_S) for r in others] == list(range(30))
    assert {note[2] for note in site.notes("echo")} == {"1"}, "the crash of one task has cost another a delivery"
    works(site)


@ON_BOTH
def test_a_task_that_closes_descriptors_loses_its_process(site):
    site.start(CRASHES, max_deliveries=1)
    before = site.children
    with pytest.raises(TaskDead, match="lost its sockets"):
        site.send("closes_everything", True).get(timeout=PATIENCE_S)
    # one that ends at once may be quicker than the process: what it returned is in shared memory, and counts
    result = site.send("closes_everything", False)
    site.eventually(result.ready)
    works(site)
    assert not set(before) & set(site.children)


def test_nothing_is_written_to_a_tasks_file_in_place_of_the_socket(site):
    site.start(CRASHES, max_deliveries=1)
    with pytest.raises(TaskDead, match="lost its sockets"):
        site.send("reuses_everything").get(timeout=PATIENCE_S)
    assert (site.folder / "victim").read_bytes() == b""
    works(site)


ODD = """
    class Unpicklable:
        def __reduce__(self):
            raise RuntimeError("not me")

    class Odd(Exception):
        def __reduce__(self):
            raise RuntimeError("nor me")

    @app.task
    def exits():
        sys.exit(5)

    @app.task
    def returns_odd():
        return Unpicklable()

    @app.task
    def raises_odd():
        raise Odd("as it is")

    @app.task
    def large(size):
        return "x" * size

    @app.task
    def forks():
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
        return "parent" if pid else "child"

    @app.task
    def forks_and_leaves():
        pid = os.fork()
        if not pid:
            time.sleep(60)
        note("left", pid)
        return "done"

    @app.task
    def has_children():
        context = multiprocessing.get_context("fork")
        process = context.Process(target=time.sleep, args=(60,))
        process.start()
        process.terminate()
        process.join(10)
        return process.exitcode

    @app.task
    def program():
        done = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        done.terminate()
        return done.wait(10)

    @app.task
    def ignores():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        return "ignored"

    @app.task
    def prints():
        print("a task says", "hello", end="")
        print()
        return "printed"
"""


def test_sys_exit_ends_the_task_only(site):
    site.start(ODD, concurrency=1)
    before = site.children
    with pytest.raises(TaskFailure, match="SystemExit"):
        site.send("exits").get(timeout=PATIENCE_S)
    works(site)
    assert site.children == before


def test_results_that_cannot_be_sent_fail_their_task_only(site):
    site.start(ODD, concurrency=1)
    before = site.children
    with pytest.raises(Exception, match="Unpicklable"):
        site.send("returns_odd").get(timeout=PATIENCE_S)
    with pytest.raises(Exception, match="as it is"):
        site.send("raises_odd").get(timeout=PATIENCE_S)
    works(site)
    assert site.children == before


@ON_BOTH
def test_a_result_of_100_mb_fails_typed_and_holds_up_nobody(site):
    site.start(ODD, concurrency=2)
    results = [site.send("large", 100_000_000), *(site.send("large", 900_000) for _ in range(4))]
    with pytest.raises(ResultTooLarge, match="max_result_bytes"):
        results[0].get(timeout=PATIENCE_S)
    assert [len(r.get(timeout=PATIENCE_S)) for r in results[1:]] == [900_000] * 4
    works(site)


def test_a_task_may_fork(site):
    site.start(ODD, concurrency=1)
    assert site.send("forks").get(timeout=PATIENCE_S) == "parent"
    assert site.send("forks_and_leaves").get(timeout=PATIENCE_S) == "done"
    assert site.send("has_children").get(timeout=PATIENCE_S) == -signal.SIGTERM
    assert site.send("program").get(timeout=PATIENCE_S) == -signal.SIGTERM
    works(site)
    (left,) = [int(pid) for (pid,) in site.notes("left") if pid != "0"]
    # it holds no socket of its parent: the end of that one is seen
    os.kill(site.children[0], signal.SIGKILL)
    works(site)
    try:
        os.kill(left, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it went with its parent's group


def test_signals_that_are_for_the_worker_do_nothing_to_children(site):
    site.start(ODD, concurrency=1)
    before = site.children
    gated = site.send("gated", 1)
    site.eventually(lambda: site.notes("began"))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        os.kill(before[0], number)
        os.kill(site.server, number)
    time.sleep(0.1)
    site.open()
    assert gated.get(timeout=PATIENCE_S) == 1
    assert site.send("ignores").get(timeout=PATIENCE_S) == "ignored"
    works(site)
    assert site.children == before


def test_what_a_task_prints_is_seen_at_once(site, capfd):
    site.start(ODD, concurrency=1)
    assert site.send("prints").get(timeout=PATIENCE_S) == "printed"
    assert "a task says hello\n" in capfd.readouterr().out


LIMITS = """
    from taskq.errors import SoftTimeLimitExceeded

    @app.task(soft_time_limit=0.2)
    def soft():
        try:
            time.sleep(30)
        except SoftTimeLimitExceeded:
            return "cleaned up"

    @app.task(time_limit=0.4)
    def hard(what):
        note("hard", os.getpid())
        if what == "c":
            ctypes.PyDLL(None).sleep(30)  # with the interpreter's lock held
        while True:
            try:
                time.sleep(30)
            except BaseException:
                pass

    @app.task(time_limit=0.4)
    def hard_program():
        program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        note("program", program.pid)
        program.wait()

    @app.task
    def c_code(x):
        note("began", x, os.getpid())
        ctypes.PyDLL(None).sleep(x)
        return x
"""


@ON_BOTH
def test_soft_and_hard_limits(site):
    site.start(LIMITS)
    soft, python, c = site.send("soft"), site.send("hard", "python"), site.send("hard", "c")
    assert soft.get(timeout=PATIENCE_S) == "cleaned up"
    for result in (python, c):
        with pytest.raises(TimeLimitExceeded, match=r"0\.4 s"):
            result.get(timeout=PATIENCE_S)
    works(site)
    assert not [pid for (pid,) in site.notes("hard") if site.alive(int(pid))]


def test_limit_and_cancellation_outlast_the_set_up_of_an_event_loop(site):
    """Both strike while the loop of an ``async def`` task is made, where nothing can be raised; they come again."""
    site.start(
        """
    import asyncio

    class Slow(asyncio.DefaultEventLoopPolicy):
        def new_event_loop(self):
            note("makes", os.getpid())
            gate("loops")
            return super().new_event_loop()

    asyncio.set_event_loop_policy(Slow())

    @app.task(soft_time_limit=0.05)
    async def limited():
        await asyncio.sleep(60)

    @app.task
    async def endless():
        await asyncio.sleep(60)
    """
    )
    results = [site.send("limited"), site.send("endless")]
    site.eventually(lambda: len(site.notes("makes")) == 2 and len(site.pool.running()) == 2)
    runs = {job.task: job.key for m in site.pool._crew.members.values() if (job := m.running()) is not None}
    endless = runs[f"{site.module}.endless"]
    assert list(site.pool.cancel([endless])) == [endless]
    time.sleep(0.3)  # both strike, several times
    site.open("loops")
    with pytest.raises(SoftTimeLimitExceeded, match=r"0\.05 s"):
        results[0].get(timeout=PATIENCE_S)
    with pytest.raises(TaskRevoked, match="cancelled while it ran"):
        results[1].get(timeout=PATIENCE_S)
    works(site)


def test_a_signal_that_comes_late_does_not_strike_the_next_task(site):
    """The alarm is for the task it was meant for: neither a limit nor a request of an earlier one counts."""
    site.start(
        LIMITS
        + """
    @app.task(soft_time_limit=0.3)
    def short():
        return "in time"
    """,
        concurrency=1,
    )
    assert site.send("short").get(timeout=PATIENCE_S) == "in time"
    gated = site.send("gated", 1)
    site.eventually(lambda: site.notes("began"))
    time.sleep(0.4)
    os.kill(site.children[0], signal.SIGALRM)
    time.sleep(0.05)
    site.open()
    assert gated.get(timeout=PATIENCE_S) == 1


def test_a_program_that_a_task_has_started_is_ended_with_it(site):
    site.start(LIMITS)
    with pytest.raises(TimeLimitExceeded):
        site.send("hard_program").get(timeout=PATIENCE_S)
    site.eventually(lambda: not site.alive(int(site.notes("program")[0][0])))


@ON_BOTH
def test_a_stopped_child_is_killed_at_its_tasks_limit(site):
    site.start(LIMITS, concurrency=1)
    result = site.send("hard", "python")
    (pid,) = site.eventually(lambda: site.notes("hard"))[0]
    os.kill(int(pid), signal.SIGSTOP)
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=PATIENCE_S)
    works(site)


def test_a_stopped_child_is_reported_and_goes_on(site, monkeypatch, caplog):
    monkeypatch.setattr("taskq_pool_prefork.limits.PING_S", 0.05)
    monkeypatch.setattr("taskq_pool_prefork.limits.SILENT_S", 0.2)
    site.start(concurrency=2)
    gated = site.send("gated", 1)
    pid = int(site.eventually(lambda: site.notes("began"))[0][1])
    os.kill(pid, signal.SIGSTOP)
    site.eventually(lambda: "has not answered" in caplog.text)
    assert f"child {pid} " in caplog.text
    assert "gated" in caplog.text
    works(site)
    time.sleep(0.3)
    assert caplog.text.count("has not answered") == 1
    os.kill(pid, signal.SIGCONT)
    site.open()
    assert gated.get(timeout=PATIENCE_S) == 1
    assert pid in site.children


@ON_BOTH
@pytest.mark.parametrize("how", ["stopped", "in C"])
def test_a_child_that_does_not_answer_is_killed_on_request(site, how):
    site.start(LIMITS, concurrency=2, max_deliveries=1, options={"child_unresponsive": 0.5})
    result = site.send("gated", 1) if how == "stopped" else site.send("c_code", 30)
    pid = int(site.eventually(lambda: site.notes("began"))[0][1])
    if how == "stopped":
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(TaskDead, match="did not answer"):
        result.get(timeout=PATIENCE_S)
    works(site)
    assert pid not in site.children


@ON_BOTH
def test_an_idle_child_that_is_stopped_loses_its_tasks_to_others(site):
    site.start(concurrency=2)
    os.kill(site.children[0], signal.SIGSTOP)
    works(site, 40)
    os.kill(site.children[0], signal.SIGCONT)
    works(site, 40)
    assert {note[2] for note in site.notes("echo")} == {"1"}


def test_running_tasks_can_be_cancelled_and_terminated(site):
    site.start(LIMITS, concurrency=2)
    results = [site.send("gated", 1), site.send("c_code", 30)]
    site.eventually(lambda: len(site.notes("began")) == 2)
    runs = {run.where: run for run in site.pool.running(stacks=True)}
    pids = {x: pid for x, pid, *_ in site.notes("began")}
    assert "in gate" in (runs[f"process {pids['1']}"].stack or "")
    assert runs[f"process {pids['30']}"].stack is None, "a child whose interpreter is held cannot tell"
    soft, hard = runs[f"process {pids['1']}"].key, runs[f"process {pids['30']}"].key
    assert list(site.pool.cancel([soft])) == [soft]
    assert list(site.pool.cancel([hard], hard=True)) == [hard]
    for result in results:
        with pytest.raises(TaskRevoked):
            result.get(timeout=PATIENCE_S)
    works(site)


@ON_BOTH
def test_the_fork_server_is_replaced(site, caplog):
    site.start(concurrency=2)
    old = site.server
    gated = site.send("gated", 1)
    site.eventually(lambda: site.notes("began"))
    os.kill(old, signal.SIGKILL)
    site.eventually(lambda: len(site.notes("began")) == 2)
    site.open()
    assert gated.get(timeout=PATIENCE_S) == 1
    assert site.server != old
    assert "the fork server was killed by SIGKILL" in caplog.text
    works(site)


def test_a_stopped_fork_server_is_replaced(site, monkeypatch, caplog):
    monkeypatch.setattr("taskq_pool_prefork.supervisor.SERVER_PATIENCE_S", 0.3)
    site.start(concurrency=2)
    os.kill(site.server, signal.SIGSTOP)
    os.kill(site.children[0], signal.SIGKILL)
    site.eventually(lambda: "the fork server does not answer" in caplog.text)
    works(site)


def test_a_child_that_cannot_be_started_is_tried_again(site, monkeypatch, caplog):
    """Out of descriptors, say: it is said, and the other child works on."""
    site.start(concurrency=2)
    create, failures = Board.create, []

    def fail_twice():
        if len(failures) < 2:
            failures.append(1)
            raise OSError(24, "Too many open files")
        return create()

    monkeypatch.setattr(Board, "create", fail_twice)
    victim = site.children[0]
    os.kill(victim, signal.SIGKILL)
    site.eventually(lambda: len(failures) == 2)
    assert "cannot start a child process: [Errno 24] Too many open files" in caplog.text
    works(site)
    site.eventually(lambda: len(site.children) == 2 and victim not in site.children)


def test_an_error_of_the_pool_itself_loses_no_task(site, monkeypatch, caplog):
    """It is logged, all that was held is reported, and no process stays."""
    site.start(concurrency=2, max_deliveries=1)
    children = site.children
    results = [site.send("gated", i) for i in range(2)]
    site.eventually(lambda: len(site.notes("began")) == 2)

    def fail(*_):
        raise AssertionError("a mistake in the pool")

    monkeypatch.setattr(site.pool._supervisor._crew, "hand_out", fail)
    site.pool._supervisor.wake()
    for result in results:
        with pytest.raises(TaskDead, match="the prefork pool has failed"):
            result.get(timeout=PATIENCE_S)
    site.eventually(lambda: not [pid for pid in children if site.alive(pid)])
    assert "a mistake in the pool" in caplog.text
    assert site.pool.free() <= 2
    assert site.pool.submit([]) == 0
