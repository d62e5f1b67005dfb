"""Receiving: polls that run on threads of their own, within the credit.

Nothing is pushed and a long poll cannot be called off. Each poll under way reserves what it may bring, and no more is
asked for than a fetch wanted.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from taskq.errors import QueueMissing, TransportError
from taskq_transport_sqs.hands import Hands
from taskq_transport_sqs.held import UNLIMITED, Holdings, Lane
from taskq_transport_sqs.settling import Change

if TYPE_CHECKING:
    from taskq_transport_sqs.transport import SqsTransport

logger = logging.getLogger("taskq.transport.sqs")
_BATCH = 10
_AFTER_ERROR = 0.2


class Polls:
    """The polls of one consumer. ``hand_back`` is called with what came for nobody, ``ring`` when one has ended."""

    def __init__(
        self,
        transport: SqsTransport,
        holdings: Holdings,
        hand_back: Callable[[Sequence[Change]], None],
        ring: Callable[[], None],
    ) -> None:
        self._client = transport.client
        self._queues = transport.queues
        self._connections = transport.options.connections
        self._lease = transport.lease_s
        self._holdings = holdings
        self._hand_back = hand_back
        self._ring = ring
        self._hands = Hands(self._connections, "taskq-sqs-poll")
        self._reserved = 0
        """What polls under way may bring."""
        self._alone = False
        """Whether there is one lane only."""
        self.appetite = 0
        """What the last fetch asked for and has not been given."""
        self.running = 0
        self.quick = 0
        """Polls under way that do not wait for messages."""
        self.error: TransportError | None = None
        """Why the last one failed, until somebody is told."""

    def allow(self, lanes: int, most: int) -> None:
        """Have threads enough for so many lanes, at most so many long polls."""
        self._alone = lanes == 1
        self._hands.resize(self._connections + min(lanes, most))

    def ask(self, lanes: Sequence[Lane], want: int, seconds: int) -> bool:
        """Start polls for up to so many messages, within the credit; whether there was one to start."""
        now = time.monotonic()
        jobs = []
        with self._holdings.lock:
            room = self._room(want)
            share = max(1, min(_BATCH, room // max(1, len(lanes))))
            for lane in lanes:
                if lane.paused > now:
                    continue
                while room > 0 and lane.polls < lane.level:
                    n = min(share, room)
                    room -= n
                    self._reserved += n
                    self.running += 1
                    self.quick += not seconds
                    lane.polls += 1
                    jobs.append((lane, n, seconds))
        for job in jobs:
            self._hands.submit(lambda job=job: self._poll(*job))  # type: ignore[misc]
        return bool(jobs)

    def close(self) -> None:
        self._hands.close(0.2)

    def _poll(self, lane: Lane, n: int, seconds: int) -> None:
        """Receive messages, on a thread of its own; again while the queue gives and the last fetch wanted more."""
        more: int | None = n
        while more:
            n = more
            messages: Sequence[Any] = ()
            problem: TransportError | None = None
            try:
                messages = self._receive(lane, n, seconds)
            except TransportError as error:
                problem = error
            except BaseException as error:  # a thread has nobody else to tell
                logger.exception("a poll of queue %s met an unexpected error", lane.queue.name)
                problem = TransportError(f"a poll of queue {lane.queue.name!r} failed: {error!r}")
            more, unwanted = self._received(lane, n, seconds, messages, problem)
            seconds = 0
            try:
                self._hand_back(unwanted)
            finally:
                if not more:
                    with self._holdings.lock:
                        self.running -= 1
                self._ring()

    def _received(
        self, lane: Lane, n: int, seconds: int, messages: Sequence[Any], problem: TransportError | None
    ) -> tuple[int, list[Change]]:
        """Take note of what a poll brought; return how many to ask for next (0: end), and what must go back."""
        now = time.monotonic()
        with self._holdings.lock:
            self._reserved -= n
            self.quick -= not seconds
            more = 0
            unwanted: list[Change] = []
            if problem is not None:
                lane.paused = now + _AFTER_ERROR
                lane.level = 1
                self.error = problem
            elif not lane.active:
                unwanted = [Change(lane.queue, m["ReceiptHandle"], 0) for m in reversed(messages)]
            else:
                for message in messages:
                    self._holdings.take_in(lane, message, self._lease, now)
                if not messages:
                    lane.level = 1
                elif len(messages) >= n:
                    lane.level = min(lane.level + 1, self._connections)
                    if self._alone:
                        more = max(0, min(_BATCH, self._room(self.appetite - len(lane.buffer))))
            if more:
                self._reserved += more
                self.quick += 1
            else:
                lane.polls -= 1
        return more, unwanted

    def _room(self, want: int) -> int:
        """Return how many more may be asked for, within credit, bytes and what is wanted."""
        holdings = self._holdings
        room = min(want, holdings.credit - len(holdings)) - self._reserved
        if len(holdings) and holdings.bytes >= holdings.max_bytes:
            return 0
        if holdings.typical and holdings.max_bytes < UNLIMITED:
            fits = int((holdings.max_bytes - holdings.bytes) / holdings.typical)
            room = min(room, max(fits, 0 if len(holdings) else 1))
        return room

    def _receive(self, lane: Lane, n: int, seconds: int) -> Sequence[Any]:
        queue = lane.queue
        more = {}
        if queue.fifo:
            # the same id again after a lost answer brings the same messages, which would be hidden for a lease
            attempt = lane.attempts.pop() if lane.attempts else uuid.uuid4().hex
            more["ReceiveRequestAttemptId"] = attempt
        try:
            answer = self._client.poll(
                QueueUrl=queue.url,
                MaxNumberOfMessages=n,
                WaitTimeSeconds=seconds,
                VisibilityTimeout=self._lease,
                MessageSystemAttributeNames=["ApproximateReceiveCount", "MessageGroupId", "MessageDeduplicationId"],
                **more,
            )
        except QueueMissing:
            if not lane.active:
                return ()
            self._queues.forget(queue)
            lane.queue = self._queues.find(queue.name, ordered=queue.fifo)
            logger.warning("queue %s was deleted on %s; it is there again, empty", queue.name, self._client.target.name)
            return ()
        except TransportError:
            if queue.fifo:
                lane.attempts.append(attempt)
            raise
        found: Sequence[Any] = answer.get("Messages") or ()
        return found
