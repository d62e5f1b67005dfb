"""The table "What happens when" of docs/explanation/delivery.md: each row is brought about, and ends as it says."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskq import Reject, TaskFailure, TaskQ, envelope
from taskq.dead import DeadLetters
from taskq.envelope import DeadInfo, Header
from taskq.errors import (
    ConnectionLost,
    DecodeError,
    EncodeError,
    PayloadTooLarge,
    ResultTooLarge,
    StoreUnavailable,
    TaskArgumentsError,
    TaskDead,
    TaskExpired,
    TaskTimeout,
    UnknownTask,
)
from taskq.message import Outbound, SendFailure
from tests.docs.pages import DOCS, environment

PAGE = DOCS / "explanation/delivery.md"


ROWS = [
    *("arguments do not fit, at the call", "an argument cannot", "the broker does not accept", "it is too large"),
    *("undecodable message", "undecodable arguments", "unknown task", "arguments do not fit, at the worker"),
    *("taken after", "the task raises", "the task raises `Reject`", "the task raises `SystemExit`"),
    *("the result cannot be serialized", "the result is too large", "the task kills its process", "worker killed"),
    *("result store down", "broker down", "both up, but the store", "dead-letter queue refuses"),
]


def raising(error: BaseException) -> Callable[[], None]:
    def task() -> None:
        raise error

    return task


@pytest.fixture
def app() -> Iterator[TaskQ]:
    app = TaskQ(
        "faults", broker="memory://", isolated=True, max_result_bytes=2000, unknown_task_wait=0.2, retry_backoff=0.01,
        max_payload_bytes=10_000,
    )  # fmt: skip
    app.task(lambda x: x, name="echo")
    app.task(raising(ValueError("no")), name="raises", max_retries=1)
    app.task(raising(Reject("not mine")), name="rejects", max_retries=3)
    app.task(raising(SystemExit(3)), name="exits")
    app.task(raising(KeyboardInterrupt()), name="interrupts")
    app.task(lambda: object(), name="unserializable")
    app.task(lambda: "x" * 5000, name="too_large")
    with app:
        yield app


def run(app: TaskQ, name: str, body: bytes = b"[[],{}]", content_type: str = "json", **extra: Any) -> BaseException:
    """Put a message into the queue as some program might have, and return what its caller sees."""
    header = Header(f"id-{name}", name, content_type, 0, time.time(), "", extra or None)
    app.transport.send([Outbound(header.id, "default", envelope.encode(header, body))])
    with app.worker(pool="solo"):
        seen = app.AsyncResult(header.id).get(timeout=20, propagate=False)
    assert isinstance(seen, BaseException)
    return seen


def dead(app: TaskQ) -> list[DeadInfo]:
    return [letter.info for letter in DeadLetters(app.transport).list("default")]


# ------------------------------------------------------------------------------------------------------- at the call


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((), TaskArgumentsError), ((object(),), EncodeError), (("x" * 20_000,), PayloadTooLarge)],
)
def test_refused_at_the_call(app: TaskQ, arguments: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        app.tasks["echo"].delay(*arguments)
    found = app.transport.stats(["default"]).get("default")  # type: ignore[attr-defined]
    assert found is None or found.ready == 0


# ------------------------------------------------------------------------------------------------------ at the worker


@pytest.mark.parametrize(
    ("message", "error", "state"),
    [
        ({"name": "echo", "body": b"[[1"}, DecodeError, "DEAD"),
        ({"name": "echo", "content_type": "pickle"}, DecodeError, "DEAD"),
        ({"name": "nobody.knows"}, UnknownTask, "DEAD"),
        ({"name": "echo", "body": b"[[1,2],{}]"}, TaskArgumentsError, "FAILURE"),
        ({"name": "raises"}, ValueError, "FAILURE"),
        ({"name": "rejects"}, Reject, "DEAD"),
        ({"name": "exits"}, TaskFailure, "FAILURE"),
        ({"name": "interrupts"}, TaskFailure, "FAILURE"),
        ({"name": "unserializable"}, EncodeError, "FAILURE"),
        ({"name": "too_large"}, ResultTooLarge, "FAILURE"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_ended_with_a_dead_letter(app: TaskQ, message: dict[str, Any], error: type[BaseException], state: str) -> None:
    seen = run(app, **message)
    assert type(seen) is error or (error is DecodeError and isinstance(seen, DecodeError)), seen
    assert app.AsyncResult(f"id-{message['name']}").state == state
    (info,) = dead(app)
    assert (info.task, info.state) == (message["name"], state)
    assert info.attempts == (1 if message["name"] == "raises" else 0)


def test_undecodable_message(app: TaskQ) -> None:
    app.transport.send([Outbound("x", "default", b"{} is not taskq's")])
    with app.worker(pool="solo"):
        assert app.tasks["echo"].delay(1).get(timeout=20) == 1  # the worker goes on
    (info,) = dead(app)
    assert info.state == "DEAD"
    assert "looks like JSON" in info.reason


def test_taken_after_it_expired(app: TaskQ) -> None:
    seen = run(app, "echo", b"[[1],{}]", ex=time.time() - 1)
    assert isinstance(seen, TaskExpired)
    assert app.AsyncResult("id-echo").state == "EXPIRED"
    assert dead(app) == []


def test_expected_exceptions_leave_no_letter(app: TaskQ) -> None:
    app.task(raising(ValueError("usual")), name="expected", throws=(ValueError,))
    app.task(raising(ValueError("whatever")), name="careless", dead_letter=False)
    assert isinstance(run(app, "expected"), ValueError)
    assert isinstance(run(app, "careless"), ValueError)
    assert dead(app) == []


def test_while_the_store_is_down_finished_tasks_wait_and_nothing_is_taken() -> None:
    runs: list[int] = []
    with TaskQ("down", broker="memory://down", result_store="memory://other", isolated=True) as app:
        task = app.task(runs.append, name="note")
        store: Any = app.store
        put, store.put = store.put, _unavailable
        with app.worker(pool="solo") as worker:
            first = task.delay(1)
            _until(lambda: worker.lanes[0].settler.blocked)
            second = task.delay(2)
            time.sleep(0.3)
            assert runs == [1]
            store.put = put
            first.get(timeout=20)
            second.get(timeout=20)
        assert runs == [1, 2]


def _unavailable(records: Any) -> Any:
    raise StoreUnavailable("down for the test")


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_broker_does_not_accept_the_message(app: TaskQ, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def send(batch: Any) -> Any:
        calls.append(len(batch))
        raise ConnectionLost("for the test")

    app.connect()
    monkeypatch.setattr(app.transport, "send", send)
    with pytest.raises(ConnectionLost):
        app.tasks["echo"].apply_async((1,), publish_timeout=5)
    assert len(calls) > 5


def test_the_store_is_not_the_one_that_the_caller_reads(caplog: pytest.LogCaptureFixture) -> None:
    with (
        TaskQ("caller", broker="memory://shared", result_store="memory://hers", isolated=True) as caller,
        TaskQ("worker", broker="memory://shared", result_store="memory://his", isolated=True) as other,
    ):
        other.task(lambda: 1, name="one")
        with other.worker(pool="solo"):
            sent = [caller.send_task("one") for _ in range(3)]
            with pytest.raises(TaskTimeout):
                sent[-1].get(timeout=1)
    assert [r.message for r in caplog.records if "wait for results in memory://hers" in r.message] != []


def test_the_dead_letter_queue_refuses_the_letter(app: TaskQ, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message must stay where it is."""
    app.connect()
    with app.worker(pool="solo") as worker:
        monkeypatch.setattr(worker.lanes[0].settler, "_committer", None)  # as with a store on another server
        send = app.transport.send

        def refuse(batch: Any) -> Any:
            refused = [SendFailure(i, "full") for i, o in enumerate(batch) if o.queue.endswith(".dead")]
            return refused or send(batch)

        monkeypatch.setattr(app.transport, "send", refuse)
        app.tasks["raises"].apply_async(max_retries=0)
        _until(lambda: worker.lanes[0].settler.blocked)
        monkeypatch.setattr(app.transport, "send", send)
        _until(lambda: len(dead(app)) == 1)


# ------------------------------------------------------------------------------------------------------------ crashes

CRASHER = """
import os, pathlib, time
from taskq import TaskQ
app = TaskQ(
    "crash", broker="sqlite:///{folder}/q.db", isolated=True, lease=1.5, max_deliveries=2, worker={{"grace": 0.1}}
)

def note(name):
    with open("{folder}/" + name, "a") as file:
        file.write("x")

@app.task(name="kill")
def kill():
    note("kills")
    os._exit(9)

@app.task(name="wait")
def wait():
    note("waits")
    while not pathlib.Path("{folder}/go").exists():
        time.sleep(0.01)
    return "done"
"""


class Crash:
    """An application in a folder, and workers of it in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "crash.py").write_text(CRASHER.format(folder=folder))
        self.app = TaskQ("crash", broker=f"sqlite:///{folder}/q.db", isolated=True)
        self.app.connect()
        self.workers: list[subprocess.Popen[bytes]] = []

    def worker(self, pool: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "taskq", "-A", "crash", "worker", "-P", pool]
        log = (self.folder / "log").open("ab")
        with log:
            started = subprocess.Popen(command, cwd=self.folder, env=environment(self.folder), stderr=log)
        self.workers.append(started)
        return started

    def runs(self, name: str) -> int:
        path = self.folder / name
        return len(path.read_text()) if path.exists() else 0

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self.app.close()


@pytest.fixture
def crash(tmp_path: Path) -> Iterator[Crash]:
    crash = Crash(tmp_path)
    yield crash
    crash.close()


@pytest.mark.slow
def test_a_task_that_kills_its_process_ends_as_a_dead_letter(crash: Crash) -> None:
    result = crash.app.send_task("kill")
    for _ in range(2):  # max_deliveries
        assert crash.worker("solo").wait(timeout=40) == 9
    crash.worker("solo")
    assert isinstance(result.get(timeout=40, propagate=False), TaskDead)
    assert crash.runs("kills") == 2
    (info,) = dead(crash.app)
    assert (info.task, info.state) == ("kill", "DEAD")


@pytest.mark.slow
def test_a_killed_worker_s_task_runs_elsewhere(crash: Crash) -> None:
    result = crash.app.send_task("wait")
    first = crash.worker("solo")
    _until(lambda: crash.runs("waits") == 1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    crash.worker("solo")
    _until(lambda: crash.runs("waits") == 2)
    (crash.folder / "go").touch()
    assert result.get(timeout=20) == "done"
    assert dead(crash.app) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pool", "signals", "code"),
    [
        ("solo", [signal.SIGTERM], 3),  # the grace is over: interrupted
        ("threads", [signal.SIGTERM], 3),
        ("solo", [signal.SIGINT, signal.SIGINT], 3),
        ("solo", [signal.SIGQUIT], 4),
    ],
)
def test_a_stopped_worker_s_unfinished_task_goes_back_uncounted(
    crash: Crash, pool: str, signals: list[signal.Signals], code: int
) -> None:
    result = crash.app.send_task("wait")
    worker = crash.worker(pool)
    _until(lambda: crash.runs("waits") == 1)
    for number in signals:
        worker.send_signal(number)
        time.sleep(0.05)
    assert worker.wait(timeout=40) == code, (crash.folder / "log").read_text()
    if code == 3:
        (waiting,) = crash.app.transport.peek("default")  # type: ignore[attr-defined]
        assert (waiting.deliveries, waiting.in_flight) == (0, False)
    (crash.folder / "go").touch()
    crash.worker("solo")
    assert result.get(timeout=20) == "done"


def test_a_worker_without_work_ends_with_0(crash: Crash) -> None:
    worker = crash.worker("threads")
    _until(lambda: "ready" in (crash.folder / "log").read_text())
    worker.terminate()
    assert worker.wait(timeout=40) == 0


# ----------------------------------------------------------------------------------------------------------- the page


def test_every_row_of_the_table_has_a_test() -> None:
    """The faults of the page, in its order: whoever adds one adds its test, here or in core/tests."""
    text = PAGE.read_text("utf-8").partition("## What happens when")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")][1:]
    for row, beginning in zip(rows, ROWS, strict=True):
        assert row.startswith(beginning)


def test_defaults_on_the_page_are_the_settings(tmp_path: Path) -> None:
    text, settings = PAGE.read_text("utf-8"), TaskQ("page", isolated=True).settings
    assert f"`max_deliveries` ({settings.max_deliveries})" in text
    assert f"`unknown_task_wait` ({settings.unknown_task_wait:g} s)" in text
    assert f"`worker.grace` ({settings.worker.grace:g} s)" in text
    assert re.search(rf"`result_ttl` \({settings.result_ttl / 86400:g} day\)", text)
