"""The queues on the server: their names, their kinds, finding them, making them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from taskq.errors import NotSupported, QueueMissing
from taskq.message import QueueFacts, QueueSpec
from taskq.spi import Capabilities, DeclareMode
from taskq_transport_sqs import names
from taskq_transport_sqs.client import Client, Target
from taskq_transport_sqs.options import MAX_RETENTION_S

DEAD = ".dead"
_OPTIONS: dict[str, tuple[str, int, int]] = {
    "retention": ("MessageRetentionPeriod", 60, MAX_RETENTION_S),
    "max_receives": ("", 1, 1000),
    "visibility_timeout": ("VisibilityTimeout", 0, 43_200),
}
"""Options of a queue that are numbers: the server's name, least and most."""


_SERVER_NAMES = {
    "retention": "MessageRetentionPeriod", "visibility_timeout": "VisibilityTimeout",
    "high_throughput": "FifoThroughputLimit", "kms_key": "KmsMasterKeyId",
}  # fmt: skip


class Queue:
    """A queue as it is on the server."""

    __slots__ = ("fifo", "name", "url")

    def __init__(self, name: str, url: str, *, fifo: bool) -> None:
        self.name = name
        self.url = url
        self.fifo = fifo


class Queues:
    """What is known of the queues of one broker; safe on any thread."""

    def __init__(self, target: Target, client: Callable[[], Client], caps: Callable[[bool], Capabilities]) -> None:
        self._target = target
        self._options = target.options
        self._client = client
        self._caps = caps
        self._all_fifo = target.options.kind == "fifo"
        self._queues: dict[str, Queue] = {}
        self._not_ours: set[str] = set()
        """Queues that were declared with a mode which does not make them."""
        self._finding = threading.RLock()

    def find(self, queue: str, *, create: bool | None = None, ordered: bool = False) -> Queue:
        """Return a queue on the server, by its name alone, or made now where that is allowed.

        Raises:
            QueueMissing: it is not there, and is not to be made.
            NotSupported: its name cannot be one there.
        """
        found = self._queues.get(queue)
        if found is not None:
            return found
        with self._finding:
            found = self._queues.get(queue) or self._look(queue)
            if found is None:
                if not (self._may_make(queue) if create is None else create):
                    raise QueueMissing(
                        f"{self._target.name} has no queue {queue!r} ({self._on_server(queue)}); create it there, or "
                        "let taskq do it (create_queues = true, declare = 'create')"
                    )
                found = self._make(queue, self._wants_fifo(queue, ordered=ordered), {})
            self._queues[queue] = found
            return found

    def _may_make(self, queue: str) -> bool:
        return self._options.create_queues and queue not in self._not_ours

    def forget(self, queue: Queue) -> None:
        """Look a queue up again: the server said that it is gone."""
        with self._finding:
            if self._queues.get(queue.name) is queue:
                del self._queues[queue.name]

    def forget_name(self, name: str) -> None:
        """As ``forget``, by name."""
        self._queues.pop(name, None)

    def _wants_fifo(self, queue: str, *, ordered: bool) -> bool:
        if ordered or self._all_fifo or names.is_fifo(queue):
            return True
        # SQS moves dead letters of a FIFO queue to a FIFO queue only
        base = queue.removesuffix(DEAD)
        if base == queue:
            return False
        known = self._queues.get(base) or self._look(base)
        return known is not None and known.fifo

    def _on_server(self, queue: str) -> str:
        fifo = self._all_fifo or names.is_fifo(queue)
        plain = names.server_name(self._options.queue_prefix, queue, fifo=fifo)
        return plain if fifo else f"{plain} or {plain}{names.FIFO}"

    def _look(self, queue: str) -> Queue | None:
        """Ask the server for a queue, standard first."""
        owner = {"QueueOwnerAWSAccountId": self._target.account} if self._target.account else {}
        for fifo in (True,) if self._all_fifo or names.is_fifo(queue) else (False, True):
            name = names.server_name(self._options.queue_prefix, queue, fifo=fifo)
            try:
                url = self._client().call("get_queue_url", QueueName=name, **owner)["QueueUrl"]
            except QueueMissing:
                continue
            return Queue(queue, url, fifo=fifo)
        return None

    def _make(self, queue: str, fifo: bool, wanted: Mapping[str, Any]) -> Queue:
        """Make a queue. Its attributes: the longest retention, and what options say."""
        attributes = self._attributes(queue, fifo, wanted)
        name = names.server_name(self._options.queue_prefix, queue, fifo=fifo)
        url = self._client().call("create_queue", QueueName=name, Attributes=attributes)["QueueUrl"]
        return Queue(queue, url, fifo=fifo)

    def _attributes(self, queue: str, fifo: bool, wanted: Mapping[str, Any]) -> dict[str, str]:
        attributes = {"MessageRetentionPeriod": str(wanted.get("retention", self._options.retention))}
        if "visibility_timeout" in wanted:
            attributes["VisibilityTimeout"] = str(wanted["visibility_timeout"])
        if "kms_key" in wanted:
            attributes["KmsMasterKeyId"] = str(wanted["kms_key"])
        if fifo:
            attributes["FifoQueue"] = "true"
            if wanted.get("high_throughput"):
                attributes |= {"DeduplicationScope": "messageGroup", "FifoThroughputLimit": "perMessageGroupId"}
        receives = int(wanted.get("max_receives", self._options.max_receives))
        if receives and not queue.endswith(DEAD):
            dead = self._queues.get(queue + DEAD) or self._look(queue + DEAD)
            if dead is None:
                dead = self._queues[queue + DEAD] = self._make(queue + DEAD, fifo, {})
            if dead.fifo is not fifo:
                raise NotSupported(
                    f"queue {queue!r} and {queue + DEAD!r} must both be FIFO, or both standard, for SQS to move "
                    "messages there (max_receives); remove one of them or the option"
                )
            answer = self._client().call("get_queue_attributes", QueueUrl=dead.url, AttributeNames=["QueueArn"])
            policy = {"deadLetterTargetArn": answer["Attributes"]["QueueArn"], "maxReceiveCount": receives}
            attributes["RedrivePolicy"] = json.dumps(policy)
        return attributes

    def declare(self, queues: Sequence[QueueSpec], *, mode: DeclareMode = "create") -> Mapping[str, QueueFacts]:
        client = self._client()
        facts: dict[str, QueueFacts] = {}
        for spec in queues:
            _check_options(spec)
            ordered = self._all_fifo or spec.ordered or names.is_fifo(spec.name)
            names.server_name(self._options.queue_prefix, spec.name, fifo=ordered)
            if mode == "create":
                self._not_ours.discard(spec.name)
            else:
                self._not_ours.add(spec.name)
            if mode == "none":
                facts[spec.name] = self._facts(fifo=ordered, created=False)
                continue
            with self._finding:
                if mode == "verify":
                    self._queues.pop(spec.name, None)
                found = self._queues.get(spec.name) or self._look(spec.name)
                created = found is None
                if found is None:
                    if mode == "verify" or not self._options.create_queues:
                        raise QueueMissing(
                            f"{self._target.name} has no queue {spec.name!r} ({self._on_server(spec.name)}); create it "
                            "there, or declare it with mode 'create' once"
                        )
                    found = self._make(spec.name, self._wants_fifo(spec.name, ordered=spec.ordered), spec.options)
                elif spec.options:
                    self._compare(client, found, spec)
                if spec.ordered and not found.fifo:
                    raise NotSupported(
                        f"queue {spec.name!r} is declared ordered, but there is a standard queue of this name, which "
                        "SQS cannot change; delete it, or give the ordered queue another name"
                    )
                self._queues[spec.name] = found
            facts[spec.name] = self._facts(fifo=found.fifo, created=created)
        return facts

    def _facts(self, *, fifo: bool, created: bool) -> QueueFacts:
        return QueueFacts(created=created, capabilities=self._caps(fifo) if fifo is not self._all_fifo else None)

    def _compare(self, client: Client, found: Queue, spec: QueueSpec) -> None:
        """Refuse options that a queue which exists does not have: it may be somebody else's to change."""
        wanted = self._attributes(spec.name, found.fifo, spec.options)
        answer = client.call("get_queue_attributes", QueueUrl=found.url, AttributeNames=["All"])
        has = answer.get("Attributes", {})
        for option in spec.options:
            have: str | None
            want: str | None
            if option == "max_receives":
                policy = json.loads(has.get("RedrivePolicy") or "{}")
                have, want = str(policy.get("maxReceiveCount", "none")), str(spec.options[option])
            else:
                name = _SERVER_NAMES[option]
                have, want = has.get(name), wanted.get(name)
            if have is not None and want is not None and have != want:
                raise NotSupported(
                    f"queue {spec.name!r} exists with {option} {have}, not {want}; change it on the server, or correct "
                    "the option"
                )


def _check_options(spec: QueueSpec) -> None:
    """Refuse options that a queue cannot have. Raises: NotSupported."""
    for name, value in spec.options.items():
        if name in _OPTIONS:
            _, least, most = _OPTIONS[name]
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise NotSupported(
                    f"queue {spec.name!r}: option {name} is {value!r}; it must be a whole number from {least} to {most}"
                )
        elif name == "high_throughput":
            if not isinstance(value, bool):
                raise NotSupported(f"queue {spec.name!r}: option high_throughput is {value!r}; it is true or false")
        elif name == "kms_key":
            if not isinstance(value, str):
                raise NotSupported(f"queue {spec.name!r}: option kms_key is {value!r}; it is a key's id, ARN or alias")
        else:
            raise NotSupported(
                f"queue {spec.name!r} has the option {name!r}, which SQS queues do not have here; "
                f"there are {', '.join([*_OPTIONS, 'high_throughput', 'kms_key'])}"
            )
