"""The link: what a pool's child process sends and reads through its worker's process.

The child's application gets a transport and a result store that ask the worker's process; the worker's side answers
from its own, gathering the sends of all children into one batch. A call in the child returns when the broker has
confirmed it, as everywhere else.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from taskq import errors
from taskq.errors import NotSupported, StoreError, TaskQError, TransportClosed, TransportError
from taskq.message import Outbound, QueueFacts, QueueSpec, Record, SendFailure
from taskq.spi.capabilities import Capabilities, StoreCapabilities
from taskq.spi.store import Op, OpResult
from taskq.spi.transport import Consumer, DeclareMode

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from taskq.app import TaskQ

logger = logging.getLogger("taskq.link")
Call = Callable[[bytes], bytes]
Reply = Callable[[bytes], None]
_Send = tuple[list[Outbound], Reply]

_encode = msgspec.msgpack.Encoder().encode
_WAIT_SLICE = 0.25
"""Longest single wait for results in seconds; a wake ends it after this at the latest."""
_THREADS = 4
_OK, _ERROR = 0, 1


class _Hello(msgspec.Struct):
    """What the child must know of the worker's connections."""

    store: StoreCapabilities | None
    store_label: str
    reply_address: str
    coordination: bool
    queues: dict[str, Capabilities | None]


class _Problem(msgspec.Struct):
    """An error of the worker's side, as the child raises it again."""

    kind: str
    text: str
    retryable: bool


def connect(app: TaskQ, call: Call) -> None:
    """Give an application of a child process the connections of its worker."""
    hello = _ask(call, "hello", None, _Hello)
    store = None
    if hello.store is not None:
        store = (LinkCoordination if hello.coordination else LinkStore)(call, hello.store, hello.reply_address)
    app.components.facts.update(hello.queues)

    def broker(name: str) -> LinkTransport:
        return LinkTransport(call, name, _ask(call, "broker", name, Capabilities))

    app.components.use(broker, store, store_label=hello.store_label, reply_address=hello.reply_address)


def _ask(call: Call, operation: str, argument: Any, answer: Any) -> Any:
    """Ask the worker's process; raise what it raised."""
    status, data = msgspec.msgpack.decode(call(_encode((operation, _encode(argument)))), type=tuple[int, bytes])
    if status == _OK:
        return msgspec.msgpack.decode(data, type=answer)
    problem = msgspec.msgpack.decode(data, type=_Problem)
    kind = getattr(errors, problem.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, TaskQError)):
        kind = TransportError
    try:
        error: TaskQError = kind(problem.text)
    except TypeError:  # a type with further arguments
        error = StoreError(problem.text) if issubclass(kind, StoreError) else TransportError(problem.text)
    if hasattr(error, "retryable"):
        error.retryable = problem.retryable
    raise error


# -------------------------------------------------------------------------------- the child's side


class LinkTransport:
    """Sends through the worker's process; a child takes no messages of its own."""

    def __init__(self, call: Call, broker: str, capabilities: Capabilities) -> None:
        self._call = call
        self._broker = broker
        self.capabilities = capabilities

    def open(self) -> None:
        """Nothing is to be opened."""

    def close(self, *, timeout: float = 5.0) -> None:
        """Nothing is to be closed."""

    def declare(self, queues: Sequence[QueueSpec], *, mode: DeclareMode = "create") -> Mapping[str, QueueFacts]:
        """Declare queues on the worker's connection."""
        argument = self._broker, list(queues), mode
        facts = _ask(self._call, "declare", argument, dict[str, tuple[bool, Capabilities | None]])
        return {name: QueueFacts(created=created, capabilities=own) for name, (created, own) in facts.items()}

    def send(self, batch: Sequence[Outbound]) -> Sequence[SendFailure]:
        """Send on the worker's connection, together with what other children send."""
        failures: list[SendFailure] = _ask(self._call, "send", (self._broker, list(batch)), list[SendFailure])
        return failures

    def consumer(self) -> Consumer:
        """Refuse: messages are taken by the worker's process."""
        raise NotSupported("a task cannot take messages itself where it runs in a pool's child process")


class LinkStore:
    """Reads and writes results through the worker's process."""

    def __init__(self, call: Call, capabilities: StoreCapabilities, reply_address: str) -> None:
        self._call = call
        self.capabilities = capabilities
        self._reply_address = reply_address
        self._woken = threading.Event()

    def open(self) -> None:
        """Nothing is to be opened."""

    def close(self, *, timeout: float = 5.0) -> None:
        """End a wait that still runs."""
        self._woken.set()

    def put(self, records: Sequence[Record]) -> Sequence[str]:
        """Store records on the worker's connection."""
        superseded: list[str] = _ask(self._call, "put", list(records), list[str])
        return superseded

    def get(self, ids: Sequence[str]) -> Sequence[Record | None]:
        """Read records on the worker's connection."""
        records: list[Record | None] = _ask(self._call, "get", list(ids), list[Record | None])
        return records

    def delete(self, ids: Sequence[str]) -> None:
        """Delete records on the worker's connection."""
        _ask(self._call, "delete", list(ids), None)

    def reply_address(self) -> str | None:
        """Return the worker's address: results for its children are pushed to it."""
        return self._reply_address or None

    def wait(self, ids: Sequence[str], timeout: float) -> Sequence[Record]:
        """Wait with the worker's process for results."""
        end = time.monotonic() + timeout
        while True:
            left = max(0.0, end - time.monotonic())
            asked = (list(ids), min(left, _WAIT_SLICE))
            records: list[Record] = _ask(self._call, "wait", asked, list[Record])
            if records or left <= _WAIT_SLICE or self._woken.is_set():
                self._woken.clear()
                return records

    def wake(self) -> None:
        """Make the running or next wait return soon."""
        self._woken.set()


class LinkCoordination(LinkStore):
    """As ``LinkStore``, for a store with the ability ``Coordination``."""

    def apply(self, ops: Sequence[Op]) -> Sequence[OpResult]:
        """Apply operations on the worker's connection."""
        results: list[OpResult] = _ask(self._call, "apply", list(ops), list[OpResult])
        return results

    def acquire(self, key: str, owner: str, *, slots: int = 1, ttl: float) -> bool:
        """Take a place on the worker's connection."""
        return bool(_ask(self._call, "place", ("acquire", key, owner, slots, ttl), bool))

    def renew(self, key: str, owner: str, *, ttl: float) -> bool:
        """Keep a place on the worker's connection."""
        return bool(_ask(self._call, "place", ("renew", key, owner, 1, ttl), bool))

    def release(self, key: str, owner: str) -> None:
        """Give a place back on the worker's connection."""
        _ask(self._call, "place", ("release", key, owner, 1, 0.0), bool)


# -------------------------------------------------------------------------------- the worker's side


class LinkServer:
    """Answers children from the worker's own connections; ``request`` never blocks.

    Sends of all children are gathered and go out as one batch; what may wait (results) has threads of its own.
    """

    def __init__(self, app: TaskQ) -> None:
        self._app = app
        self._requests: queue.SimpleQueue[tuple[str, bytes, Reply] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._closed = False

    def request(self, data: bytes, reply: Reply) -> None:
        """Take one request; ``reply`` is called when it is answered, with an error where it cannot be."""
        try:
            operation, argument = msgspec.msgpack.decode(data, type=tuple[str, bytes])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            _reply_error(reply, error)
            return
        with self._lock:
            closed = self._closed
            if not closed:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="taskq-link", daemon=True)
                    self._thread.start()
                self._requests.put((operation, argument, reply))
        if closed:
            _reply_closed(reply)

    def close(self) -> None:
        """Answer what came before, refuse what comes later, and stop the threads."""
        with self._lock:
            self._closed = True
        thread = self._thread
        if thread is not None:
            self._requests.put(None)
            thread.join(timeout=5)
        if self._executor is not None:
            self._executor.shutdown(wait=False)  # no wait is longer than its slice, and all are answered

    def _run(self) -> None:
        while True:
            batch: list[tuple[str, bytes, Reply] | None] = [self._requests.get()]
            try:
                while len(batch) < 1000:
                    batch.append(self._requests.get_nowait())
            except queue.Empty:
                pass
            sends: dict[str, list[_Send]] = {}
            for request in batch:
                if request is None:
                    self._send_each(sends)
                    return
                operation, argument, reply = request
                if operation == "send":
                    try:
                        broker, messages = msgspec.msgpack.decode(argument, type=tuple[str, list[Outbound]])
                    except msgspec.MsgspecError as error:
                        _reply_error(reply, error)
                    else:
                        sends.setdefault(broker, []).append((messages, reply))
                elif operation in ("wait", "broker"):
                    self._on_thread((reply,), self._answer, operation, argument, reply)
                else:
                    self._answer(operation, argument, reply)
            self._send_each(sends)

    def _on_thread(self, replies: Sequence[Reply], step: Callable[..., None], *arguments: Any) -> None:
        if self._executor is None:
            from concurrent.futures import ThreadPoolExecutor

            self._executor = ThreadPoolExecutor(max(_THREADS, 2 * (os.cpu_count() or 1)), "taskq-link-wait")
        try:
            self._executor.submit(step, *arguments)
        except RuntimeError:  # closed, while the broker held this thread up
            for reply in replies:
                _reply_closed(reply)

    def _send_each(self, sends: Mapping[str, Sequence[_Send]]) -> None:
        """Send to each broker; to further ones on other threads, because one that is away must not keep the others."""
        for broker, calls in sends.items():
            if broker:
                self._on_thread([reply for _, reply in calls], self._send, broker, calls)
        if "" in sends:
            self._send("", sends[""])

    def _send(self, broker: str, calls: Sequence[_Send]) -> None:
        """Send what several children send in one batch; where that fails as a whole, each by itself."""
        try:
            transport = self._app.components.broker(broker)
            failures = {f.index: f for f in transport.send([outbound for call, _ in calls for outbound in call])}
        except Exception as error:
            if len(calls) > 1 and not getattr(error, "retryable", False):
                for one in calls:
                    self._send(broker, [one])
                return
            for _, reply in calls:
                _reply_error(reply, error)
            return
        start = 0
        for call, reply in calls:
            own = [
                SendFailure(i, f.reason, f.maybe_sent, f.retryable)
                for i in range(len(call))
                if (f := failures.get(start + i)) is not None
            ]
            start += len(call)
            _reply(reply, _encode((_OK, _encode(own))))

    def _answer(self, operation: str, argument: bytes, reply: Reply) -> None:
        try:
            answer = _encode((_OK, _encode(self._carry_out(operation, argument))))
        except Exception as error:
            _reply_error(reply, error)
        else:
            _reply(reply, answer)

    def _carry_out(self, operation: str, argument: bytes) -> Any:
        app = self._app
        store: Any = app.store
        decode = msgspec.msgpack.decode
        match operation:
            case "hello":
                capabilities = None if store is None else store.capabilities
                can = store is not None and store.capabilities.coordination and hasattr(store, "apply")
                return _Hello(
                    capabilities,
                    app.store_label,
                    app.reply_address(),
                    can,
                    app.components.facts,
                )
            case "broker":
                return app.components.broker(decode(argument, type=str)).capabilities
            case "declare":
                broker, queues, mode = decode(argument, type=tuple[str, list[QueueSpec], DeclareMode])
                declared = app.components.broker(broker).declare(queues, mode=mode)
                return {name: (facts.created, facts.capabilities) for name, facts in declared.items()}
            case "wait":
                ids, timeout = decode(argument, type=tuple[list[str], float])
                return self._wait(ids, timeout)
            case "get":
                return store.get(decode(argument, type=list[str]))
            case "put":
                return list(store.put(decode(argument, type=list[Record])))
            case "delete":
                return store.delete(decode(argument, type=list[str]))
            case "apply":
                return list(store.apply(decode(argument, type=list[Op])))
            case "place":
                what, key, owner, slots, ttl = decode(argument, type=tuple[str, str, str, int, float])
                if what == "acquire":
                    return store.acquire(key, owner, slots=slots, ttl=ttl)
                return store.renew(key, owner, ttl=ttl) if what == "renew" else bool(store.release(key, owner))
        raise NotSupported(f"the link knows no operation {operation!r}")

    def _wait(self, ids: list[str], timeout: float) -> list[Record]:
        """Return what has come as soon as there is one; the worker's process shares one wait on the store."""
        for record in self._app.waiter.wait_many(set(ids), time.monotonic() + timeout):
            return [record]
        return []


def _reply_closed(reply: Reply) -> None:
    _reply_error(reply, TransportClosed("the worker is stopping; its connections are closed"))


def _reply_error(reply: Reply, error: Exception) -> None:
    if not isinstance(error, TaskQError):
        logger.error("a request of a child process failed unexpectedly", exc_info=error)
    problem = _Problem(type(error).__name__, str(error), bool(getattr(error, "retryable", False)))
    _reply(reply, _encode((_ERROR, _encode(problem))))


def _reply(reply: Reply, data: bytes) -> None:
    try:
        reply(data)
    except Exception as error:
        logger.debug("an answer could not be given to a child process: %s", error)
