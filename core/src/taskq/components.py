"""The components of one application in one process: chosen by the settings, made by plugins, opened at first need.

Nothing that was opened survives a fork: a child starts with a fresh ``Components``.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from taskq._plugins.hints import SAME_SERVER_STORES
from taskq.codec import Codec, CodecSettings
from taskq.config import redact_url
from taskq.message import QueueSpec
from taskq.routing import DEAD_SUFFIX
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
        self._transports: dict[str, Transport] = {}
        self._opening: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)
        """A lock per broker: one that is away must not keep others from being opened."""
        self._linked: Callable[[str], Transport] | None = None
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

    def make_transport(self, broker: str = "") -> Transport:
        """Return a new transport, not opened, to a broker by its name in the settings; "" is the one of ``broker``.

        Raises:
            PluginError: no plugin for the URL's scheme. ConfigError: an option of it.
        """
        app = self._app
        app.merge_defaults()
        urls = self.urls_of(broker)
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

    def urls_of(self, broker: str) -> tuple[Url, ...]:
        """Return the URLs of a broker by its name in the settings."""
        settings = self._app.settings
        return settings.brokers[broker].url if broker else settings.broker

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
        """The open transport to the application's own broker, the one of the setting ``broker``; see ``broker``."""
        return self._transports.get("") or self.broker("")

    def broker(self, name: str) -> Transport:
        """Return the open transport to a broker by its name in the settings.

        Raises:
            PluginError, ConfigError: it cannot be made. TransportError: the server cannot be used.
        """
        found = self._transports.get(name)
        if found is None:
            with self._opening[name]:
                found = self._transports.get(name)
                if found is None:
                    found = self.make_transport(name) if self._linked is None else self._linked(name)
                    found.open()
                    self._transports[name] = found
        return found

    def broker_of(self, queue: str) -> str:
        """Return the name of the broker that a queue is on; its dead letters are there as well."""
        configured = self._app.settings.queues.get(queue.removesuffix(DEAD_SUFFIX))
        return "" if configured is None else configured.broker or ""

    def transport_of(self, queue: str) -> Transport:
        """Return the open transport that carries a queue. Raises as ``broker``."""
        return self.broker(self.broker_of(queue))

    def label_of(self, queue: str) -> str:
        """Return the broker that a queue is on, for messages: its name, and its URL without secrets."""
        return self.label(self.broker_of(queue))

    def label(self, broker: str) -> str:
        """Return a broker for messages."""
        text = "; ".join(redact_url(url.without_query()) for url in self.urls_of(broker))
        return f"{broker} ({text})" if broker else text

    def by_broker(self, queues: Sequence[str]) -> dict[str, list[str]]:
        """Return the queues of each broker that has some, in order."""
        found: dict[str, list[str]] = {}
        for queue in queues:
            found.setdefault(self.broker_of(queue), []).append(queue)
        return found

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

    def use(
        self, broker: Callable[[str], Transport], store: ResultStore | None, *, store_label: str, reply_address: str
    ) -> None:
        """Take an open store, and what makes transports by their names, instead of what the settings describe."""
        with self._lock:
            self._linked, self._store, self._store_known = broker, store, True
            self.store_label, self._reply = store_label, reply_address

    def declare(self, queues: Sequence[QueueSpec]) -> None:
        """Declare queues as the settings say, and remember where one can do other things than its broker.

        Raises:
            QueueMissing, NotSupported, TransportError: as ``Transport.declare``.
        """
        specs = {spec.name: spec for spec in queues}
        for broker, names in self.by_broker(list(specs)).items():
            own = [specs[name] for name in names]
            found = self.broker(broker).declare(own, mode=self._app.settings.declare)
            for name in names:
                fact = found.get(name)
                self.facts[name] = None if fact is None else fact.capabilities

    def of_queue(self, queue: str) -> Capabilities:
        """Return what can be done on a queue: its own capabilities where it differs from the broker's others.

        Only queues that are configured can differ; those are declared for the answer.
        """
        if queue not in self.facts and queue in self._app.settings.queues:
            self.declare([self._app.queue_spec(queue)])
        return self.facts.get(queue) or self.transport_of(queue).capabilities

    @property
    def in_use(self) -> bool:
        """Whether a connection was opened."""
        return bool(self._transports) or self._store is not None

    def connected(self, broker: str = "") -> bool:
        """Whether a broker, by its name in the settings, and the result store are open."""
        return broker in self._transports and self._store_known

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
            waiter, store, executor = self._waiter, self._store, self._executor
            transports, self._transports = list(self._transports.values()), {}
            self._waiter = self._store = self._executor = None
            self._store_known = False
        if waiter is not None:
            waiter.close()
        if executor is not None:
            executor.shutdown(wait=False)
        for transport in transports:
            transport.close()
        if store is not None:
            store.close()
