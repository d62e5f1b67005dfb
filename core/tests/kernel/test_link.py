"""What a pool's child sends and reads through its worker's process, and how it finds the application."""

from __future__ import annotations

import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec
import pytest

from taskq import TaskQ, link
from taskq.errors import NotSupported, SendFailed, TransportError, WorkerError
from taskq.message import Outbound, SendFailure
from taskq.reference import AppReference
from taskq.runtime import TaskRuntime
from taskq.spi import Op, OpKind

app = TaskQ("linked", broker="memory://linked", isolated=True)


@app.task
def add(a: int, b: int) -> int:
    return a + b


@pytest.fixture
def parent() -> Iterator[TaskQ]:
    with TaskQ("parent", broker="memory://link-parent", isolated=True) as parent:
        parent.task(name="add")(lambda a, b: a + b)
        yield parent


@pytest.fixture
def call(parent: TaskQ) -> Iterator[Callable[[bytes], bytes]]:
    server = link.LinkServer(parent)

    def call(data: bytes) -> bytes:
        answer: Future[bytes] = Future()
        server.request(data, answer.set_result)
        return answer.result(10)

    yield call
    server.close()


@pytest.fixture
def child(call: Callable[[bytes], bytes]) -> Iterator[TaskQ]:
    # a broker that nobody could reach: what is sent can only have gone through the link
    with TaskQ("child", broker="memory://link-child", isolated=True) as child:
        child.task(name="add")(lambda a, b: a + b)
        link.connect(child, call)
        yield child


def test_a_task_that_a_child_sends_runs_at_the_parent_and_answers(parent: TaskQ, child: TaskQ) -> None:
    result = child.tasks["add"].delay(2, 3)
    with parent.worker(pool="solo"):
        assert result.get(timeout=10) == 5


def test_many_children_send_at_once_and_each_hears_of_its_own_failures(
    parent: TaskQ, child: TaskQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = parent.transport
    real, sizes, first = transport.send, [], threading.Event()

    def send(batch: list[Outbound]) -> list[SendFailure]:
        first.wait(5)  # until all have asked, so that they are gathered
        sizes.append(len(batch))
        bad = [i for i, outbound in enumerate(batch) if b"[13," in outbound.payload]
        refused = [SendFailure(i, "refused by the test", False, False) for i in bad]
        real([o for i, o in enumerate(batch) if i not in bad])
        return refused

    monkeypatch.setattr(transport, "send", send)
    with ThreadPoolExecutor(20) as threads:
        calls = [threads.submit(child.tasks["add"].delay, number, 0) for number in range(13, 33)]
        threading.Timer(0.2, first.set).start()
        with pytest.raises(SendFailed, match="refused by the test"):
            calls[0].result(10)
        assert {c.result(10).id for c in calls[1:]}
    assert sum(sizes) == 20
    assert len(sizes) < 10, "sends of many children were not gathered"


def test_coordination_goes_through(child: TaskQ) -> None:
    store = child.store
    assert isinstance(store, link.LinkCoordination)
    assert store.apply([Op(kind=OpKind.INCREMENT, key="n", amount=2)])[0].current == b"2"
    assert store.acquire("lock", "me", ttl=10)
    assert not store.acquire("lock", "you", ttl=10)
    assert store.renew("lock", "me", ttl=10)
    store.release("lock", "me")
    assert store.acquire("lock", "you", ttl=10)


def test_errors_come_back_typed(child: TaskQ, parent: TaskQ, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(batch: object) -> None:
        raise NotSupported("not this way")

    monkeypatch.setattr(parent.transport, "send", refuse)
    with pytest.raises(NotSupported, match="not this way"):
        child.tasks["add"].delay(1, 2)
    with pytest.raises(NotSupported, match="cannot take messages"):
        child.transport.consumer()


def test_a_runtime_travels_by_the_name_of_its_application() -> None:
    runtime = pickle.loads(pickle.dumps(TaskRuntime(app, "w1")))
    assert runtime.app is app
    assert runtime.worker == "w1"


def test_an_application_that_no_module_holds_is_refused(parent: TaskQ) -> None:
    with pytest.raises(WorkerError, match="top level of a module"):
        pickle.dumps(TaskRuntime(parent, "w1"))


def test_a_child_that_lacks_a_task_says_which() -> None:
    reference = AppReference(__name__, "app", {}, None, False, ("tests.other.task",))
    with pytest.raises(WorkerError, match=r"tests\.other\.task"):
        reference.find()


def test_what_cannot_be_read_is_answered_and_hurts_nobody_else(call: Callable[[bytes], bytes], child: TaskQ) -> None:
    assert b"DecodeError" in call(b"\xc1")
    assert child.tasks["add"].delay(1, 1).id


def test_an_answer_that_cannot_be_encoded_is_an_error_and_the_next_is_answered(
    parent: TaskQ, child: TaskQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(parent.store, "get", lambda ids: [object()])
        with pytest.raises(TransportError):
            child.store.get(["1"])
    assert child.store.get(["1"]) == [None]


def test_a_child_reaches_each_broker_of_its_worker(parent: TaskQ) -> None:
    """By name, over the worker's own connections; one that is away keeps no other."""
    two = {"brokers": {"far": "memory://link-far"}, "queues": {"far": {"broker": "far"}}, "publish_retries": 0}
    with (
        TaskQ("worker", broker="memory://link-near", isolated=True, **two) as worker,
        TaskQ("child", broker="memory://link-child", isolated=True, **two) as child,
    ):
        server = link.LinkServer(worker)

        def call(data: bytes) -> bytes:
            answer: Future[bytes] = Future()
            server.request(data, answer.set_result)
            return answer.result(10)

        link.connect(child, call)
        child.send_task("a", queue="far")
        child.send_task("a")
        child.send_task("a", queue="far")
        assert worker.components.broker("far").stats(["far"])["far"].ready == 2  # type: ignore[attr-defined]
        assert worker.transport.stats(["default"])["default"].ready == 1  # type: ignore[attr-defined]

        entered, gate = threading.Event(), threading.Event()

        def hangs(batch: list[Outbound]) -> list[SendFailure]:
            entered.set()
            gate.wait(10)
            raise TransportError("the test took it away")

        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as threads:
            patch.setattr(worker.components.broker("far"), "send", hangs)
            stuck = threads.submit(child.send_task, "a", queue="far")
            assert entered.wait(10)
            child.send_task("a")
            gate.set()
            with pytest.raises(TransportError, match="the test took it away"):
                stuck.result(10)
        assert worker.transport.stats(["default"])["default"].ready == 2  # type: ignore[attr-defined]
        server.close()


def test_a_closed_link_refuses_instead_of_leaving_a_child_waiting(parent: TaskQ) -> None:
    server = link.LinkServer(parent)
    answers: list[bytes] = []
    server.request(msgspec.msgpack.encode(("wait", msgspec.msgpack.encode((["1"], 0.2)))), answers.append)
    server.close()
    server.request(msgspec.msgpack.encode(("hello", b"\xc0")), answers.append)
    assert b"the worker is stopping" in answers[-1]
    deadline = time.monotonic() + 5
    while len(answers) < 2:
        assert time.monotonic() < deadline, "a wait was left without an answer"
        time.sleep(0.01)


def test_odd_entries_among_the_modules_do_not_hide_an_application(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "blocked_by_somebody", None)
    monkeypatch.setitem(sys.modules, "no_module_at_all", 42)
    assert AppReference.to(app).attribute == "app"
    with TaskQ("nowhere", broker="memory://nowhere", isolated=True) as hidden, pytest.raises(WorkerError):
        AppReference.to(hidden)
