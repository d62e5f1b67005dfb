"""What is special about the prefork pool: the fork server, imports, connections, recycling, fairness, its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from taskq.errors import ConfigError, WorkerError
from taskq.spi import Outcome, PoolConfig
from taskq_pool_prefork.plugin import taskq_pool
from taskq_pool_prefork.protocol import Ended, Frames, decode_ends, encode, frame

PATIENCE_S = 20.0


def make(**options):
    spec = taskq_pool("prefork")
    return spec.factory(PoolConfig(concurrency=2, options=spec.options(**options), name="w"))


# ------------------------------------------------------------------------------------------------------- the pieces


def test_frames_are_cut_wherever_the_stream_is_torn():
    stream = b"".join(frame(kind, b"x" * size) for kind, size in ((1, 0), (2, 5), (3, 300), (4, 0)))
    for step in (1, 2, 3, 7, len(stream)):
        frames, found = Frames(), []
        for at in range(0, len(stream), step):
            found += frames.feed(stream[at : at + step])
        assert [(kind, len(payload)) for kind, payload in found] == [(1, 0), (2, 5), (3, 300), (4, 0)]


def test_an_end_without_result_crosses_as_19_bytes():
    from taskq_pool_prefork.protocol import ARRAY32, PLAIN_END

    plain = PLAIN_END.pack(0x92, 0xCF, 7, 0xCB, 0.25)
    other = encode(Ended(8, 0.5, Outcome(0, "SUCCESS", b"r")))
    assert len(plain) == 19
    ends = decode_ends(bytes([ARRAY32]) + (2).to_bytes(4, "big") + plain + other)
    assert [(e.key, e.elapsed, e.outcome and e.outcome.result) for e in ends] == [(7, 0.25, None), (8, 0.5, b"r")]


def test_a_concurrency_below_one_is_refused():
    spec = taskq_pool("prefork")
    with pytest.raises(ConfigError, match="concurrency of 0; it needs at least 1"):
        spec.factory(PoolConfig(concurrency=0, options=spec.options()))


def test_the_plugin_module_does_not_import_the_driver():
    code = "import sys, taskq_pool_prefork.plugin; sys.exit('taskq_pool_prefork.pool' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ------------------------------------------------------------------------------------------------ starting children


def test_children_are_forked_from_a_server_that_has_imported_the_application_once(site):
    site.start(
        """
        note("imported", os.getpid(), os.getppid())
        """,
        concurrency=3,
    )
    pids = {site.send("who").get(timeout=PATIENCE_S) for _ in range(30)} | set(site.children)
    importers = [int(pid) for pid, _ in site.notes("imported")]
    assert importers == [os.getpid(), site.server]
    assert len(site.children) == 3
    assert pids >= set(site.children)


def test_threads_that_importing_starts_are_named_and_children_spawned(site, caplog):
    site.start(
        """
        threading.Thread(target=threading.Event().wait, name="poller-of-the-app", daemon=True).start()
        note("imported", os.getpid())
        """
    )
    assert "poller-of-the-app" in caplog.text
    assert site.send("echo", 1).get(timeout=PATIENCE_S) == 1
    importers = [int(pid) for (pid,) in site.notes("imported")]
    assert set(site.children) <= set(importers), "each child imports the application itself"


def test_threads_are_an_error_where_forking_is_asked_for(site):
    with pytest.raises(WorkerError, match=r"1 thread\(s\) running: poller.*start_method=spawn"):
        site.start(
            'threading.Thread(target=threading.Event().wait, name="poller", daemon=True).start()',
            options={"start_method": "forkserver"},
        )


def test_spawned_children_do_the_same(site):
    site.start(
        """
        @app.task
        def dies():
            os._exit(3)
        """,
        options={"start_method": "spawn"},
        max_deliveries=1,
    )
    assert [site.send("echo", i).get(timeout=PATIENCE_S) for i in range(5)] == list(range(5))
    with pytest.raises(Exception, match="exit code 3"):
        site.send("dies").get(timeout=PATIENCE_S)
    assert site.send("echo", 9).get(timeout=PATIENCE_S) == 9


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_an_application_that_children_cannot_import_fails_the_start(site, method):
    with pytest.raises(WorkerError, match="only in its first process"):
        site.start(
            """
            if os.path.exists(os.path.join(HERE, "imported")):
                raise RuntimeError("only in its first process")
            open(os.path.join(HERE, "imported"), "w").close()
            """,
            options={"start_method": method},
        )


def test_a_start_hook_that_fails_fails_the_start(site):
    with pytest.raises(WorkerError, match="no database today"):
        site.start(
            """
            from taskq.spi import hookimpl

            class Hooks:
                @hookimpl
                def taskq_process_started(self, app):
                    if os.path.exists(os.path.join(HERE, "started")):
                        raise RuntimeError("no database today")
                    open(os.path.join(HERE, "started"), "w").close()

            app.plugins.register(Hooks(), "hooks")
            """
        )


SCRIPT = """
import os, sys
from taskq import TaskQ

app = TaskQ("main", broker="sqlite:///" + {folder!r} + "/main.db", isolated=True)

@app.task
def add(x, y):
    return x + y, os.getpid(), add.name

{guard}
    with app.worker(pool="prefork", concurrency=2):
        print(add.delay(2, 3).get(timeout=20), add.name, os.getpid())
    app.close()
"""


def run_script(folder, guard):
    script = folder / "shop.py"
    script.write_text(SCRIPT.format(folder=str(folder), guard=guard))
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)


def test_tasks_of_a_script_that_is_run(tmp_path):
    done = run_script(tmp_path, 'if __name__ == "__main__":')
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[5, "), done.stdout
    assert "'shop.add'] shop.add" in done.stdout


def test_a_script_without_a_guard_is_told_so(tmp_path):
    done = run_script(tmp_path, "if True:")
    assert done.returncode != 0
    assert "if __name__ == '__main__'" in done.stderr


# --------------------------------------------------------------------------------------------- connections of children

SENDING = """
    @app.task
    def fans_out(n):
        sent = [echo.delay(i) for i in range(n)]
        transport = type(app.transport).__name__
        return [r.id for r in sent], transport

    @app.task
    def reads(x):
        sent = echo.delay(x)
        return sent.get(timeout=10, allow_in_task=True)
"""


def test_what_a_child_sends_goes_through_the_worker(site):
    site.start(SENDING)
    ids, transport = site.send("fans_out", 50).get(timeout=PATIENCE_S)
    assert transport == "LinkTransport"
    assert [site.app.AsyncResult(i).get(timeout=PATIENCE_S) for i in ids] == list(range(50))


def test_a_child_reads_results_through_the_worker(site):
    site.start(SENDING)
    for i in range(5):
        assert site.send("reads", i).get(timeout=PATIENCE_S) == i


def test_own_connections(site):
    site.start(SENDING, options={"own_connections": "true"})
    ids, transport = site.send("fans_out", 5).get(timeout=PATIENCE_S)
    assert transport != "LinkTransport"
    assert [site.app.AsyncResult(i).get(timeout=PATIENCE_S) for i in ids] == list(range(5))


# --------------------------------------------------------------------------------------------------------- recycling


def test_a_child_ends_after_its_share_of_tasks(site):
    site.start(concurrency=2, max_tasks_per_child=5)
    results = [site.send("echo", i) for i in range(60)]
    assert [r.get(timeout=PATIENCE_S) for r in results] == list(range(60))
    runs = [pid for _, pid, _ in site.notes("echo")]
    assert max(runs.count(pid) for pid in runs) == 5
    assert {note[2] for note in site.notes("echo")} == {"1"}


def test_a_child_that_has_grown_is_replaced(site):
    site.start(
        """
        @app.task
        def leaks(megabytes):
            note("leaks", os.getpid())
            globals().setdefault("kept", []).append(b"x" * (megabytes << 20))
        """,
        concurrency=1,
        max_memory_per_child=150 << 20,
    )
    for _ in range(8):
        site.send("leaks", 40).get(timeout=PATIENCE_S)
    pids = [pid for (pid,) in site.notes("leaks")]
    assert len(set(pids)) > 1
    assert all(pids.count(pid) <= 4 for pid in pids)


# ---------------------------------------------------------------------------------------------------------- fairness


def test_no_short_task_waits_behind_a_long_one(site):
    """Bursts of short tasks with a long one anywhere among them: the short ones end while the long one runs."""
    site.start(concurrency=2)
    for _ in range(2):
        assert [r.get(timeout=PATIENCE_S) for r in [site.send("echo", i) for i in range(200)]]
    for position in (0, 1, 17, 60):
        signatures = [site.app.tasks[f"{site.module}.echo"].s(i) for i in range(80)]
        signatures.insert(position, site.app.tasks[f"{site.module}.gated"].s(position))
        results = site.app.send_many(signatures)
        gated = results.pop(position)
        assert [r.get(timeout=PATIENCE_S) for r in results] == list(range(80))
        assert not gated.ready()
        site.open()
        assert gated.get(timeout=PATIENCE_S) == position
        (site.folder / "gate").unlink()


def test_a_recall_that_meets_an_announcement_loses_nothing():
    """A child announces a job, is preempted, and then sees that it was recalled: the job is the parent's again."""
    import socket

    from taskq_pool_prefork.crew import Crew
    from taskq_pool_prefork.member import Member, State
    from taskq_pool_prefork.protocol import STARTED, Board, Channel, Job

    descriptor = Board.create()
    pairs = [socket.socketpair(), socket.socketpair()]
    member = Member(1, Channel(pairs[0][0]), Channel(pairs[1][0]), Board(descriptor), None)
    os.close(descriptor)
    try:
        member.state = State.READY
        crew = Crew(1)
        crew.members[1] = member
        jobs = [Job(key, b"", "t", "q", 1) for key in range(3)]
        crew.accept(jobs)
        crew.ready.clear()
        member.give(jobs, time.monotonic())
        member.board.slots[STARTED] = 1
        crew.recall_all()
        assert [job.key for job in crew.ready] == [1, 2], "what was announced counts as running"
        assert not member.open, "nothing more is sent before the child has seen the recall"
        crew.back(member.settle_recall(0))  # the child's word: it had backed out
        assert [job.key for job in crew.ready] == [0, 1, 2]
        assert not member.jobs
    finally:
        member.close()
        for pair in pairs:
            pair[1].close()


# ------------------------------------------------------------------------------------------------------------ the end

WORKER = """
import os, time
from taskq import TaskQ, current_request

HERE = os.path.dirname(os.path.abspath(__file__))
app = TaskQ("ends", broker="sqlite:///" + HERE + "/ends.db?synchronous=NORMAL", isolated=True, lease=1.0)

@app.task
def gated(x):
    with open(HERE + "/notes", "a") as file:
        file.write(f"{x} {os.getpid()} {os.getppid()}\\n")
    while not os.path.exists(HERE + "/gate"):
        time.sleep(0.01)
    return x
"""


@pytest.mark.parametrize("how", ["killed", "killed with its children stopped", "terminated"])
def test_no_process_survives_its_worker(site, tmp_path, how):
    from taskq import TaskQ

    (tmp_path / "ends.py").write_text(WORKER)
    app = TaskQ("ends", broker=f"sqlite:///{tmp_path}/ends.db?synchronous=NORMAL", isolated=True, lease=1.0)
    command = [sys.executable, "-m", "taskq", "-A", "ends", "worker", "-P", "prefork", "-c", "2", "--grace", "0.2"]

    def start():
        return subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})

    def notes():
        path = tmp_path / "notes"
        return [list(map(int, line.split())) for line in path.read_text().splitlines()] if path.exists() else []

    worker = start()
    try:
        results = [app.send_task("ends.gated", (i,)) for i in range(2)]
        site.eventually(lambda: len(notes()) == 2)
        processes = {pid for note in notes() for pid in note[1:]}
        assert len(processes) == 3, "two children and the fork server"
        if how == "terminated":
            worker.terminate()
            assert worker.wait(PATIENCE_S) in (0, 3)
        else:
            if "stopped" in how:
                for note in notes():
                    os.kill(note[1], signal.SIGSTOP)
            worker.kill()
            worker.wait(PATIENCE_S)
        site.eventually(lambda: not [pid for pid in processes if site.alive(pid)], "all processes are gone")
        (tmp_path / "gate").touch()
        worker = start()
        assert [r.get(timeout=PATIENCE_S) for r in results] == [0, 1]
        worker.terminate()
        assert worker.wait(PATIENCE_S) == 0
    finally:
        worker.kill()
        worker.wait()
        app.close()


def test_no_zombie_stays(site):
    site.start("@app.task\ndef dies():\n    os._exit(3)\n", max_deliveries=1)
    for _ in range(3):
        with pytest.raises(Exception, match="exit code 3"):
            site.send("dies").get(timeout=PATIENCE_S)

    def children_of(pid):
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return file.read().split()

    site.eventually(lambda: len(children_of(site.server)) == 2 and len(site.children) == 2)
    assert {int(pid) for pid in children_of(site.server)} == set(site.children)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is process 1 that inherits them")
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_what_programs_of_tasks_leave_behind_is_buried(site, method):
    """Also where the worker is process 1, which inherits them otherwise and would have to wait for them."""
    site.start(
        """
        @app.task
        def leaves():
            return subprocess.run(["sh", "-c", "sleep 60 >&2 & echo $!"], stdout=subprocess.PIPE, check=True).stdout
        """,
        options={"start_method": method},
    )
    orphans = [int(site.send("leaves").get(timeout=PATIENCE_S)) for _ in range(3)]
    for orphan in orphans:
        site.eventually(lambda pid=orphan: parent_of(pid) == site.server, "it has got a new parent")
    os.kill(site.children[0], signal.SIGKILL)
    for orphan in orphans:
        os.kill(orphan, signal.SIGKILL)
    for orphan in orphans:
        site.eventually(lambda pid=orphan: not os.path.exists(f"/proc/{pid}"), "not even a zombie is left")
    assert site.send("echo", 1).get(timeout=PATIENCE_S) == 1


def parent_of(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def test_an_idle_pool_sleeps(site):
    site.start()
    assert site.send("echo", 1).get(timeout=PATIENCE_S) == 1
    site.eventually(lambda: site.pool._supervisor.asleep)
    looks = []
    look = site.pool._supervisor._watch.look
    site.pool._supervisor._watch.look = lambda now: looks.append(now) or look(now)
    time.sleep(0.3)
    assert len(looks) <= 1
