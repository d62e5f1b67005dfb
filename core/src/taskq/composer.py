"""The composer: from a call to a message.

What is constant per task is decided at its first call; a plain ``delay()`` then costs an argument check, an id and two
encodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskq import envelope
from taskq.call_options import check_options, check_priority, delay_of, moment_of
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
from taskq.errors import NotSupported, PayloadTooLarge
from taskq.ids import new_id
from taskq.message import Outbound
from taskq.middleware import SendRequest, send_hooks
from taskq.result import AsyncResult
from taskq.spi.capabilities import Support

if TYPE_CHECKING:
    from taskq.app import TaskQ
    from taskq.canvas import Signature
    from taskq.routing import Route
    from taskq.task import Task

Made = tuple[Outbound, "AsyncResult[Any]"]
NO_OPTIONS: dict[str, Any] = {}


class Composer:
    """Makes the messages of one application; ``connect`` opens a broker by its name, for what it can do."""

    def __init__(self, app: TaskQ, connect: Callable[[str, float | None], None]) -> None:
        self.app = app
        self.makers: dict[str, Callable[[Any, Any], Made]] = {}
        """Task to the maker of its messages without options."""
        self._connect = connect
        self._send_hooks: tuple[Callable[[SendRequest], None], ...] | None = None

    def queue(self, name: str, task: Task[..., Any] | None, args: Any, kwargs: Any, options: Mapping[str, Any]) -> str:
        """Return the queue that a call goes to."""
        return self._queue(task, self.app.router.find(name, args, kwargs), options)

    def _queue(self, task: Task[..., Any] | None, route: Route, options: Mapping[str, Any]) -> str:
        named = options.get("queue") or (task.queue if task else None)
        return named or route.queue or self.app.settings.default_queue

    def of_all(self, signatures: Sequence[Signature[Any]]) -> list[Made]:
        """Make the messages of a bulk send; most are of tasks that a maker is compiled for, without options."""
        made, makers = [], self.makers
        for signature in signatures:
            maker = None if signature.options else makers.get(signature.task)
            made.append(self.of_signature(signature) if maker is None else maker(signature.args, signature.kwargs))
        return made

    def of_signature(self, signature: Signature[Any]) -> Made:
        task = self.app.tasks.get(signature.task)
        if task is not None and not signature.options:
            return (self.makers.get(task.name) or self.compile(task))(signature.args, signature.kwargs)
        outbound, result, settings = self.with_options(
            signature.task, task, signature.args, dict(signature.kwargs), dict(signature.options)
        )
        for name in ("transaction", "publish_timeout"):
            if settings.get(name) is not None:
                raise NotSupported(f"{name} is an option of send_many as a whole, not of one of its signatures")
        return outbound, result

    def compile(self, task: Task[..., Any]) -> Callable[[Any, Any], Made]:
        """Return, and keep, the maker of a task's messages without options."""
        maker = self.makers[task.name] = self._make_maker(task)
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
            return lambda args, kwargs: self.with_options(name, task, args, dict(kwargs), NO_OPTIONS)[:2]
        route = app.router.find(name)
        queue = self._queue(task, route, NO_OPTIONS)
        self._connect(app.components.broker_of(queue), None)
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

    def with_options(
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
        check_options(options)
        task_id = options.get("task_id") or new_id()
        headers = dict(options.get("headers") or {})
        hooks = self._hooks()
        if hooks:
            request = SendRequest(name, task_id, args, kwargs, headers, dict(options))
            for hook in hooks:
                hook(request)
            args, kwargs, headers, options = tuple(request.args), dict(request.kwargs), request.headers, request.options
            check_options(options)
        if task is not None:
            task.check(args, kwargs)
            if task.models is not None:
                args, kwargs = task.models.plain(list(args)), task.models.plain(kwargs)
        now = app.clock.now()
        route = app.router.find(name, args, kwargs)
        queue = self._queue(task, route, options)
        if not eager:
            self._connect(app.components.broker_of(queue), options.get("publish_timeout"))
        extra: dict[str, Any] = {}
        delay = delay_of(options, now)
        if delay > 0:
            extra[NOT_BEFORE] = now + delay
        expires = options.get("expires", task.expires if task else None)
        if expires is not None:
            extra[EXPIRES] = moment_of(expires, now, "expires")
        wanted = options.get("priority")
        priority = self._priority(task, route.priority, queue) if wanted is None else check_priority(wanted)
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
            return check_priority(routed)
        configured = self.app.settings.queues.get(queue)
        return 5 if configured is None or configured.priority is None else configured.priority

    def _check_supported(
        self, name: str, queue: str, delay: float, priority: int, group: str | None, routing_key: str | None
    ) -> None:
        """Refuse what this broker, or this queue, cannot keep, before anything is sent."""
        caps = self.app.components.of_queue(queue)
        label = self.app.components.label_of  # a text for refusals, which are rare
        if delay > 0 and caps.delay is Support.NO:
            what = "on an ordered queue " if self.app.queue_spec(queue).ordered else ""
            raise NotSupported(f"task {name}: {label(queue)} cannot delay messages {what}so countdown and eta cannot "
                               "be kept; use another queue or broker, or send later")  # fmt: skip
        if priority != 5 and caps.priority is Support.NO:
            raise NotSupported(
                f"task {name}: {label(queue)} has no priorities; leave priority at 5 or use a queue of its own"
            )
        if routing_key is not None and not caps.routing:
            raise NotSupported(
                f"task {name}: {label(queue)} does not route by a key; name the queue instead of "
                f"routing_key={routing_key!r}"
            )
        if group is not None and not caps.fair_groups and not self.app.queue_spec(queue).ordered:
            raise NotSupported(f"task {name}: group= keeps order on ordered queues only; "
                               f"set queues.{queue}.ordered = true, where the broker can")  # fmt: skip


def _too_large(name: str, size: int, limit: int, broker: str) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the message of task {name} takes {size} bytes, {broker} carries at most {limit}; nothing was sent. "
        "Store large data elsewhere and pass a reference, or set a compressor"
    )
