"""The ZeroMQ result store: records in the hub, pushed to the process that waits for them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from taskq.errors import StoreError, StoreSchemaMismatch, StoreUnavailable
from taskq.message import Record
from taskq.spi import Durable, StoreCapabilities, StoreConfig
from taskq_lib_client.bell import Bell
from taskq_lib_client.results import PushedResults
from taskq_lib_zeromq import protocol
from taskq_lib_zeromq.embed import embedded
from taskq_lib_zeromq.link import Link, Links
from taskq_lib_zeromq.target import Errors, make_target
from taskq_lib_zeromq.wire import Broken
from taskq_store_zeromq.coordination import HubCoordination
from taskq_store_zeromq.errors import AnswerLost, StoreFull, StoreRefused
from taskq_store_zeromq.options import ZeroMQStoreOptions, capabilities

ERRORS = Errors(StoreUnavailable, AnswerLost, StoreRefused, StoreSchemaMismatch, StoreFull, StoreError)

_ids = msgspec.msgpack.Decoder(list[str]).decode
_records = msgspec.msgpack.Decoder(list[Record | None]).decode


class ZeroMQStore(PushedResults[Link], HubCoordination):
    """Results in one hub, or its fail-over hubs in order."""

    def __init__(self, config: StoreConfig) -> None:
        super().__init__()
        self.options: ZeroMQStoreOptions = config.options
        self.address = uuid.uuid4().hex
        target = make_target(config.urls, self.options, ERRORS)
        self._embedded = embedded(target, self.options) if self.options.hub == "embed" else None
        self._target = target if self._embedded is None else self._embedded.reviving(target)
        self._capabilities = capabilities(self.options)
        self._links = Links(self._target)

    @property
    def capabilities(self) -> StoreCapabilities:
        return self._capabilities

    @property
    def results_place(self) -> tuple[str, ...]:
        return self._target.addresses

    def _connect(self) -> None:
        if self._embedded is not None:
            self._embedded.start()
        welcome = self._links.open()
        self.max_record_bytes = welcome.max_record
        self._capabilities = msgspec.structs.replace(
            self._capabilities,
            keeps=Durable.EVICTABLE if welcome.evicts else Durable.DURABLE,
            max_record_bytes=min(welcome.max_record, 1 << 30),
        )

    def _disconnect(self) -> None:
        self._links.close()
        if self._embedded is not None:
            self._embedded.release()

    def ask(self, make: Callable[[int], Any]) -> msgspec.Raw:
        """Carry out a request. Raises: StoreError."""
        self._check()
        return self._links.request(make)

    # -------------------------------------------------------------------------------------------------- records

    def _store(self, records: Sequence[Record]) -> list[str]:
        return _ids(self.ask(lambda n: protocol.Put(n, list(records))))

    def _load(self, ids: Sequence[str]) -> list[Record | None]:
        return _records(self.ask(lambda n: protocol.Get(n, list(ids))))

    def _forget(self, ids: Sequence[str]) -> None:
        self.ask(lambda n: protocol.Delete(n, list(ids)))

    # -------------------------------------------------------------------------------------------------- waiting

    def _subscribe(self, channel: Link | None, bell: Bell) -> Link:
        channel = channel or Link(self._target, bell)
        channel.request(lambda n: protocol.Watch(n, self.address))
        return channel

    def _hear(self, channel: Link, pause: float, bell: Bell) -> Iterator[Record]:
        try:
            if not channel.poll(pause):
                return
            while (frame := channel.receive()) is not None:
                if type(frame) is protocol.Push:
                    yield from frame.records
                elif type(frame) is protocol.Reset:
                    raise Broken("the hub does not know this connection any more")
        except Broken as error:
            raise StoreUnavailable(f"results are not pushed just now: {error}") from error
