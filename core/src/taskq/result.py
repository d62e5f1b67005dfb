"""Results: asking for one, waiting for one, waiting for many as they finish."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from taskq import envelope
from taskq.context import request_var
from taskq.errors import PluginError, ResultNotKept, SerializationError, StoreError, TaskQError, TaskTimeout
from taskq.failure import decode_payload, error_for_state, rebuild
from taskq.message import RELEASED, Job, Outbound, Record
from taskq.states import SUCCESS, TERMINAL, UNKNOWN

if TYPE_CHECKING:
    from taskq.app import TaskQ
    from taskq.task import Task

R = TypeVar("R")


class AsyncResult(Generic[R]):
    """The result of one task, now or later.

    Cheap to make; it talks to the result store only when asked. Blocking methods have async twins with an ``a`` in
    front.
    """

    __slots__ = ("_app", "_kept", "_record", "_task", "id")

    def __init__(self, id: str, app: TaskQ, task: Task[..., Any] | None = None, kept: bool | None = None) -> None:
        self.id = id
        self._app = app
        self._task = task
        self._kept = kept
        self._record: Record | None = None

    def __repr__(self) -> str:
        return f"<AsyncResult {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsyncResult) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    # --------------------------------------------------------------------------------------------------- waiting

    def get(self, timeout: float | None = None, *, propagate: bool = True, allow_in_task: bool = False) -> R:
        """Wait for the task to end and return its result.

        Args:
            timeout: seconds to wait, None for ever.
            propagate: raise the task's exception; else return it.
            allow_in_task: allow waiting inside a task, where a waiting worker may block the very task it waits for.

        Raises:
            TaskTimeout: it did not end in time.
            ResultNotKept: nobody stores this result.
            the task's own exception, with the remote traceback as its cause; TaskFailure where its type is unknown
            here.
        """
        self._check_wait(allow_in_task)
        record = self._final() or self._app.waiter.wait_one(self.id, timeout)
        if record is None:
            raise self._timeout(timeout)
        return self._value(record, propagate)

    async def aget(self, timeout: float | None = None, *, propagate: bool = True, allow_in_task: bool = False) -> R:
        """Wait for the task to end without blocking the event loop; see ``get``."""
        import asyncio  # a fifth of the import time of a program that may never await

        record = self._final()
        if record is None and not self._app.components.connected():
            await self._app.arun(lambda: self._app.store)
        self._check_wait(allow_in_task)
        if record is None:
            future = self._app.waiter.subscribe(self.id, asyncio.get_running_loop())
            try:
                record = await asyncio.wait_for(future, timeout)
            except TimeoutError:
                refusal = await self._app.arun(lambda: self._timeout(timeout))
                record = self._final()  # it may have come at the last moment
                if record is None:
                    raise refusal from None
            finally:
                self._app.waiter.unsubscribe(self.id, future)
        return self._value(record, propagate)

    def __await__(self) -> Generator[Any, None, R]:
        return self.aget().__await__()

    # ---------------------------------------------------------------------------------------------------- asking

    @property
    def state(self) -> str:
        """The task's state; UNKNOWN where the store has no record of it."""
        record = self._fetch()
        return UNKNOWN if record is None else record.state

    def ready(self) -> bool:
        """Whether the task has ended, in whatever way."""
        record = self._fetch()
        return record is not None and record.terminal

    def successful(self) -> bool:
        """Whether the task has returned."""
        return self.state == SUCCESS

    def failed(self) -> bool:
        """Whether the task has ended without returning."""
        return self.state in TERMINAL - {SUCCESS}

    @property
    def traceback(self) -> str | None:
        """The traceback of the last failure as text, None without one."""
        record = self._fetch()
        if record is None or not record.payload:
            return None
        error = decode_payload(record.payload).error
        return None if error is None else error.traceback

    @property
    def result(self) -> R | BaseException | None:
        """The return value or the exception, None while there is neither."""
        record = self._fetch()
        return self._value(record, propagate=False) if record is not None and record.terminal else None

    def forget(self) -> None:
        """Delete the result from its store."""
        self._store().delete([self.id])
        self._record = None

    async def aready(self) -> bool:
        """As ``ready``, without blocking the event loop."""
        return await self._app.arun(self.ready)

    async def astate(self) -> str:
        """As ``state``, without blocking the event loop."""
        return await self._app.arun(lambda: self.state)

    async def aforget(self) -> None:
        """As ``forget``, without blocking the event loop."""
        await self._app.arun(self.forget)

    # ------------------------------------------------------------------------------------------------- internals

    def _store(self) -> Any:
        store = self._app.store
        if self._kept is False or store is None:
            raise self._not_kept()
        return store

    def _not_kept(self) -> ResultNotKept:
        if self._app.store is None:
            why = (
                f"application {self._app.name!r} has no result store: {self._app.broker_name} cannot hold results. "
                "Set result_store, for example result_store='redis://localhost/0'"
            )
        else:
            why = "it was sent with ignore_result; set ignore_result=False on the task, the call or the application"
        return ResultNotKept(f"the result of task [{self.id}] is not kept: {why}")

    def _check_wait(self, allow_in_task: bool) -> None:
        if self._record is None:
            self._store()
        if not allow_in_task and request_var.get() is not None:
            raise TaskQError(
                "waiting for a result inside a task can block the worker for ever; "
                "send a follow-up task instead, or pass allow_in_task=True"
            )

    def _timeout(self, timeout: float | None) -> TaskTimeout:
        try:
            state = self.state
        except StoreError as error:
            state = f"not known: {error}"
        return TaskTimeout(f"task [{self.id}] did not end within {timeout} s; it may still run, its state is {state}")

    def _final(self) -> Record | None:
        return self._record if self._record is not None and self._record.terminal else None

    def _fetch(self) -> Record | None:
        record = self._final()
        if record is None:
            record = self._store().get([self.id])[0]
            self._record = record
        return record

    def _value(self, record: Record, propagate: bool) -> R:
        self._record = record
        payload = decode_payload(record.payload) if record.payload else None
        if record.state == SUCCESS and payload is not None:
            value = self._app.codec.decode(payload.value or b"", payload.content_type, payload.transforms)
            if self._task is not None and self._task.models is not None:
                value = self._task.models.load_result(value)
            return cast("R", value)
        if payload is not None and payload.error is not None:
            try:
                reader = self._app.codec.reader(payload.content_type)
            except (SerializationError, PluginError):
                reader = None
            error = rebuild(payload.error, reader)
        else:
            error = error_for_state(record.state, self.id, "")
        if propagate:
            raise error
        return cast("R", error)


class EagerResult(AsyncResult[R]):
    """The result of a task that ran at the call, in the caller's process."""

    __slots__ = ()

    @classmethod
    def run(cls, app: TaskQ, task: Task[..., Any], outbound: Outbound) -> EagerResult[Any]:
        """Run a message as a worker would, retries included (without their delays)."""
        runtime = app.eager_runtime()
        payload = outbound.payload
        while True:
            header, body = envelope.decode(payload)
            outcome = runtime.execute(Job(0, payload, task.name, outbound.queue, 1, body, header))
            if outcome.terminal or not outcome.follow_ups:
                break
            payload = outcome.follow_ups[0].payload
        result = cls(header.id, app, task, kept=True)
        assert outcome.kind != RELEASED
        result._record = Record(header.id, outcome.state, outcome.result or b"", True, header.attempt)
        return result

    def get(self, timeout: float | None = None, *, propagate: bool = True, allow_in_task: bool = True) -> R:
        """Return the result, or raise the task's exception; nothing is waited for."""
        return super().get(timeout, propagate=propagate, allow_in_task=True)

    async def aget(self, timeout: float | None = None, *, propagate: bool = True, allow_in_task: bool = True) -> R:
        """As ``get``."""
        return await super().aget(timeout, propagate=propagate, allow_in_task=True)

    def forget(self) -> None:
        """Do nothing: the result is in no store."""


def as_completed(results: Iterable[AsyncResult[R]], timeout: float | None = None) -> Iterator[AsyncResult[R]]:
    """Yield results as their tasks end; ``get()`` on each then returns at once.

    Raises:
        TaskTimeout: not all have ended within ``timeout`` seconds.
    """
    pending = {r.id: r for r in results}
    if not pending:
        return
    app = next(iter(pending.values()))._app
    deadline = None if timeout is None else time.monotonic() + timeout
    for result in list(pending.values()):
        result._check_wait(allow_in_task=False)
        if result._final() is not None:
            yield pending.pop(result.id)
    for record in app.waiter.wait_many(set(pending), deadline) if pending else ():
        result = pending.pop(record.id)
        result._record = record
        yield result
    if pending:
        raise TaskTimeout(
            f"{len(pending)} of the tasks did not end within {timeout} s; the first is [{next(iter(pending))}]"
        )


async def aas_completed(
    results: Iterable[AsyncResult[R]], timeout: float | None = None
) -> AsyncIterator[AsyncResult[R]]:
    """As ``as_completed``, for ``async for``."""
    import asyncio

    waiting = {asyncio.ensure_future(_settled(r)) for r in results}
    loop = asyncio.get_running_loop()
    deadline = None if timeout is None else loop.time() + timeout
    try:
        while waiting:
            left = None if deadline is None else max(0.0, deadline - loop.time())
            done, waiting = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                raise TaskTimeout(f"{len(waiting)} of the tasks did not end within {timeout} s")
            for future in done:
                yield future.result()
    finally:
        for future in waiting:
            future.cancel()


async def _settled(result: AsyncResult[R]) -> AsyncResult[R]:
    await result.aget(propagate=False)
    return result


def gather(results: Iterable[AsyncResult[R]], timeout: float | None = None) -> list[R]:
    """Wait for all results and return their values in order; the first failure is raised.

    Raises:
        TaskTimeout: not all have ended within ``timeout`` seconds.
    """
    ordered = list(results)
    for _ in as_completed(ordered, timeout):
        pass
    return [r.get(timeout=0) for r in ordered]
