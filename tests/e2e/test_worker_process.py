"""Worker processes on one SQLite file: signals, deaths, and what becomes of the messages."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest

from taskq import Signature
from taskq.errors import TaskDead, TaskFailure

EXIT_OK, EXIT_UNFINISHED, EXIT_COLD = 0, 3, 4


@pytest.mark.parametrize("options", [("-P", "solo"), ("-P", "threads", "-c", "2")], ids=["solo", "threads"])
def test_it_works_and_ends_at_term(site: Any, options: tuple[str, ...]) -> None:
    worker = site.worker(*options).ready()
    results = [site.send("quick", i) for i in range(20)]
    assert [r.get(timeout=20) for r in results] == list(range(20))
    worker.send(signal.SIGTERM)
    assert worker.wait() == EXIT_OK
    assert {note[2] for note in site.notes} == {worker.process.pid}
    assert site.counts() == (0, 0, 0)


def test_a_killed_workers_messages_come_back(site: Any) -> None:
    """kill -9 in the middle of a task: another worker runs it once the lease has ended."""
    first = site.worker("-P", "threads", "-c", "2").ready()
    results = [site.send("gated", i) for i in range(2)]
    site.eventually(lambda: len(site.noted("began")) == 2, first)
    first.send(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    site.open_gate()
    second = site.worker("-P", "solo").ready()
    assert [r.get(timeout=20) for r in results] == [0, 1]
    ended = site.noted("ended")
    assert sorted(note[1] for note in ended) == [0, 1]
    assert {(note[2], note[3]) for note in ended} == {(second.process.pid, 2)}
    site.eventually(lambda: site.counts() == (0, 0, 0))


@pytest.mark.slow
def test_a_living_worker_keeps_its_messages(site: Any) -> None:
    """A task that lasts several leases, beside an idle worker that would take it."""
    first = site.worker("-P", "solo").ready()
    result = site.send("gated", 1)
    site.eventually(lambda: site.noted("began"), first)
    second = site.worker("-P", "solo").ready()
    other = site.send("quick", 2)
    assert other.get(timeout=20) == 2
    # the second worker has looked several times by then
    later = site.send("quick", 3, countdown=2.5 * 1.0)
    assert later.get(timeout=20) == 3
    site.open_gate()
    assert result.get(timeout=20) == 1
    assert len(site.noted("began")) == 1
    assert {note[2] for note in site.noted("ran")} == {second.process.pid}


def test_term_lets_what_runs_end_and_hands_back_the_rest(site: Any) -> None:
    worker = site.worker("-P", "solo").ready()
    first = site.send("gated", 0)
    site.eventually(lambda: site.noted("began"), worker)
    rest = [site.send("quick", i) for i in range(1, 4)]
    worker.send(signal.SIGTERM)
    site.open_gate()
    assert worker.wait() == EXIT_OK
    assert first.get(timeout=20) == 0
    assert site.noted("ran") == []
    assert site.counts() == (3, 0, 0)
    site.worker("-P", "solo")
    assert [r.get(timeout=20) for r in rest] == [1, 2, 3]
    assert {note[3] for note in site.noted("ran")} == {1}  # handing back does not count


@pytest.mark.parametrize(
    ("pool", "again"), [("solo", signal.SIGTERM), ("solo", signal.SIGINT), ("threads", signal.SIGTERM)]
)
def test_a_second_signal_interrupts(site: Any, pool: str, again: signal.Signals) -> None:
    worker = site.worker("-P", pool, "-c", "1").ready()
    result = site.send("gated", 0)
    site.eventually(lambda: site.noted("began"), worker)
    worker.send(signal.SIGTERM)
    time.sleep(1.0)  # two signals of one kind at once would be one
    worker.send(again)
    assert worker.wait() == EXIT_UNFINISHED
    assert site.counts() == (1, 0, 0)  # at once, not when the lease ends
    site.open_gate()
    site.worker("-P", "solo")
    assert result.get(timeout=20) == 0
    assert site.noted("ended")[0][3] == 1  # an interruption does not count as a delivery


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_the_grace_ends(site: Any, pool: str) -> None:
    worker = site.worker("-P", pool, "-c", "1", "--grace", "0.3").ready()
    site.send("gated", 0)
    site.eventually(lambda: site.noted("began"), worker)
    worker.send(signal.SIGTERM)
    assert worker.wait() == EXIT_UNFINISHED
    assert site.counts() == (1, 0, 0)


def test_quit_is_cold(site: Any) -> None:
    worker = site.worker("-P", "solo").ready()
    result = site.send("gated", 0)
    site.eventually(lambda: site.noted("began"), worker)
    worker.send(signal.SIGQUIT)
    assert worker.wait() == EXIT_COLD
    assert site.noted("ended") == []
    site.open_gate()
    site.worker("-P", "solo")
    assert result.get(timeout=20) == 0  # when the lease has ended


@pytest.mark.timeout(120)
def test_a_task_that_kills_its_worker_ends_among_the_dead_letters(site: Any) -> None:
    """Each death costs one worker; after max_deliveries the message is dead, with its history, and can be replayed."""
    result = site.send("dies", 1)
    innocent = site.send("quick", 2)
    for _ in range(3):
        worker = site.worker("-P", "solo")
        assert worker.wait() == 7, worker.output
    survivor = site.worker("-P", "solo").ready()
    with pytest.raises(TaskDead, match="started 3 times without an outcome"):
        result.get(timeout=20)
    assert innocent.get(timeout=20) == 2
    assert len(site.noted("dies")) == 3
    survivor.send(signal.SIGTERM)
    assert survivor.wait() == EXIT_OK

    listing = site.taskq("-A", "tasks", "dead", "list")
    assert result.id in listing
    assert "tasks.dies" in listing
    assert "started 3 times" in listing
    (entry,) = site.taskq_json("-A", "tasks", "dead", "list")
    assert entry["id"] == result.id
    broker = f"sqlite:///{site.folder}/queue.db"
    assert site.taskq_json("dead", "list", "--broker", broker, "-Q", "default") == [entry]  # without the application


def test_a_task_that_calls_exit_does_not_end_its_worker(site: Any) -> None:
    site.worker("-P", "solo").ready()
    with pytest.raises(TaskFailure, match="SystemExit"):
        site.send("exits", 1).get(timeout=20)
    assert site.send("quick", 2).get(timeout=20) == 2


def test_two_workers_share_the_work_and_nothing_runs_twice(site: Any) -> None:
    workers = [site.worker("-P", "threads", "-c", "2").ready() for _ in range(2)]
    calls = [Signature(app=site.app, task="tasks.quick", args=(i,)) for i in range(300)]
    results = site.app.send_many(calls)
    assert [r.get(timeout=20) for r in results] == list(range(300))
    assert sorted(note[1] for note in site.notes) == list(range(300))
    assert {note[2] for note in site.notes} <= {w.process.pid for w in workers}


def test_memory_cannot_be_served_by_a_process(site: Any) -> None:
    worker = site.worker("--broker", "memory://here")
    assert worker.wait() != 0
    assert "cannot serve memory://" in worker.output


def test_hup_starts_the_worker_anew_with_the_same_command(site: Any) -> None:
    worker = site.worker("-P", "solo").ready()
    assert site.send("quick", 1).get(timeout=20) == 1
    worker.send(signal.SIGHUP)
    site.eventually(lambda: worker.output.count(" ready: pool ") == 2, worker)
    assert site.send("quick", 2).get(timeout=20) == 2
    assert {note[2] for note in site.notes} == {worker.process.pid}, "the process stays, its program starts again"
    worker.send(signal.SIGTERM)
    assert worker.wait() == EXIT_OK


def test_usr1_says_what_runs_where(site: Any) -> None:
    worker = site.worker("-P", "threads", "-c", "2").ready()
    result = site.send("gated", 1)
    site.eventually(lambda: site.noted("began"), worker)
    worker.send(signal.SIGUSR1)
    site.eventually(lambda: f"[{result.id}] for " in worker.output, worker)
    assert "in gated" in worker.output, "there is no stack of the task"
    site.open_gate()
    assert result.get(timeout=20) == 1
