"""The components of one application in one process: chosen by the settings, made by plugins, opened at first need.

Nothing that was opened survives a fork: a child starts with a fresh ``Components``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from taskq._plugins.hints import SAME_SERVER_STORES
from taskq.codec import Codec, CodecSettings
from taskq.config import redact_url
from taskq.message import QueueSpec
from taskq.spi.capabilities import Capabilities
from taskq.spi.specs import ComponentConfig, StoreConfig, TransportConfig
from taskq.spi.store import ResultStore
from taskq.spi.transport import Transport
from taskq.spi.url import Url
from taskq.waiter import ResultWaiter

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from taskq.app import TaskQ

R = TypeVar("R")
_CLIENT_THREADS = 4


class Components:
    """Makes and keeps what an application sends and stores through; safe on any thread."""

    def __init__(self, app: TaskQ) -> None:
        self._app = app
        self._lock = threading.RLock()
        self._transport: Transport | None = None
        self._store: ResultStore | None = None
        self._store_known = False
        self._waiter: ResultWaiter | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._reply: str | None = None
        self.facts: dict[str, Capabilities | None] = {}
        """Queues that this process has declared, with what they can do where that differs from the broker's others."""
        self.store_label = ""
        """The result store as messages name it, "" where it follows from the broker."""

    # -------------------------------------------------------------------------------------------------- making

    def plain(self, kind: Any, name: str) -> Any:
        """Return a new serializer, compressor, scheduler or autoscaler by name.

        Raises:
            PluginError: not installed, broken or blocked. ConfigError: an option of it.
        """
        app = self._app
        app.merge_defaults()
        spec = app.plugins.select(kind, name)
        options = app.config.plugin_options(kind, name, spec.options)
        return app.plugins.create(kind, name, ComponentConfig(options=options, app=app.name, clock=app.clock))

    def make_codec(self) -> Codec:
        """Return the codec that the settings describe."""
        self._app.merge_defaults()
        s = self._app.settings
        settings = CodecSettings(
            serializer=s.serializer,
            result_serializer=s.result_serializer or s.serializer,
            accept=tuple(s.accept),
            compressor=s.compressor,
            compress_above=s.compress_above,
            max_decompressed_bytes=s.max_decompressed_bytes,
            max_payload_bytes=s.max_payload_bytes,
        )
        return Codec(settings, lambda name: self.plain("serializer", name), lambda name: self.plain("compressor", name))

    def make_transport(self) -> Transport:
        """Return a new transport, not opened.

        Raises:
            PluginError: no plugin for the URL's scheme. ConfigError: an option of it.
        """
        app = self._app
        app.merge_defaults()
        urls = app.settings.broker
        scheme = urls[0].scheme
        spec = app.plugins.select("transport", scheme)
        options: Any = app.config.plugin_options(
            "transport", spec.name, spec.options, query=urls[0].query, aliases=(scheme,)
        )
        config = TransportConfig(
            urls=tuple(u.without_query() for u in urls),
            options=options,
            app=app.name,
            lease_s=app.settings.lease,
            clock=app.clock,
        )
        transport: Transport = app.plugins.create("transport", scheme, config)
        return transport

    def store_urls(self) -> tuple[Url, ...]:
        """Return where results are kept, empty where they are off."""
        settings = self._app.settings
        if settings.result_store is not None:
            return settings.result_store
        return settings.broker if settings.broker[0].scheme in SAME_SERVER_STORES else ()

    def make_store(self) -> ResultStore | None:
        """Return a new result store, not opened; None where results are off. Raises as ``make_transport``."""
        app = self._app
        app.merge_defaults()
        urls = self.store_urls()
        if not urls:
            return None
        scheme, query = urls[0].scheme, urls[0].query
        spec = app.plugins.select("result_store", scheme)
        derived = app.settings.result_store is None
        if derived:  # the broker's URL: options of the transport alone are not meant for the store
            known = getattr(spec.options, "__dataclass_fields__", ())
            query = tuple(pair for pair in query if pair[0] in known)
        self.store_label = "" if derived else redact_url(urls[0].without_query())
        options: Any = app.config.plugin_options(
            "result_store", spec.name, spec.options, query=query, aliases=(scheme,)
        )
        urls = tuple(u.without_query() for u in urls)
        config = StoreConfig(urls=urls, options=options, app=app.name, clock=app.clock)
        store: ResultStore = app.plugins.create("result_store", scheme, config)
        return store

    # ------------------------------------------------------------------------------------------------- opening

    @property
    def transport(self) -> Transport:
        """The open transport.

        Raises:
            PluginError, ConfigError: it cannot be made. TransportError: the server cannot be used.
        """
        if self._transport is None:
            with self._lock:
                if self._transport is None:
                    transport = self.make_transport()
                    transport.open()
                    self._transport = transport
        return self._transport

    @property
    def store(self) -> ResultStore | None:
        """The open result store, None where results are off.

        Raises:
            PluginError, ConfigError: it cannot be made. StoreError: the server cannot be used.
        """
        if not self._store_known:
            with self._lock:
                if not self._store_known:
                    store = self.make_store()
                    if store is not None:
                        store.open()
                    self._store = store
                    self._store_known = True
        return self._store

    @property
    def waiter(self) -> ResultWaiter:
        """The one wait on the result store that all callers share; there must be a store."""
        if self._waiter is None:
            store = self.store
            assert store is not None
            with self._lock:
                if self._waiter is None:
                    self._waiter = ResultWaiter(store)
        return self._waiter

    def reply_address(self) -> str:
        """Return the address that results for this process are pushed to, "" where the store does not push."""
        if self._reply is None:
            store = self.store
            self._reply = (store.reply_address() if store is not None else None) or ""
        return self._reply

    def use(self, transport: Transport, store: ResultStore | None, *, store_label: str, reply_address: str) -> None:
        """Take components that are open already, instead of those that the settings describe."""
        with self._lock:
            self._transport, self._store, self._store_known = transport, store, True
            self.store_label, self._reply = store_label, reply_address

    def declare(self, queues: Sequence[QueueSpec]) -> None:
        """Declare queues as the settings say, and remember where one can do other things than its broker.

        Raises:
            QueueMissing, NotSupported, TransportError: as ``Transport.declare``.
        """
        found = self.transport.declare(queues, mode=self._app.settings.declare)
        for spec in queues:
            fact = found.get(spec.name)
            self.facts[spec.name] = None if fact is None else fact.capabilities

    def of_queue(self, queue: str) -> Capabilities:
        """Return what can be done on a queue: its own capabilities where it differs from the broker's others.

        Only queues that are configured can differ; those are declared for the answer.
        """
        if queue not in self.facts and queue in self._app.settings.queues:
            self.declare([self._app.queue_spec(queue)])
        return self.facts.get(queue) or self.transport.capabilities

    @property
    def in_use(self) -> bool:
        """Whether a connection was opened."""
        return self._transport is not None or self._store is not None

    @property
    def connected(self) -> bool:
        """Whether nothing is left to be opened."""
        return self._transport is not None and self._store_known

    async def arun(self, function: Callable[[], R]) -> R:
        """Run a blocking function on one of a few threads."""
        import asyncio

        if self._executor is None:
            from concurrent.futures import ThreadPoolExecutor

            with self._lock:
                if self._executor is None:
                    self._executor = ThreadPoolExecutor(_CLIENT_THREADS, "taskq-client")
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    def close(self) -> None:
        """Close whatever is open."""
        with self._lock:
            waiter, transport, store, executor = self._waiter, self._transport, self._store, self._executor
            self._waiter = self._transport = self._store = self._executor = None
            self._store_known = False
        if waiter is not None:
            waiter.close()
        if executor is not None:
            executor.shutdown(wait=False)
        if transport is not None:
            transport.close()
        if store is not None:
            store.close()
