"""What the kernel's tests share: applications on the embedded brokers, workers on threads, and a look at the queues."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

import taskq.shared as shared_module
from taskq import TaskQ, Worker, envelope
from taskq.envelope import DeadInfo
from taskq.message import RELEASE, Delivery, Outbound, Settlement, Subscription
from taskq_lib_memory import forget

T = TypeVar("T")
PATIENCE = 20.0


class Rig:
    """Makes applications and workers, and closes them after the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.apps: list[TaskQ] = []
        self.names: list[str] = []

    def app(self, backend: str = "memory", **settings: Any) -> TaskQ:
        """An application of its own: ``memory`` and ``sqlite`` are fused with their store, ``split`` is not."""
        name = f"kernel-{uuid.uuid4().hex[:10]}"
        urls = {
            "memory": {"broker": f"memory://{name}"},
            "split": {"broker": f"memory://{name}", "result_store": f"memory://{name}-results"},
            "storeless": {"broker": f"memory://{name}", "result_store": "none"},
            "sqlite": {"broker": f"sqlite:///{self.folder}/{name}.db?synchronous=NORMAL"},
        }[backend]
        self.names += [name, f"{name}-results"]
        app = TaskQ(name, isolated=True, **{**urls, **settings})
        self.apps.append(app)
        return app

    def twin(self, app: TaskQ, **settings: Any) -> TaskQ:
        """Another application on the same servers, as another process would have it."""
        urls = {"broker": app._code["broker"]}
        if "result_store" in app._code:
            urls["result_store"] = app._code["result_store"]
        other = TaskQ(f"{app.name}-twin", isolated=True, **{**urls, **settings})
        self.apps.append(other)
        return other

    @contextmanager
    def work(self, app: TaskQ, pool: str = "solo", *, exit_code: int = 0, **options: Any) -> Iterator[Worker]:
        """A worker on a thread; afterwards it must have ended as expected."""
        if pool == "threads":
            options.setdefault("concurrency", 2)
        options.setdefault("grace", 5.0)
        worker = app.worker(pool=pool, **options)
        with worker:
            yield worker
        assert worker._thread is not None
        assert not worker._thread.is_alive(), "the worker did not end"
        if exit_code != 1 and worker._failure is not None:
            raise worker._failure
        assert worker.exit_code == exit_code

    def drain(self, app: TaskQ, pool: str = "solo", **options: Any) -> None:
        """Work until nothing is left, delayed messages included."""
        with self.work(app, pool, **options):
            self.wait_empty(app)

    @staticmethod
    def eventually(look: Callable[[], T], *, timeout: float = PATIENCE) -> T:
        """Return the first true value of ``look()``; fail when there is none in time."""
        deadline = time.monotonic() + timeout
        while not (value := look()):
            assert time.monotonic() < deadline, f"not within {timeout:g} s: {look}"
            time.sleep(0.002)
        return value

    def counts(self, app: TaskQ, queue: str = "default") -> tuple[int, int, int]:
        """Ready, in flight, delayed."""
        found = app.transport.stats([queue]).get(queue)  # type: ignore[attr-defined]
        return (found.ready, found.in_flight, found.delayed) if found is not None else (0, 0, 0)

    def wait_empty(self, app: TaskQ, queue: str = "default") -> None:
        self.eventually(lambda: self.counts(app, queue) == (0, 0, 0))

    def payloads(self, app: TaskQ, queue: str = "default") -> list[bytes]:
        return [peeked.payload for peeked in app.transport.peek(queue)]  # type: ignore[attr-defined]

    def headers(self, app: TaskQ, queue: str = "default") -> list[envelope.Header]:
        return [envelope.decode(payload)[0] for payload in self.payloads(app, queue)]

    def dead(self, app: TaskQ, queue: str = "default") -> list[tuple[DeadInfo, bytes]]:
        return [envelope.decode_dead(payload) for payload in self.payloads(app, f"{queue}.dead")]

    def raw(self, app: TaskQ, payload: bytes, queue: str = "default") -> None:
        """Put bytes into a queue, as a foreign program might."""
        assert not app.transport.send([Outbound(uuid.uuid4().hex, queue, payload)])

    def fetch(self, app: TaskQ, queue: str = "default", limit: int = 1) -> tuple[Any, list[Delivery]]:
        """Take messages with a consumer of our own."""
        consumer = app.transport.consumer()
        consumer.subscribe([Subscription(queue)])
        return consumer, list(consumer.fetch(limit, 2.0).deliveries)

    def crash(self, app: TaskQ, queue: str = "default", times: int = 1) -> None:
        """Leave the next message as a worker that died while running it would: delivered once more, not ended."""
        for _ in range(times):
            consumer, (delivery,) = self.fetch(app, queue)
            assert not consumer.settle([Settlement(delivery.receipt, RELEASE, 0.0, True)])
            consumer.close()


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(shared_module, "declared", [])
    monkeypatch.setattr(shared_module, "_current", None)
    made = Rig(tmp_path)
    yield made
    for app in made.apps:
        app.close()
    for name in made.names:
        forget(name)


@pytest.fixture
def app(rig: Rig) -> TaskQ:
    """An application in memory."""
    return rig.app()


@pytest.fixture(params=["memory", "split", "sqlite"])
def backend(request: pytest.FixtureRequest) -> str:
    """Every kind of settling: fused in memory, step by step, fused in SQLite."""
    return str(request.param)


@pytest.fixture(params=["solo", "threads"])
def pool(request: pytest.FixtureRequest) -> str:
    return str(request.param)


FAST = {("memory", "solo"), ("memory", "threads"), ("split", "threads"), ("sqlite", "solo")}
"""Every backend and every pool at least once; the other pairs are for `make test`."""


@pytest.hookimpl(tryfirst=True)  # before pytest's own -m looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        pair = params.get("backend"), params.get("pool")
        if None not in pair and pair not in FAST and item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.slow)
