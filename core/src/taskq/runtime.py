"""The runtime: runs one job of one task and says how it ended. Everything that can be decided once is decided at boot.

Each task is compiled into a closure with its middleware composed, its codec bound and its limits chosen, so that a run
costs a body decode, the task and, where a result is kept, an encode.
"""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from taskq import envelope, link
from taskq.context import Request, request_var
from taskq.envelope import ANEW, NOT_BEFORE, TRANSFORMS, Header
from taskq.errors import (
    DecodeError,
    PayloadTooLarge,
    Reject,
    ResultTooLarge,
    Retry,
    SerializationError,
    TaskCancelled,
    TaskFailure,
    TaskInterrupted,
    TaskQError,
    TaskRevoked,
)
from taskq.failure import ResultPayload, describe, encode_error, encode_payload, traceback_text
from taskq.message import DEAD, DONE, FINISHED, Job, Outcome
from taskq.middleware import compose_run, compose_run_async
from taskq.reference import AppReference
from taskq.spi.capabilities import Support
from taskq.spi.pool import TaskLimits
from taskq.states import DEAD as STATE_DEAD
from taskq.states import FAILURE, RETRY, REVOKED, SUCCESS

if TYPE_CHECKING:
    import asyncio

    from taskq.app import TaskQ
    from taskq.task import Task

logger = logging.getLogger("taskq.runtime")

Execute = Callable[[Job], Outcome]
_CLEAN_UP = 5.0
"""Seconds for a coroutine that an exception out of its event loop has left behind, before its thread goes on."""


class TaskRuntime:
    """Runs the tasks of one application; see ``taskq.spi.Runtime``."""

    def __init__(self, app: TaskQ, worker: str = "") -> None:
        self.app = app
        self.worker = worker
        self._execute: dict[str, Execute] = {}
        self._chains: dict[str, Callable[[Request], Any]] = {}
        self._loop = threading.local()
        self._runners: list[asyncio.Runner] = []
        self._coroutines: dict[int, _Coroutine | None] = {}
        """By thread, the ``async def`` task that runs on its loop; None while the loop is being set up."""
        self._started: list[Task[..., Any]] = []
        self._codec = app.codec
        self._result_serializer = self._codec.serializer(self._codec.settings.result_serializer)
        self._result_limit = app.settings.max_result_bytes
        for name, task in app.tasks.items():
            self._execute[name] = self._compile(task)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (AppReference.to(self.app), self.worker)

    def execute(self, job: Job) -> Outcome:
        """Run one job on this thread."""
        return self._execute[job.task](job)

    async def execute_async(self, job: Job) -> Outcome:
        """Run one job on the running loop; a ``def`` task goes to a thread."""
        import asyncio

        if not self.is_async(job.task):
            return await asyncio.to_thread(self.execute, job)
        task = self.app.tasks[job.task]
        prepared = self._prepare(task, job)
        if isinstance(prepared, Outcome):
            return prepared
        header, request = prepared
        request_var.set(request)
        try:
            result = await self._async_chains(task)(request)
            return FINISHED if header.reply is None else self._success(task, header, result)
        except (TaskInterrupted, asyncio.CancelledError):
            raise
        except BaseException as error:
            return self._failed(task, job, error)

    def abort(self, job: Job, error: TaskQError) -> Outcome:
        """Return the outcome of a job that its pool has ended because of ``error``, by the task's own rules."""
        task = self.app.tasks[job.task]
        if job.header is None:
            job.header, job.body = envelope.decode(job.payload)
        if isinstance(error, TaskRevoked):
            return self._revoked(job, error)
        return self._failed(task, job, error)

    def interrupt(self, error: BaseException, thread: int | None = None) -> bool:
        """End what runs on this thread (None; in a signal handler) or another by ``error``; see ``taskq.spi``."""
        here = threading.get_ident() if thread is None else thread
        running = self._coroutines.get(here)
        if running is None:
            if thread is None and here not in self._coroutines:
                raise error
            return False  # a loop that is being set up must not be left half done
        if thread is None and running.is_current():
            raise error  # the coroutine itself was interrupted, not the loop around it
        running.cancel(error)
        return True

    def is_async(self, task: str) -> bool:
        """Whether a task is ``async def``."""
        return self.app.tasks[task].is_async

    def limits(self, task: str) -> TaskLimits:
        """Return a task's time limits."""
        found = self.app.tasks[task]
        return TaskLimits(found.soft_time_limit, found.time_limit)

    def tasks(self) -> list[str]:
        """Return the names of the tasks."""
        return list(self._execute)

    def add(self, task: Task[..., Any]) -> None:
        """Take a task that was declared after this runtime was started."""
        self._execute[task.name] = self._compile(task)
        task.process_started()
        self._started.append(task)

    def start(self, call: Callable[[bytes], bytes] | None = None) -> None:
        """Set up the tasks' shared resources and run the start hooks of this process; ``call`` as in ``taskq.spi``."""
        if call is not None:
            link.connect(self.app, call)
        for task in self.app.tasks.values():
            task.process_started()
            self._started.append(task)
        self.app.plugins.process_started(self.app)

    def stop(self) -> None:
        """Run the stop hooks of this process and give the tasks' resources back."""
        self.close_loops()
        self.app.plugins.process_stopping(self.app)
        while self._started:
            self._started.pop().process_stopping()

    def close_loops(self) -> None:
        """Close the event loops of all threads; one that a task still runs on stays open."""
        while self._runners:
            try:
                self._runners.pop().close()
            except RuntimeError as error:
                logger.debug("an event loop stays open: %s", error)

    # ------------------------------------------------------------------------------------------------ compiling

    def _compile(self, task: Task[..., Any]) -> Execute:
        codec = self.app.codec
        content_type = codec.settings.serializer
        loads = codec.serializer(content_type).loads if content_type in codec.settings.accept else None
        models, worker, unframe = task.models, self.worker, envelope.decode
        invoke = self._invoker(task)
        prepare, success, failed = self._prepare, self._success_of(task), self._failed

        def execute(job: Job) -> Outcome:
            header = job.header
            if header is None:
                header, job.body = unframe(job.payload)
                job.header = header
            extra = header.extra
            if (
                loads is None
                or models is not None
                or header.content_type != content_type
                or (extra is not None and TRANSFORMS in extra)
            ):
                prepared = prepare(task, job)
                if isinstance(prepared, Outcome):
                    return prepared
                request = prepared[1]
            else:
                try:
                    args, kwargs = loads(job.payload[job.body :])
                except (DecodeError, ValueError, TypeError) as error:
                    return self._undecodable(task, job, error)
                if args.__class__ is not list or kwargs.__class__ is not dict:
                    prepared = prepare(task, job)  # tuples of another format, or no arguments at all
                    if isinstance(prepared, Outcome):
                        return prepared
                    args, kwargs = prepared[1].args, prepared[1].kwargs
                request = Request(header, args, kwargs, job.queue, job.deliveries, task, worker)
            try:
                # A context of its own: what a task sets must not be seen by the next one on this thread.
                result = copy_context().run(invoke, request)
                return FINISHED if header.reply is None else success(header, result)
            except TaskInterrupted:
                raise
            except BaseException as error:
                return failed(task, job, error)

        return execute

    def _invoker(self, task: Task[..., Any]) -> Callable[[Request], Any]:
        """Return what runs a task and its middleware; it is called in a context of its own."""
        set_request, call = request_var.set, task.call
        middlewares = [*self.app.middlewares, *task.hook_middlewares()]
        if not middlewares and not task.is_async:

            def invoke_plain(request: Request) -> Any:
                set_request(request)
                return call(*request.args, **request.kwargs)

            return invoke_plain

        if task.is_async:
            async_chain = self._async_chain(task)

            def run_async(request: Request) -> Any:
                return self._run_coroutine(async_chain, request)

            chain: Callable[[Request], Any] = run_async
        else:
            chain = compose_run(lambda request: call(*request.args, **request.kwargs), middlewares)

        def invoke(request: Request) -> Any:
            set_request(request)
            return chain(request)

        return invoke

    def _async_chains(self, task: Task[..., Any]) -> Callable[[Request], Any]:
        chain = self._chains.get(task.name)
        if chain is None:
            chain = self._chains[task.name] = self._async_chain(task)
        return chain

    def _async_chain(self, task: Task[..., Any]) -> Callable[[Request], Any]:
        call = task.call

        async def core(request: Request) -> Any:
            return await call(*request.args, **request.kwargs)

        return compose_run_async(core, [*self.app.middlewares, *task.hook_middlewares()])

    def _run_coroutine(self, chain: Callable[[Request], Any], request: Request) -> Any:
        """Run an ``async def`` task to its end on this thread's event loop."""
        import asyncio

        context = copy_context()  # the loop's own is that of the first task that it ran
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            thread = threading.get_ident()
            self._coroutines[thread] = None
            try:
                loop = self._thread_loop().get_loop()
                running = _Coroutine(loop, loop.create_task(_await(chain, request), context=context))
                self._coroutines[thread] = running
                return running.run()
            finally:
                del self._coroutines[thread]
        # An eager call from a coroutine: its thread waits here, so the task gets a loop on another one.
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as executor:
            return executor.submit(context.run, asyncio.run, _await(chain, request)).result()

    def _thread_loop(self) -> asyncio.Runner:
        """Return this thread's event loop: ``async def`` tasks on a pool of threads share one per thread."""
        runner: asyncio.Runner | None = getattr(self._loop, "runner", None)
        if runner is None:
            import asyncio

            runner = self._loop.runner = asyncio.Runner()
            self._runners.append(runner)
        return runner

    # -------------------------------------------------------------------------------------------------- running

    def _prepare(self, task: Task[..., Any], job: Job) -> tuple[Header, Request] | Outcome:
        """Decode a body with everything it may need; an Outcome when that fails."""
        if job.header is None:
            job.header, job.body = envelope.decode(job.payload)
        header: Header = job.header
        try:
            args, kwargs = self.app.codec.decode_arguments(header, job.payload[job.body :])
        except Exception as error:  # transforms that make no sense included
            return self._undecodable(task, job, error)
        if task.models is not None:
            try:
                args, kwargs = task.models.load_arguments(args, kwargs)
            except Exception as error:  # a validator may raise anything; another try would see the same
                return self._failure(task, header, error)
        return header, Request(header, args, kwargs, job.queue, job.deliveries, task, self.worker)

    def _success_of(self, task: Task[..., Any]) -> Callable[[Header, Any], Outcome]:
        """Return what makes the outcome of a run that returned and whose result is kept."""
        codec, serializer, clock, worker = self._codec, self._result_serializer, time.time, self.worker
        dumps, content_type = serializer.dumps, serializer.content_type
        limit = min(self._result_limit, codec.settings.max_payload_bytes or self._result_limit)
        if codec.settings.compressor is not None:
            limit = min(limit, codec.settings.compress_above)
        plain = task.models is None
        success = self._success

        def quick(header: Header, result: Any) -> Outcome:
            if plain:
                try:
                    data = dumps(result)
                except SerializationError as error:
                    return self._failure(task, header, error)
                if len(data) <= limit:
                    payload = ResultPayload(content_type, data, None, None, clock(), worker)
                    return Outcome(DONE, SUCCESS, encode_payload(payload))
            return success(task, header, result)

        return quick

    def _success(self, task: Task[..., Any], header: Header, result: Any) -> Outcome:
        codec, serializer, limit = self._codec, self._result_serializer, self._result_limit
        try:
            if task.models is not None:
                result = task.models.plain(result)
            data, transforms = codec.encode(result, serializer)
            if len(data) > limit:
                raise ResultTooLarge(
                    f"the result of task {task.name} takes {len(data)} bytes, max_result_bytes is {limit}; "
                    "store large data elsewhere and return a reference, or raise the setting"
                )
        except (SerializationError, ResultTooLarge, PayloadTooLarge) as error:
            # The task has run; running it again would give the same. Its caller learns why there is no result.
            return self._failure(task, header, error)
        payload = ResultPayload(serializer.content_type, data, None, transforms, time.time(), self.worker)
        return Outcome(DONE, SUCCESS, encode_payload(payload))

    def _undecodable(self, task: Task[..., Any], job: Job, error: BaseException) -> Outcome:
        reason = f"the arguments of task {task.name} cannot be decoded: {error}"
        return Outcome(DEAD, STATE_DEAD, self._error_payload(job.header, DecodeError(reason), ""), (), reason, "")

    def _failed(self, task: Task[..., Any], job: Job, error: BaseException) -> Outcome:
        """Turn what a task raised into an outcome: retry, dead letter or failure."""
        header: Header = job.header
        if isinstance(error, TypeError):
            misfit = self._misfit(task, job)
            if misfit is not None:  # another try would see the same arguments
                return self._failure(task, header, misfit)
        if isinstance(error, TaskCancelled):
            return self._revoked(job, TaskRevoked(f"task {task.name} [{header.id}] was cancelled while it ran"))
        retry = task.wants_retry(error, header)
        if retry is not None:
            return self._retry(task, job, retry)
        if isinstance(error, Retry):
            error = error.exc or TaskFailure(f"task {task.name} [{header.id}] gave up after {header.attempt} retries")
            return self._failure(task, header, error)
        if isinstance(error, Reject):
            reason = f"rejected by the task: {error}"
            return Outcome(
                DEAD, STATE_DEAD, self._error_payload(header, error, reason), (), reason, traceback_text(error)
            )
        return self._failure(task, header, error)

    def _misfit(self, task: Task[..., Any], job: Job) -> Exception | None:
        prepared = self._prepare(task, job)
        return None if isinstance(prepared, Outcome) else task.misfit(prepared[1].args, prepared[1].kwargs)

    def _revoked(self, job: Job, error: TaskRevoked) -> Outcome:
        return Outcome(DONE, REVOKED, self._error_payload(job.header, error, ""), (), describe(error))

    def _retry(self, task: Task[..., Any], job: Job, retry: Retry) -> Outcome:
        header: Header = job.header
        limit = task.retry_limit(header) if retry.max_retries is None else retry.max_retries
        delay = task.retry_policy.delay(header.attempt) if retry.countdown is None else max(0.0, retry.countdown)
        own = self.app.components.facts.get(job.queue)
        if delay and own is not None and own.delay is Support.NO:
            delay = 0.0  # an ordered queue of a broker that delays elsewhere: at once, rather than never
        changes: dict[str, Any] = {**ANEW, NOT_BEFORE: self.app.clock.now() + delay if delay else None}
        body = job.payload[job.body :]
        if retry.task_args is not None or retry.task_kwargs is not None:
            old_args, old_kwargs = self.app.codec.decode_arguments(header, body)
            new = (
                old_args if retry.task_args is None else list(retry.task_args),
                old_kwargs if retry.task_kwargs is None else dict(retry.task_kwargs),
            )
            try:
                if task.models is not None:
                    new = task.models.plain(new)
                body, changes[TRANSFORMS] = self.app.codec.encode(new, self.app.codec.serializer(header.content_type))
            except SerializationError as error:
                return self._failure(task, header, error)
        payload = envelope.with_changes(header, body, changes=changes, attempt=header.attempt + 1)
        name = envelope.message_id(header, header.attempt + 1)
        again = envelope.outbound(header, name, job.queue, payload, delay)
        cause: BaseException = retry.exc or retry
        text = "" if retry.exc is None else traceback_text(cause)
        reason = f"retry {header.attempt + 1} of {limit} in {delay:.3g} s" + (
            f" after {describe(cause)}" if retry.exc is not None else ""
        )
        record = self._error_payload(header, cause, text)
        return Outcome(DONE, RETRY, record, (again,), reason, text, terminal=False)

    def _failure(self, task: Task[..., Any], header: Header, error: BaseException) -> Outcome:
        text = traceback_text(error)
        expected = isinstance(error, task.throws)
        kind = DEAD if task.dead_letter and not expected else DONE
        payload = self._error_payload(header, error, text)
        return Outcome(kind, FAILURE, payload, (), describe(error), None if expected else text)

    def _error_payload(self, header: Header, error: BaseException, text: str) -> bytes | None:
        if header.reply is None:
            return None
        codec = self.app.codec
        return encode_error(error, codec.serializer(codec.settings.result_serializer), text, self.worker)


class _Coroutine:
    """The ``async def`` task that a thread runs on its own event loop, for whoever must end it."""

    __slots__ = ("error", "loop", "task", "thread")

    def __init__(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
        self.loop = loop
        self.task = task
        self.thread = threading.get_ident()
        self.error: BaseException | None = None

    def is_current(self) -> bool:
        """Whether the task's own code, rather than the loop, is what this thread is in."""
        import asyncio

        return asyncio.current_task(self.loop) is self.task

    def run(self) -> Any:
        """Run the task to its end; what cancelled it is raised instead of CancelledError."""
        import asyncio

        try:
            return self.loop.run_until_complete(self.task)
        except asyncio.CancelledError:
            if self.error is None:
                raise
            raise self.error from None
        except BaseException:
            self.abandon()
            raise

    def cancel(self, error: BaseException) -> None:
        """Have the task cancelled; what let the cancellation through then raises ``error``."""
        self.error = error
        if self.thread == threading.get_ident() and not self.loop.is_running():
            self.task.cancel()  # before its first step: it does not begin
        else:
            self.loop.call_soon_threadsafe(self.task.cancel)

    def abandon(self) -> None:
        """Give a task a while to clean up that an exception out of the loop has left behind."""
        import asyncio

        if not self.task.done():
            self.task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                self.loop.run_until_complete(asyncio.wait((self.task,), timeout=_CLEAN_UP))
            if not self.task.done():
                logger.error("a coroutine does not end although it was cancelled: %r", self.task)
            elif not self.task.cancelled():
                self.task.exception()  # seen: it must not be reported as overlooked


def _restore(reference: AppReference, worker: str) -> TaskRuntime:
    return TaskRuntime(reference.find(), worker)


async def _await(chain: Callable[[Request], Any], request: Request) -> Any:
    result = chain(request)
    return await result if inspect.isawaitable(result) else result
