"""The producer: sends calls until the broker has accepted them, or says typed what became of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from taskq import envelope
from taskq.composer import NO_OPTIONS, Composer, Made
from taskq.errors import NotSupported, SendFailed, SendManyError, StoreError, TransportError
from taskq.failure import ResultPayload, encode_payload
from taskq.message import Outbound, Record, SendFailure
from taskq.result import AsyncResult, EagerResult
from taskq.sender import AsyncSender
from taskq.spi.transport import SupportsTransactionalSend, Transport
from taskq.states import QUEUED, SCHEDULED

if TYPE_CHECKING:
    from taskq.app import TaskQ
    from taskq.canvas import Signature
    from taskq.task import Task

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0


class Producer:
    """Sends the tasks of one application; safe on any thread."""

    def __init__(self, app: TaskQ) -> None:
        self.app = app
        self.composer = Composer(app, self.connect)
        self._asender = AsyncSender(self._send_all)

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
        return self.app.components.broker_of(self.composer.queue(name, task, args, kwargs, options))

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
        self, task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any] = NO_OPTIONS
    ) -> AsyncResult[Any]:
        """Send one call of a known task; see ``Task.delay`` and ``Task.apply_async``."""
        if self.app.settings.task_always_eager:
            return self._apply_instead(task, args, kwargs, options)
        if options:
            outbound, result, settings = self.composer.with_options(task.name, task, args, kwargs, options)
            self._deliver((outbound,), settings.get("publish_timeout"), settings.get("transaction"))
            return result
        outbound, result = (self.composer.makers.get(task.name) or self.composer.compile(task))(args, kwargs)
        self._deliver((outbound,), None, None)
        return result

    async def asend(
        self, task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any] = NO_OPTIONS
    ) -> AsyncResult[Any]:
        """As ``send``, through the one sending thread that all coroutines of the process share."""
        if options or self.app.settings.task_always_eager:
            return await self.asend_by_name(task.name, task, args, kwargs, options)
        await self.aconnect(self._broker_for(task.name, task, args, kwargs, options))
        outbound, result = (self.composer.makers.get(task.name) or self.composer.compile(task))(args, kwargs)
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
        outbound, result, settings = self.composer.with_options(name, None, args, kwargs, options)
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
        outbound, result, settings = self.composer.with_options(name, task, args, kwargs, options)
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
        made = self.composer.of_all(signatures)
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
        made = self.composer.of_all(signatures)
        failures = await self._asender.send_many([m[0] for m in made], publish_timeout)
        if failures:
            raise _send_many_error(made, failures)
        return [m[1] for m in made]

    def apply(
        self, task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]
    ) -> AsyncResult[Any]:
        """Run a call in this process as a worker would; see ``Task.apply``."""
        outbound, _, _ = self.composer.with_options(
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
        if not self.app.settings.brokers:
            return self._send_to("", batch, timeout, transaction)
        brokers = self._split(batch)
        if len(brokers) > 1:
            return self._send_to_several(brokers, batch, timeout, transaction)
        return self._send_to(next(iter(brokers)), batch, timeout, transaction)

    def _send_to(
        self, broker: str, batch: Sequence[Outbound], timeout: float | None, transaction: Any = None
    ) -> Sequence[SendFailure]:
        """Send a batch whose queues are all on one broker."""
        app = self.app
        transport = app.components.broker(broker)
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
                    f"{app.components.label(broker)} cannot join a transaction. "
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

        def send(broker: str) -> Sequence[SendFailure]:
            places = brokers[broker]
            try:
                found = self._send_to(broker, [batch[place] for place in places], timeout)
            except (TransportError, StoreError) as error:  # of one broker: nothing went there
                return [SendFailure(place, str(error), retryable=error.retryable) for place in places]
            return [SendFailure(places[f.index], f.reason, f.maybe_sent, f.retryable) for f in found]

        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(len(brokers), "taskq-send") as threads:
            return [failure for failures in threads.map(send, brokers) for failure in failures]

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

    def _no_eager(self, name: str) -> None:
        if self.app.settings.task_always_eager:
            raise NotSupported(
                f"task_always_eager is set and task {name!r} is not known here, so it cannot be run here"
            )


def _with_doubt(failures: Sequence[SendFailure], doubtful: set[int]) -> Sequence[SendFailure]:
    return [SendFailure(f.index, f.reason, f.maybe_sent or f.index in doubtful, f.retryable) for f in failures]


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
