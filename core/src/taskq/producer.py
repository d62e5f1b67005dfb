"""The producer: from a call to a message that the broker has accepted.

What is constant per task is decided at its first send; a plain ``delay()`` then costs an argument check, an id, two
encodes and the transport's send.
"""

from __future__ import annotations

import datetime as dt
import difflib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from taskq import envelope
from taskq.context import request_var
from taskq.envelope import (
    EXPIRES,
    GROUP,
    HEADERS,
    MAX_RETRIES,
    NOT_BEFORE,
    PARENT,
    PRIORITY,
    ROOT,
    STORE,
    TRANSFORMS,
    Header,
)  # fmt: skip
from taskq.errors import (
    NotSupported,
    PayloadTooLarge,
    SendFailed,
    SendManyError,
    StoreError,
    TaskQError,
    TransportError,
)
from taskq.failure import ResultPayload, encode_payload
from taskq.ids import new_id
from taskq.message import Outbound, Record, SendFailure
from taskq.middleware import SendRequest, send_hooks
from taskq.result import AsyncResult, EagerResult
from taskq.sender import AsyncSender
from taskq.spi.capabilities import Support
from taskq.spi.transport import SupportsTransactionalSend, Transport
from taskq.states import QUEUED, SCHEDULED

if TYPE_CHECKING:
    from taskq.app import TaskQ
    from taskq.canvas import Signature
    from taskq.task import Task

CALL_OPTIONS = (
    "countdown", "eta", "queue", "priority", "expires", "task_id", "headers", "group", "ignore_result", "max_retries",
    "publish_timeout", "transaction", "routing_key",
)  # fmt: skip
_NO_OPTIONS: dict[str, Any] = {}
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0

Made = tuple[Outbound, "AsyncResult[Any]"]


class Producer:
    """Sends the tasks of one application; safe on any thread."""

    def __init__(self, app: TaskQ) -> None:
        self.app = app
        self._makers: dict[str, Callable[[Any, Any], Made]] = {}
        self._asender = AsyncSender(self._send_all)
        self._send_hooks: tuple[Callable[[SendRequest], None], ...] | None = None

    def connect(self, broker: str = "", timeout: float | None = None) -> None:
        """Open a broker, by its name in the settings, and the result store, with the patience that a send has.

        Raises:
            TransportError, StoreError: a server stayed away, or will never have us.
        """
        if not self.app.components.connected(broker):
            self._patiently(partial(self._open, broker), timeout)

    async def aconnect(self, broker: str = "") -> None:
        """As ``connect``, without blocking the event loop."""
        if not self.app.components.connected(broker):
            await self.app.arun(partial(self.connect, broker))

    def _open(self, broker: str) -> None:
        self.app.components.broker(broker)
        if self.app.store is not None:
            self.app.reply_address()

    def _broker_for(
        self, name: str, task: Task[..., Any] | None, args: Any, kwargs: Any, options: Mapping[str, Any]
    ) -> str:
        """Return the broker that a call will go to."""
        if not self.app.settings.brokers:
            return ""
        self.app.freeze()
        return self.app.components.broker_of(self._queue(name, task, args, kwargs, options))

    def _queue(self, name: str, task: Task[..., Any] | None, args: Any, kwargs: Any, options: Mapping[str, Any]) -> str:
        app = self.app
        named = options.get("queue") or (task.queue if task else None)
        return named or app.router.find(name, args, kwargs).queue or app.settings.default_queue

    def _patiently(self, step: Callable[[], None], timeout: float | None) -> None:
        settings = self.app.settings
        deadline = time.monotonic() + (settings.publish_timeout if timeout is None else timeout)
        pause, tries = _FIRST_PAUSE, 0
        while True:
            try:
                step()
                return
            except (TransportError, StoreError) as error:
                tries += 1
                late = tries > settings.publish_retries or time.monotonic() + pause >= deadline
                if not error.retryable or late:
                    raise
                time.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)

    # --------------------------------------------------------------------------------------------------- sending

    def send(
        self, task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any] = _NO_OPTIONS
    ) -> AsyncResult[Any]:
        """Send one call of a known task; see ``Task.delay`` and ``Task.apply_async``."""
        if self.app.settings.task_always_eager:
            return self._apply_instead(task, args, kwargs, options)
        if options:
            outbound, result, settings = self._make_with_options(task.name, task, args, kwargs, options)
            self._deliver((outbound,), settings.get("publish_timeout"), settings.get("transaction"))
            return result
        outbound, result = (self._makers.get(task.name) or self._compile(task))(args, kwargs)
        self._deliver((outbound,), None, None)
        return result

    async def asend(
        self, task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any] = _NO_OPTIONS
    ) -> AsyncResult[Any]:
        """As ``send``, through the one sending thread that all coroutines of the process share."""
        if options or self.app.settings.task_always_eager:
            return await self.asend_by_name(task.name, task, args, kwargs, options)
        await self.aconnect(self._broker_for(task.name, task, args, kwargs, options))
        outbound, result = (self._makers.get(task.name) or self._compile(task))(args, kwargs)
        failure = await self._asender.send(outbound, None)
        if failure is not None:
            raise _send_failed(outbound, failure)
        return result

    def send_by_name(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]
    ) -> AsyncResult[Any]:
        """Send a call of a task that may be unknown here; its arguments are checked where it is known."""
        task = self.app.tasks.get(name)
        if task is not None:
            return self.send(task, args, kwargs, options)
        self._no_eager(name)
        outbound, result, settings = self._make_with_options(name, None, args, kwargs, options)
        self._deliver((outbound,), settings.get("publish_timeout"), settings.get("transaction"))
        return result

    async def asend_by_name(
        self,
        name: str,
        task: Task[..., Any] | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: dict[str, Any],
    ) -> AsyncResult[Any]:
        """As ``send_by_name``, without blocking the event loop."""
        if task is None:
            self._no_eager(name)
        elif self.app.settings.task_always_eager:
            import asyncio

            return await asyncio.to_thread(self._apply_instead, task, args, kwargs, options)
        await self.aconnect(self._broker_for(name, task, args, kwargs, options))
        outbound, result, settings = self._make_with_options(name, task, args, kwargs, options)
        if settings.get("transaction") is not None:
            raise NotSupported("transaction= is for the blocking calls: run apply_async inside connection.run_sync(…)")
        failure = await self._asender.send(outbound, settings.get("publish_timeout"))
        if failure is not None:
            raise _send_failed(outbound, failure)
        return result

    def send_many(
        self, signatures: Sequence[Signature[Any]], *, transaction: Any = None, publish_timeout: float | None = None
    ) -> list[AsyncResult[Any]]:
        """Send many calls in as few transport calls as its batch limit allows; see ``TaskQ.send_many``."""
        if self.app.settings.task_always_eager:
            return [self.send_by_name(s.task, s.args, dict(s.kwargs), dict(s.options)) for s in signatures]
        made = self._make_all(signatures)
        if not made:
            return []
        failures = self._send_all([m[0] for m in made], publish_timeout, transaction)
        results = [m[1] for m in made]
        if failures:
            raise _send_many_error(made, failures)
        return results

    async def asend_many(
        self, signatures: Sequence[Signature[Any]], *, publish_timeout: float | None = None
    ) -> list[AsyncResult[Any]]:
        """As ``send_many``, without blocking the event loop."""
        if self.app.settings.task_always_eager:
            return [await s.aapply_async() for s in signatures]
        tasks = self.app.tasks
        for s in signatures if self.app.settings.brokers else signatures[:1]:
            await self.aconnect(self._broker_for(s.task, tasks.get(s.task), s.args, s.kwargs, s.options))
        made = self._make_all(signatures)
        failures = await self._asender.send_many([m[0] for m in made], publish_timeout)
        if failures:
            raise _send_many_error(made, failures)
        return [m[1] for m in made]

    def apply(
        self, task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]
    ) -> AsyncResult[Any]:
        """Run a call in this process as a worker would; see ``Task.apply``."""
        outbound, _, _ = self._make_with_options(
            task.name, task, args, kwargs, {**options, "ignore_result": False}, eager=True
        )
        return EagerResult.run(self.app, task, outbound)

    def _apply_instead(
        self, task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]
    ) -> AsyncResult[Any]:
        """Run a call that would otherwise be sent, raising its failure where that is asked for."""
        result = self.apply(task, args, kwargs, options)
        if self.app.settings.eager_propagates and result.failed():
            result.get(allow_in_task=True)
        return result

    def close(self) -> None:
        """Stop the sending thread; what it holds is sent first."""
        self._asender.close()

    # ------------------------------------------------------------------------------------------------ delivering

    def _deliver(self, batch: tuple[Outbound, ...], timeout: float | None, transaction: Any) -> None:
        failures = self._send_all(batch, timeout, transaction)
        if failures:
            raise _send_failed(batch[0], failures[0])

    def _send_all(
        self, batch: Sequence[Outbound], timeout: float | None = None, transaction: Any = None
    ) -> Sequence[SendFailure]:
        """Send a batch, trying again what may be tried again until the publish timeout has passed."""
        app = self.app
        if app.settings.brokers and len(brokers := self._split(batch)) > 1:
            return self._send_to_several(brokers, batch, timeout, transaction)
        transport = app.components.transport_of(batch[0].queue) if app.settings.brokers else app.transport
        declared = app.components.facts
        for outbound in batch:
            # inside the caller's transaction another connection could not write
            if outbound.queue not in declared and transaction is None:
                self._patiently(partial(app.components.declare, [app.queue_spec(outbound.queue)]), timeout)
        if app.settings.track_queued:
            self._record_queued(batch)
        if transaction is not None:
            if not isinstance(transport, SupportsTransactionalSend) or not transport.capabilities.transactional_send:
                raise NotSupported(
                    "transaction= needs a broker in the same database; "
                    f"{app.components.label_of(batch[0].queue)} cannot join a transaction. "
                    "Use a sqlite, postgresql or mysql broker, or send after the commit"
                )
            transport.send_in(transaction, batch)
            return ()
        try:
            failures = transport.send(batch)
        except TransportError as error:
            if not error.retryable:
                raise
            return self._send_again(transport, batch, range(len(batch)), error, timeout)
        if failures and any(f.retryable for f in failures):
            return self._send_again(transport, batch, [f.index for f in failures], failures, timeout)
        return failures

    def _split(self, batch: Sequence[Outbound]) -> dict[str, list[int]]:
        """Return the places in a batch of what goes to each broker."""
        found: dict[str, list[int]] = {}
        for index, outbound in enumerate(batch):
            found.setdefault(self.app.components.broker_of(outbound.queue), []).append(index)
        return found

    def _send_to_several(
        self, brokers: Mapping[str, Sequence[int]], batch: Sequence[Outbound], timeout: float | None, transaction: Any
    ) -> Sequence[SendFailure]:
        """Send to each broker what is meant for it, at the same time: one that is away does not keep the others."""
        if transaction is not None:
            raise NotSupported(
                "transaction= cannot span brokers; send what is for each of them in a call of its own: "
                + ", ".join(map(self.app.components.label, brokers))
            )

        def send(places: Sequence[int]) -> Sequence[SendFailure]:
            try:
                found = self._send_all([batch[place] for place in places], timeout)
            except (TransportError, StoreError) as error:  # of one broker: nothing went there
                return [SendFailure(place, str(error), retryable=error.retryable) for place in places]
            return [SendFailure(places[f.index], f.reason, f.maybe_sent, f.retryable) for f in found]

        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(len(brokers), "taskq-send") as threads:
            return [failure for failures in threads.map(send, brokers.values()) for failure in failures]

    def _send_again(
        self,
        transport: Transport,
        batch: Sequence[Outbound],
        left: Sequence[int],
        why: TransportError | Sequence[SendFailure],
        timeout: float | None,
    ) -> Sequence[SendFailure]:
        deadline = time.monotonic() + (self.app.settings.publish_timeout if timeout is None else timeout)
        pause, tries = _FIRST_PAUSE, 0
        doubtful: set[int] = set()
        """What an earlier try may have sent, whatever a later one says."""
        while True:
            if not isinstance(why, TransportError):
                doubtful.update(f.index for f in why if f.maybe_sent)
                if not any(f.retryable for f in why):
                    return _with_doubt(why, doubtful)
            tries += 1
            if tries > self.app.settings.publish_retries or time.monotonic() + pause >= deadline:
                if isinstance(why, TransportError):
                    if not doubtful:
                        raise why
                    why = [SendFailure(i, str(why)) for i in left]
                return _with_doubt(why, doubtful)
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
            try:
                answer = transport.send([batch[i] for i in left])
            except TransportError as error:
                if not error.retryable and not doubtful:
                    raise
                why = error if error.retryable else [SendFailure(i, str(error), retryable=False) for i in left]
                continue
            why = [SendFailure(left[f.index], f.reason, f.maybe_sent, f.retryable) for f in answer]
            left = [f.index for f in why]
            if not why:
                return ()

    def _record_queued(self, batch: Sequence[Outbound]) -> None:
        store = self.app.store
        if store is None:
            return
        records = []
        for outbound in batch:
            header, _ = envelope.decode(outbound.payload)
            if header.reply is not None:
                payload = encode_payload(ResultPayload("json", None, None, None, time.time()))
                state = SCHEDULED if outbound.delay > 0 else QUEUED
                records.append(
                    Record(header.id, state, payload, False, header.attempt, 0, self.app.settings.result_ttl)
                )
        try:
            store.put(records)
        except StoreError as error:
            raise type(error)(
                f"track_queued is set, but the state could not be recorded, so nothing was sent: {error}"
            ) from error

    # ------------------------------------------------------------------------------------------- making messages

    def _make_all(self, signatures: Sequence[Signature[Any]]) -> list[Made]:
        """Make the messages of a bulk send; most are of tasks that a maker is compiled for, without options."""
        made, makers = [], self._makers
        for signature in signatures:
            maker = None if signature.options else makers.get(signature.task)
            made.append(self._make_signature(signature) if maker is None else maker(signature.args, signature.kwargs))
        return made

    def _make_signature(self, signature: Signature[Any]) -> Made:
        task = self.app.tasks.get(signature.task)
        if task is not None and not signature.options:
            return (self._makers.get(task.name) or self._compile(task))(signature.args, signature.kwargs)
        outbound, result, settings = self._make_with_options(
            signature.task, task, signature.args, dict(signature.kwargs), dict(signature.options)
        )
        for name in ("transaction", "publish_timeout"):
            if settings.get(name) is not None:
                raise NotSupported(f"{name} is an option of send_many as a whole, not of one of its signatures")
        return outbound, result

    def _compile(self, task: Task[..., Any]) -> Callable[[Any, Any], Made]:
        """Return, and keep, the maker of a task's messages without options."""
        maker = self._makers[task.name] = self._make_maker(task)
        return maker

    def _make_maker(self, task: Task[..., Any]) -> Callable[[Any, Any], Made]:
        app = self.app
        app.freeze()
        name, codec = task.name, app.codec
        if (
            app.router.dynamic
            or task.models is not None
            or task.expires is not None
            or self._hooks()
            or codec.settings.compressor is not None
            or codec.settings.max_payload_bytes is not None
        ):  # fmt: skip
            return lambda args, kwargs: self._make_with_options(name, task, args, dict(kwargs), _NO_OPTIONS)[:2]
        route = app.router.find(name)
        queue = task.queue or route.queue or app.settings.default_queue
        self.connect(app.components.broker_of(queue))
        priority = self._priority(task, route.priority, queue)
        keeps = task.keeps_result and app.store is not None
        reply = app.reply_address() if keeps else None
        base: dict[str, Any] = {}
        if priority != 5:
            base[PRIORITY] = priority
        if keeps and app.store_label:
            base[STORE] = app.store_label
        extra = base or None
        limit = app.components.transport_of(queue).capabilities.max_payload_bytes
        serializer = codec.serializer(codec.settings.serializer)
        dumps, content_type, fits = serializer.dumps, serializer.content_type, task.fits
        encode, now, current = envelope.encode, app.clock.now, request_var.get

        def make(args: Any, kwargs: Any) -> Made:
            try:
                fits(*args, **kwargs)
            except TypeError:
                task.check(args, kwargs)  # raises with the words for it
                raise
            task_id = new_id()
            request = current()
            facts = extra if request is None else {**base, PARENT: request.id, ROOT: request.root_id}
            payload = encode(Header(task_id, name, content_type, 0, now(), reply, facts), dumps((args, kwargs)))
            if limit is not None and len(payload) > limit:
                raise _too_large(name, len(payload), limit, app.components.label_of(queue))
            return Outbound(task_id, queue, payload, priority), AsyncResult(task_id, app, task, keeps)

        return make

    def _make_with_options(
        self,
        name: str,
        task: Task[..., Any] | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: Mapping[str, Any],
        *,
        eager: bool = False,
    ) -> tuple[Outbound, AsyncResult[Any], Mapping[str, Any]]:
        app = self.app
        app.freeze()
        _check_options(options)
        task_id = options.get("task_id") or new_id()
        headers = dict(options.get("headers") or {})
        hooks = self._hooks()
        if hooks:
            request = SendRequest(name, task_id, args, kwargs, headers, dict(options))
            for hook in hooks:
                hook(request)
            args, kwargs, headers, options = tuple(request.args), dict(request.kwargs), request.headers, request.options
            _check_options(options)
        if task is not None:
            task.check(args, kwargs)
            if task.models is not None:
                args, kwargs = task.models.plain(list(args)), task.models.plain(kwargs)
        now = app.clock.now()
        route = app.router.find(name, args, kwargs)
        queue = options.get("queue") or (task.queue if task else None) or route.queue or app.settings.default_queue
        if not eager:
            self.connect(app.components.broker_of(queue), options.get("publish_timeout"))
        extra: dict[str, Any] = {}
        delay = _delay(options, now)
        if delay > 0:
            extra[NOT_BEFORE] = now + delay
        expires = options.get("expires", task.expires if task else None)
        if expires is not None:
            extra[EXPIRES] = _moment(expires, now, "expires")
        wanted = options.get("priority")
        priority = self._priority(task, route.priority, queue) if wanted is None else _check_priority(wanted)
        if priority != 5:
            extra[PRIORITY] = priority
        group = options.get("group")
        if group is not None:
            extra[GROUP] = str(group)
        if headers:
            extra[HEADERS] = headers
        if options.get("max_retries") is not None:
            extra[MAX_RETRIES] = options["max_retries"]
        running = request_var.get()
        if running is not None:
            extra[PARENT], extra[ROOT] = running.id, running.root_id
        ignore = options.get("ignore_result")
        keeps = (task.keeps_result if task else not app.settings.ignore_result) if ignore is None else not ignore
        keeps = keeps and (eager or app.store is not None)
        if keeps and not eager and app.store_label:
            extra[STORE] = app.store_label
        routing_key = options.get("routing_key")
        if not eager:
            self._check_supported(name, queue, delay, priority, group, routing_key)
        serializer = app.codec.serializer(app.codec.settings.serializer)
        body, transforms = app.codec.encode((args, kwargs), serializer)
        if transforms:
            extra[TRANSFORMS] = transforms
        reply = None if not keeps else "" if eager else app.reply_address()
        payload = envelope.encode(Header(task_id, name, serializer.content_type, 0, now, reply, extra or None), body)
        if not eager:
            caps = app.components.transport_of(queue).capabilities
            if caps.max_payload_bytes is not None and len(payload) > caps.max_payload_bytes:
                raise _too_large(name, len(payload), caps.max_payload_bytes, app.components.label_of(queue))
            if caps.max_delay_s is not None:
                delay = min(delay, caps.max_delay_s)  # the first leg; a worker sends it on until its time has come
        outbound = Outbound(
            task_id, queue, payload, priority, delay, None if group is None else str(group), routing_key
        )
        return outbound, AsyncResult(task_id, app, task, keeps), options

    def _hooks(self) -> tuple[Callable[[SendRequest], None], ...]:
        if self._send_hooks is None:
            self._send_hooks = send_hooks(self.app.middlewares)
        return self._send_hooks

    def _priority(self, task: Task[..., Any] | None, routed: int | None, queue: str) -> int:
        if task is not None and task.priority is not None:
            return task.priority
        if routed is not None:
            return _check_priority(routed)
        configured = self.app.settings.queues.get(queue)
        return 5 if configured is None or configured.priority is None else configured.priority

    def _check_supported(
        self, name: str, queue: str, delay: float, priority: int, group: str | None, routing_key: str | None
    ) -> None:
        """Refuse what this broker, or this queue, cannot keep, before anything is sent."""
        caps = self.app.components.of_queue(queue)
        broker = self.app.components.label_of(queue)
        if delay > 0 and caps.delay is Support.NO:
            what = "on an ordered queue " if self.app.queue_spec(queue).ordered else ""
            raise NotSupported(f"task {name}: {broker} cannot delay messages {what}so countdown and eta cannot be "
                               "kept; use another queue or broker, or send later")  # fmt: skip
        if priority != 5 and caps.priority is Support.NO:
            raise NotSupported(
                f"task {name}: {broker} has no priorities; leave priority at 5 or use a queue of its own"
            )
        if routing_key is not None and not caps.routing:
            raise NotSupported(
                f"task {name}: {broker} does not route by a key; name the queue instead of routing_key={routing_key!r}"
            )
        if group is not None and not self.app.queue_spec(queue).ordered:
            raise NotSupported(f"task {name}: group= keeps order on ordered queues only; "
                               f"set queues.{queue}.ordered = true, where the broker can")  # fmt: skip

    def _no_eager(self, name: str) -> None:
        if self.app.settings.task_always_eager:
            raise NotSupported(
                f"task_always_eager is set and task {name!r} is not known here, so it cannot be run here"
            )


def _with_doubt(failures: Sequence[SendFailure], doubtful: set[int]) -> Sequence[SendFailure]:
    return [SendFailure(f.index, f.reason, f.maybe_sent or f.index in doubtful, f.retryable) for f in failures]


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


_CHECKS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "task_id": (_is_name, "a string that is not empty"),
    "queue": (_is_name, "a string that is not empty"),
    "routing_key": (_is_name, "a string that is not empty"),
    "headers": (_is_mapping, "a mapping with strings as keys"),
    "max_retries": (_is_count, "an integer of at least 0"),
    "publish_timeout": (_is_time, "a number of seconds above 0"),
}


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that nobody knows, and values that would only fail at the worker."""
    for key, value in options.items():
        if key not in CALL_OPTIONS:
            raise _unknown_option(key)
        check = _CHECKS.get(key)
        if check is not None and value is not None and not check[0](value):
            raise NotSupported(f"{key} is {check[1]}, not {value!r}")


def _delay(options: Mapping[str, Any], now: float) -> float:
    countdown, eta = options.get("countdown"), options.get("eta")
    if countdown is not None and eta is not None:
        raise NotSupported("give countdown or eta, not both")
    if countdown is not None:
        if isinstance(countdown, bool) or not isinstance(countdown, int | float) or not 0 <= countdown < 1e10:
            raise NotSupported(f"countdown is a number of seconds of at least 0, not {countdown!r}")
        return float(countdown)
    return 0.0 if eta is None else max(0.0, _moment(eta, now, "eta") - now)


def _moment(value: Any, now: float, label: str) -> float:
    """Return epoch seconds for an aware datetime, or (``expires`` only) for seconds from now."""
    if isinstance(value, dt.datetime):
        if value.tzinfo is None:
            raise NotSupported(
                f"{label} is a naive datetime, whose zone is unknown; pass an aware one: datetime.now(timezone.utc)"
            )
        return value.timestamp()
    if label == "expires" and isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return now + value
    raise NotSupported(f"{label} must be an aware datetime{' or seconds' if label == 'expires' else ''}, not {value!r}")


def _check_priority(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 9:
        raise NotSupported(f"priority is an integer from 0 to 9 (higher first), not {value!r}")
    return value


def _unknown_option(key: str) -> TaskQError:
    near = difflib.get_close_matches(key, CALL_OPTIONS, 1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(CALL_OPTIONS)}"
    return NotSupported(f"unknown option {key!r} of apply_async{hint}")


def _too_large(name: str, size: int, limit: int, broker: str) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the message of task {name} takes {size} bytes, {broker} carries at most {limit}; nothing was sent. "
        "Store large data elsewhere and pass a reference, or set a compressor"
    )


def _send_failed(outbound: Outbound, failure: SendFailure) -> SendFailed:
    doubt = "; the broker may have taken it all the same" if failure.maybe_sent else "; nothing was sent"
    return SendFailed(
        f"task [{outbound.id}] was not accepted for queue {outbound.queue!r}: {failure.reason}{doubt}", failure
    )


def _send_many_error(made: Sequence[Made], failures: Sequence[SendFailure]) -> SendManyError:
    bad = {f.index: f for f in failures}
    failed = [made[i][1] for i, f in bad.items() if not f.maybe_sent]
    unknown = [made[i][1] for i, f in bad.items() if f.maybe_sent]
    accepted = [m[1] for i, m in enumerate(made) if i not in bad]
    first = failures[0].reason
    return SendManyError(
        f"{len(accepted)} of {len(made)} messages were accepted, {len(failed)} were not, {len(unknown)} are in doubt; "
        f"the first reason: {first}",
        accepted, failed, unknown,
    )  # fmt: skip


__all__ = ["CALL_OPTIONS", "Producer"]
