"""Deleting messages and changing their visibility, ten a call, several calls side by side."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from taskq.errors import QueueMissing, TransportError
from taskq_transport_sqs.client import Ambiguous

if TYPE_CHECKING:
    from taskq_transport_sqs.queues import Queue
    from taskq_transport_sqs.transport import SqsTransport

_BATCH = 10
_TRIES = 3
_PAUSE = 0.05
# What says that a receipt holds its message no longer, with the prefixes of the older protocol left out.
_LOST = frozenset({"MessageNotInflight", "ReceiptHandleIsInvalid", "InvalidParameterValue", "QueueDoesNotExist"})


class Change:
    """What to do with one message: delete it (None), or hide it for so many seconds from now."""

    __slots__ = ("doubtful", "handle", "queue", "seconds")

    def __init__(self, queue: Queue, handle: Any, seconds: int | None, *, doubtful: bool = False) -> None:
        self.queue = queue
        self.handle: str = handle
        self.seconds = seconds
        self.doubtful = doubtful
        """Whether it was tried without an answer: a receipt that is refused now may have been used up then."""


class Changed:
    """What became of a number of changes."""

    def __init__(self) -> None:
        self.done: set[str] = set()
        self.lost: dict[str, str] = {}
        self.error: TransportError | None = None
        """Why the rest is neither done nor lost."""


class Settler:
    """Makes changes for one consumer; safe on any thread."""

    def __init__(self, transport: SqsTransport) -> None:
        self._client = transport.client
        self._hands = transport.hands

    def run(self, deletions: Sequence[Change], changes: Sequence[Change]) -> Changed:
        """Delete and change; the changes of a FIFO queue are made in the order given."""
        outcome = Changed()
        work: list[list[list[Change]]] = []
        for some in (deletions, changes):
            by_queue: dict[str, list[Change]] = {}
            for change in some:
                by_queue.setdefault(change.queue.url, []).append(change)
            for mine in by_queue.values():
                batches = [mine[i : i + _BATCH] for i in range(0, len(mine), _BATCH)]
                if mine[0].queue.fifo:
                    work.append(batches)
                else:
                    work += [[batch] for batch in batches]
        if work:
            self._hands.each(lambda line: self._line(line, outcome), work)
        return outcome

    def _line(self, batches: Sequence[Sequence[Change]], outcome: Changed) -> None:
        for batch in batches:
            self._batch(batch, outcome)

    def _batch(self, batch: Sequence[Change], outcome: Changed) -> None:
        left = dict(enumerate(batch))
        deleting = batch[0].seconds is None
        operation = "delete_message_batch" if deleting else "change_message_visibility_batch"
        problem: TransportError | None = None
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_PAUSE * 2**attempt * random.uniform(0.5, 1.5))  # noqa: S311
            entries: list[dict[str, Any]] = []
            for number, change in left.items():
                entry = {"Id": str(number), "ReceiptHandle": change.handle}
                if not deleting:
                    entry["VisibilityTimeout"] = change.seconds  # type: ignore[assignment]
                entries.append(entry)
            try:
                answer = self._client.call_once(operation, QueueUrl=batch[0].queue.url, Entries=entries)
            except QueueMissing:
                outcome.lost.update((change.handle, "its queue was deleted") for change in left.values())
                return
            except TransportError as error:
                for change in left.values():
                    change.doubtful |= isinstance(error, Ambiguous)
                problem = error
                if error.retryable:
                    continue
                break
            failed = {int(f["Id"]): f for f in answer.get("Failed") or ()}
            for number, change in list(left.items()):
                why = failed.get(number)
                if why is None:
                    outcome.done.add(change.handle)
                elif str(why.get("Code")).rpartition(".")[2] in _LOST:
                    if change.doubtful:
                        outcome.done.add(change.handle)
                    else:
                        outcome.lost[change.handle] = f"the server refused its receipt: {why.get('Message')}"
                else:
                    change.doubtful = True
                    problem = TransportError(
                        f"{self._client.target.name} did not settle a message of {change.queue.url}: "
                        f"{why.get('Code')} {why.get('Message') or ''}"
                    )
                    continue
                del left[number]
            if not left:
                return
        outcome.error = problem
