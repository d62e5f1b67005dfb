"""The queues on the server: their names, their kinds, finding them, making them."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from taskq.errors import AuthenticationFailed, NotSupported, QueueMissing, TransportError
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
        self._declared: dict[str, QueueSpec] = {}
        """What is known of queues that may have to be found, or made again, later."""
        self._finding = threading.RLock()

    def find(self, queue: str, *, create: bool | None = None, ordered: bool = False) -> Queue:
        """Return a queue on the server, by its name alone, or made now where that is allowed.

        Raises:
            QueueMissing: it is not there, and is not to be made.
            NotSupported: its name cannot be one there, or it is not ordered as declared.
        """
        found = self._queues.get(queue)
        if found is not None:
            return found
        spec = self._declared.get(queue) or QueueSpec(name=queue)
        ordered = ordered or spec.ordered
        with self._finding:
            found = self._queues.get(queue) or self._look(queue, ordered=ordered)
            if found is None:
                if not (self._may_make(queue) if create is None else create):
                    raise QueueMissing(
                        f"{self._target.name} has no queue {queue!r} ({self._on_server(queue)}); create it there, or "
                        "let taskq do it (create_queues = true, declare = 'create')"
                    )
                found = self._make(queue, self._wants_fifo(queue, ordered=ordered), spec.options)
            return self._keep(found, ordered=ordered)

    def _keep(self, found: Queue, *, ordered: bool) -> Queue:
        if ordered and not found.fifo:
            raise NotSupported(
                f"queue {found.name!r} is declared ordered, but there is a standard queue of this name, which SQS "
                "cannot change; delete it, or give the ordered queue another name"
            )
        self._queues[found.name] = found
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
        declared = self._declared.get(base)
        if declared is not None and declared.ordered:
            return True
        known = self._queues.get(base) or self._look(base)
        return known is not None and known.fifo

    def _on_server(self, queue: str) -> str:
        fifo = self._all_fifo or names.is_fifo(queue)
        plain = names.server_name(self._options.queue_prefix, queue, fifo=fifo)
        return plain if fifo else f"{plain} or {plain}{names.FIFO}"

    def _look(self, queue: str, *, ordered: bool = False) -> Queue | None:
        """Ask the server for a queue of the kind that is wanted, then of the other, on which there may be no rights."""
        kinds = (True,) if self._all_fifo or names.is_fifo(queue) else (ordered, not ordered)
        denied: AuthenticationFailed | None = None
        for fifo in kinds:
            try:
                return Queue(queue, self._url(queue, fifo, self._target.account), fifo=fifo)
            except QueueMissing:
                continue
            except AuthenticationFailed as error:
                if not Client.is_known(error):
                    raise
                if fifo is kinds[0]:
                    denied = error
        if denied is not None:
            raise denied
        return None

    def _url(self, queue: str, fifo: bool, account: str) -> str:
        owner = {"QueueOwnerAWSAccountId": account} if account else {}
        name = names.server_name(self._options.queue_prefix, queue, fifo=fifo)
        return self._client().url("get_queue_url", QueueName=name, **owner)

    def _make(self, queue: str, fifo: bool, wanted: Mapping[str, Any]) -> Queue:
        """Make a queue. Its attributes: the longest retention, and what options say."""
        attributes = self._attributes(queue, fifo, wanted)
        with contextlib.suppress(QueueMissing):
            if self._target.account:  # one of the same name elsewhere must be neither used nor deleted
                self._check_account(queue, self._url(queue, fifo, ""))
        name = names.server_name(self._options.queue_prefix, queue, fifo=fifo)
        url = self._client().url("create_queue", QueueName=name, Attributes=attributes)
        try:
            self._check_account(queue, url)
        except NotSupported:
            with contextlib.suppress(TransportError):
                self._client().call("delete_queue", QueueUrl=url)
            raise
        return Queue(queue, url, fifo=fifo)

    def _check_account(self, queue: str, url: str) -> None:
        """Refuse a queue of another account than was named: SQS makes queues in that of the credentials."""
        account = url.rpartition("/")[0].rpartition("/")[2]
        if self._target.account and account.isdigit() and account != self._target.account:
            raise NotSupported(
                f"queue {queue!r} is missing in account {self._target.account}, and can only be made in that of the "
                f"credentials, {account}: let the owner make it, or correct the account"
            )

    def _attributes(self, queue: str, fifo: bool, wanted: Mapping[str, Any]) -> dict[str, str]:
        attributes = {"MessageRetentionPeriod": str(self._options.retention), **_own_attributes(wanted)}
        if fifo:
            attributes["FifoQueue"] = "true"
        receives = int(wanted.get("max_receives", self._options.max_receives))
        if receives and not queue.endswith(DEAD):
            dead = self._queues.get(queue + DEAD) or self._look(queue + DEAD, ordered=fifo)
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
            if not ordered and spec.options.get("high_throughput"):
                raise NotSupported(f"queue {spec.name!r}: option high_throughput is for ordered queues")
            names.server_name(self._options.queue_prefix, spec.name, fifo=ordered)
            if spec.ordered or spec.options or spec.name not in self._declared:
                self._declared[spec.name] = spec
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
                found = self._queues.get(spec.name) or self._look(spec.name, ordered=spec.ordered)
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
                self._keep(found, ordered=spec.ordered)
            facts[spec.name] = self._facts(fifo=found.fifo, created=created)
        return facts

    def _facts(self, *, fifo: bool, created: bool) -> QueueFacts:
        return QueueFacts(created=created, capabilities=self._caps(fifo) if fifo is not self._all_fifo else None)

    def _compare(self, client: Client, found: Queue, spec: QueueSpec) -> None:
        """Refuse options that a queue which exists does not have: it may be somebody else's to change."""
        answer = client.call("get_queue_attributes", QueueUrl=found.url, AttributeNames=["All"])
        has = answer.get("Attributes", {})
        policy = json.loads(has.get("RedrivePolicy") or "{}")
        for option, value in spec.options.items():
            have: str | None
            want: str | None
            if option == "max_receives":
                have, want = str(policy.get("maxReceiveCount", "none")), str(value)
            else:
                name = _SERVER_NAMES[option]
                have, want = has.get(name), _own_attributes({option: value}).get(name)
            if have is None and self._target.is_amazon:
                have = "none"  # emulators leave out what they do not know
            if have is not None and want is not None and have != want:
                raise NotSupported(
                    f"queue {spec.name!r} exists with {option} {have}, not {want}; change it on the server, or correct "
                    "the option"
                )


def _own_attributes(options: Mapping[str, Any]) -> dict[str, str]:
    """Return what a queue's own options are on the server, besides those that need another queue."""
    plain = ("retention", "visibility_timeout", "kms_key")
    attributes = {_SERVER_NAMES[name]: str(options[name]) for name in plain if name in options}
    if options.get("high_throughput"):
        attributes |= {"DeduplicationScope": "messageGroup", "FifoThroughputLimit": "perMessageGroupId"}
    return attributes


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
