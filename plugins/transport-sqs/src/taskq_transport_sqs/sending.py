"""Sending: batches of ten, of one queue each, and what becomes of each message of them."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from typing import Any

from taskq.errors import NotSupported, QueueMissing, TransportError
from taskq.message import Outbound, SendFailure
from taskq_transport_sqs import names
from taskq_transport_sqs.client import Ambiguous, Client
from taskq_transport_sqs.hands import Hands
from taskq_transport_sqs.options import MAX_DELAY_S, MAX_MESSAGE_BYTES, MAX_PAYLOAD_BYTES
from taskq_transport_sqs.queues import DEAD, Queue, Queues

BATCH = 10
"""Most entries of a batch call: the server's limit."""
_TRIES = 3
_PAUSE = 0.05


class _Part:
    """Messages of one queue that go out in one call."""

    __slots__ = ("entries", "error", "failures", "queue", "size")

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.entries: list[dict[str, Any]] = []
        self.size = 0
        self.failures: list[SendFailure] = []
        self.error: TransportError | None = None
        """What kept the whole call from being made."""


def send(client: Client, hands: Hands, queues: Queues, batch: Sequence[Outbound]) -> Sequence[SendFailure]:
    """Send messages of any queues; see ``Transport.send``."""
    failures: list[SendFailure] = []
    lines: dict[str, list[_Part]] = {}
    for index, outbound in enumerate(batch):
        queue = queues.find(outbound.queue)
        try:
            entry = _entry(index, outbound, queue)
        except NotSupported as error:
            failures.append(SendFailure(index, str(error), retryable=False))
            continue
        parts = lines.setdefault(outbound.queue, [])
        size = len(entry["MessageBody"])
        if not parts or not _fits(parts[-1], entry, size):
            parts.append(_Part(queue))
        part = parts[-1]
        part.entries.append(entry)
        part.size += size
    work: list[list[_Part]] = []
    for parts in lines.values():
        if parts[0].queue.fifo:
            work.append(parts)  # one after the other, for the order's sake
        else:
            work += [[part] for part in parts]
    if work:
        hands.each(lambda line: _send_line(client, queues, line), work)
    every = [part for parts in lines.values() for part in parts]
    errors = [part.error for part in every if part.error is not None]
    if errors and len(errors) == len(every) and not failures:
        raise errors[0]
    for part in every:
        if part.error is not None:
            part.failures = _all_failed(part, str(part.error), maybe=False, retryable=part.error.retryable)
        failures += part.failures
    return failures


def _fits(part: _Part, entry: dict[str, Any], size: int) -> bool:
    if len(part.entries) >= BATCH or part.size + size > MAX_MESSAGE_BYTES:
        return False
    # An entry may fail alone; its successor in the group must not have overtaken it then.
    group = entry.get("MessageGroupId") if part.queue.fifo else None
    return group is None or all(other["MessageGroupId"] != group for other in part.entries)


def _entry(index: int, outbound: Outbound, queue: Queue) -> dict[str, Any]:
    """Return a message as the server takes it. Raises: NotSupported."""
    if len(outbound.payload) > MAX_PAYLOAD_BYTES:
        raise NotSupported(
            f"the message has {len(outbound.payload):,} bytes; SQS takes {MAX_PAYLOAD_BYTES:,} at most, which are "
            f"{MAX_MESSAGE_BYTES:,} as base64 text: pass a reference to large data, not the data"
        )
    entry: dict[str, Any] = {"Id": str(index), "MessageBody": names.to_body(outbound.payload)}
    if queue.fifo:
        if outbound.delay > 0:
            raise NotSupported(
                f"queue {queue.name!r} is a FIFO queue of SQS, which has no delay per message: send without countdown "
                "or eta, or use a standard queue"
            )
        deduplication = names.deduplication_id(outbound.id)
        entry["MessageDeduplicationId"] = deduplication
        # Without a group a message waits for no other: it is a group of its own. So is a dead letter, or a listing
        # would see one of each group.
        alone = outbound.group is None or outbound.queue.endswith(DEAD)
        entry["MessageGroupId"] = deduplication if alone else names.group_id(str(outbound.group))
        return entry
    if outbound.delay > MAX_DELAY_S:
        raise NotSupported(f"a delay of {outbound.delay:g} s: SQS holds a message back for {MAX_DELAY_S:g} s at most")
    if outbound.delay > 0:
        entry["DelaySeconds"] = math.ceil(outbound.delay)
    if outbound.group is not None:
        entry["MessageGroupId"] = names.group_id(outbound.group)  # a fair queue: no tenant starves the others
    return entry


def _send_line(client: Client, queues: Queues, parts: list[_Part]) -> None:
    blocked: set[str] = set()
    for part in parts:
        if part.queue.fifo and blocked:
            held = [e for e in part.entries if e["MessageGroupId"] in blocked]
            part.entries = [e for e in part.entries if e["MessageGroupId"] not in blocked]
            part.failures += [
                SendFailure(int(e["Id"]), "an earlier message of its group was not accepted; it must not overtake it")
                for e in held
            ]
        if part.entries:
            _send_part(client, queues, part)
        if part.queue.fifo:
            failed = {str(failure.index) for failure in part.failures}
            groups = (e["MessageGroupId"] for e in part.entries if part.error is not None or e["Id"] in failed)
            blocked.update(groups)


def _send_part(client: Client, queues: Queues, part: _Part) -> None:
    """Make one call, and others for what failed for reasons that may pass."""
    left = part.entries
    doubtful = False
    tries = _TRIES
    while True:
        tries -= 1
        try:
            answer = client.call("send_message_batch", QueueUrl=part.queue.url, Entries=left)
        except QueueMissing as error:
            if not tries or not _found_again(queues, part):
                _give_up(part, left, error, doubtful)
                return
            continue
        except TransportError as error:
            _give_up(part, left, error, doubtful or isinstance(error, Ambiguous))
            return
        failed = {f["Id"]: f for f in answer.get("Failed") or ()}
        unknown = len(left) - len(failed) - len(answer.get("Successful") or ())
        if not failed and not unknown:
            return
        accepted = {s["Id"] for s in answer.get("Successful") or ()}
        again: list[dict[str, Any]] = []
        for entry in left:
            why = failed.get(entry["Id"])
            if why is None:
                if entry["Id"] not in accepted:
                    reason = "the server's answer does not mention it"
                    part.failures.append(SendFailure(int(entry["Id"]), reason, maybe_sent=True))
            elif why.get("SenderFault") or not tries:
                reason = f"SQS did not take it: {why.get('Code')} {why.get('Message') or ''}".rstrip()
                part.failures.append(SendFailure(int(entry["Id"]), reason, retryable=not why.get("SenderFault")))
            else:
                again.append(entry)
        if not again:
            return
        left = again
        time.sleep(_PAUSE * random.uniform(0.5, 1.5))  # noqa: S311


def _found_again(queues: Queues, part: _Part) -> bool:
    """Whether a queue that the server does not know any more is there again, or was made again."""
    queues.forget(part.queue)
    try:
        part.queue = queues.find(part.queue.name, ordered=part.queue.fifo)
    except TransportError:
        return False
    return True


def _give_up(part: _Part, left: list[dict[str, Any]], error: TransportError, doubtful: bool) -> None:
    if not doubtful and len(left) == len(part.entries) and not part.failures:
        part.error = error
        return
    part.failures += [SendFailure(int(e["Id"]), str(error), doubtful, error.retryable or doubtful) for e in left]


def _all_failed(part: _Part, reason: str, *, maybe: bool, retryable: bool) -> list[SendFailure]:
    return part.failures + [SendFailure(int(e["Id"]), reason, maybe, retryable) for e in part.entries]
