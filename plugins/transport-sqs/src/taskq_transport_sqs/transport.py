"""The SQS transport: opening, sending, counting. Queues and messages have modules of their own."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

from taskq.errors import AuthenticationFailed, ConnectionFailed, QueueMissing, TransportClosed
from taskq.message import Outbound, QueueFacts, QueueSpec, QueueStats, SendFailure
from taskq.spi import Capabilities, DeclareMode, Durability, TransportConfig
from taskq_transport_sqs.client import Ambiguous, Client, NoSqs, Target, refused
from taskq_transport_sqs.consumer import SqsConsumer
from taskq_transport_sqs.hands import Hands
from taskq_transport_sqs.options import SqsOptions, for_queue
from taskq_transport_sqs.queues import Queues
from taskq_transport_sqs.sending import send

_READY, _HELD, _DELAYED = (
    "ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed",
)  # fmt: skip


class SqsTransport:
    """The queues of one account in one region, or those of an emulator."""

    def __init__(self, config: TransportConfig) -> None:
        self.options: SqsOptions = config.options
        self.target = Target(config.urls, self.options)
        self._capabilities = self._caps(fifo=self.options.kind == "fifo")
        self.lease_s = max(1, math.ceil(config.lease_s or self._capabilities.lease_default_s))
        """Whole seconds, as the server has them."""
        self._pid = os.getpid()
        self._client: Client | None = None
        self._hands: Hands | None = None
        self.queues = Queues(self.target, lambda: self.client, lambda fifo: self._caps(fifo=fifo))
        self._consumers: set[SqsConsumer] = set()

    def _caps(self, *, fifo: bool) -> Capabilities:
        # An emulator is one process: what it keeps beyond its own end is not ours to promise.
        durability = Durability.REPLICATED if self.target.is_amazon else Durability.SERVER
        return for_queue(fifo=fifo, durability=durability)

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def client(self) -> Client:
        """The open client. Raises: TransportClosed."""
        if self._pid != os.getpid():
            raise TransportClosed(
                f"this transport belongs to process {self._pid}; open a new one in process {os.getpid()}"
            )
        client = self._client
        if client is None:
            raise TransportClosed("the SQS transport is not open; call open() first")
        return client

    @property
    def owned(self) -> bool:
        """Whether this process opened it, not its parent."""
        return self._pid == os.getpid()

    @property
    def hands(self) -> Hands:
        """Threads for calls side by side."""
        assert self._hands is not None
        return self._hands

    def open(self) -> None:
        if not self.owned:
            raise TransportClosed(f"this transport belongs to process {self._pid}; make a new one after a fork")
        if self._client is not None:
            return
        client = Client(self.target)
        try:
            client.call("list_queues", QueueNamePrefix=f"{self.options.queue_prefix}taskq-is-there", MaxResults=1)
        except AuthenticationFailed as error:
            # Who is known but may not list queues may still use them; what is allowed shows there.
            if not client.is_known(error):
                client.close()
                raise
        except NoSqs as error:
            client.close()
            raise refused(str(error)) from error
        except Ambiguous as error:
            client.close()
            raise ConnectionFailed(str(error)) from error
        except ConnectionFailed as error:
            client.close()
            raise client.explain(error) from error
        except BaseException:
            client.close()
            raise
        self._client = client
        self._hands = Hands(self.options.connections, "taskq-sqs-calls")

    def close(self, *, timeout: float = 5.0) -> None:
        if self._client is None or not self.owned:
            return
        for consumer in list(self._consumers):
            consumer.close()
        client, self._client = self._client, None
        if self._hands is not None:
            self._hands.close(timeout)
        if client is not None:
            client.close()

    def declare(self, queues: Sequence[QueueSpec], *, mode: DeclareMode = "create") -> Mapping[str, QueueFacts]:
        self.client  # noqa: B018  # raises where it is closed
        return self.queues.declare(queues, mode=mode)

    def send(self, batch: Sequence[Outbound]) -> Sequence[SendFailure]:
        return send(self.client, self.hands, self.queues, batch)

    def consumer(self) -> SqsConsumer:
        self.client  # noqa: B018  # raises where it is closed
        consumer = SqsConsumer(self)
        self._consumers.add(consumer)
        return consumer

    def forget(self, consumer: SqsConsumer) -> None:
        """Take a closed consumer off the list of those to close."""
        self._consumers.discard(consumer)

    def stats(self, queues: Sequence[str]) -> Mapping[str, QueueStats]:
        client = self.client
        counts: dict[str, QueueStats] = {}
        for name in queues:
            try:
                url = self.queues.find(name, create=False).url
                has = client.call("get_queue_attributes", QueueUrl=url, AttributeNames=[_READY, _HELD, _DELAYED])
            except QueueMissing:
                self.queues.forget_name(name)
                continue
            found = has.get("Attributes", {})
            counts[name] = QueueStats(*(int(found[key]) if key in found else None for key in (_READY, _HELD, _DELAYED)))
        return counts
