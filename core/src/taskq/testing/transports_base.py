"""What an author of a transport may set for the suite, and the comparison of capabilities."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import pytest

from taskq.spi import (
    DeliveryCount,
    Duplicates,
    Durability,
    Fencing,
    HandBack,
    Support,
    SupportsBroadcast,
    SupportsPeek,
    SupportsPurge,
    SupportsStats,
    SupportsTransactionalSend,
    TransportSpec,
    Url,
    WakeUp,
)
from taskq.testing.base import Suite, select
from taskq.testing.transport_rig import TransportRig

# Weakest first; what is not listed here (lease scope, ordering) has no weaker and stronger.
_SCALES: tuple[tuple[Any, ...], ...] = (
    (Durability.PROCESS, Durability.SERVER, Durability.DISK, Durability.REPLICATED),
    (Fencing.NONE, Fencing.LOCAL, Fencing.EXACT),
    (Duplicates.POSSIBLE, Duplicates.AFTER_LOST_LEASE),
    (DeliveryCount.NONE, DeliveryCount.COUNTS_RELEASES, DeliveryCount.EXACT),
    (HandBack.NO, HandBack.COSTLY, HandBack.NATIVE),
    (WakeUp.POLL, WakeUp.PUSH),
    (Support.NO, Support.EMULATED, Support.NATIVE),
)
_HIGHER_IS_WIDER = {"max_hold_s", "max_delay_s", "priority_levels", "max_payload_bytes"}
ABILITIES: tuple[tuple[str, Any], ...] = (
    ("stats", SupportsStats),
    ("purge", SupportsPurge),
    ("peek", SupportsPeek),
    ("broadcast", SupportsBroadcast),
    ("transactional_send", SupportsTransactionalSend),
)


def wider(opened: Any, declared: Any) -> list[str]:
    """Return the fields in which one set of capabilities promises more than another."""
    found = []
    for name in opened.__struct_fields__:
        now, said = getattr(opened, name), getattr(declared, name)
        more = False
        if now == said or name == "notes":
            continue
        if isinstance(now, bool):
            more = now
        elif isinstance(now, str):
            more = any(now in s and s.index(now) > s.index(said) for s in _SCALES)
        elif isinstance(now, tuple):
            more = not set(now) <= set(said)
        elif name in _HIGHER_IS_WIDER:
            more = said is not None and (now is None or now > said)
        if more:
            found.append(f"{name}: the spec says {said!r}, after open it is {now!r}")
    return found


class TransportBase(Suite):
    """What an author may set, and the fixture that all transport tests use."""

    scheme: ClassVar[str]
    """URL scheme of the transport, as its entry point is named."""
    lease_s: ClassVar[float | None] = None
    """Lease of the tests; None for the shortest that the transport takes, at least a second."""
    slack_s: ClassVar[float] = 5.0
    """How long after the end of a lease a message may stay away."""
    random_s: ClassVar[float] = 4.0
    """How long random sequences may go on; ten minutes with ``TASKQ_SOAK=1``."""
    shrink: ClassVar[bool] = True
    """Whether a random sequence that failed is made as short as possible, which takes its time."""
    fault_options: ClassVar[dict[str, Any]] = {}
    """Options for the tests with a broken network: short timeouts, so that they are quick."""
    give_up_s: ClassVar[float] = 15.0
    """How long a call may take, with ``fault_options``, when the server does not answer at all."""

    @pytest.fixture
    def url(self) -> str:
        """Return the URL of an empty broker: the one fixture that an author must write."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture named url that returns a broker's URL")

    def load_spec(self) -> TransportSpec:
        spec: TransportSpec = select("transport", self.scheme)
        return spec

    # Hooks that only some transports need.

    def server_keys(self, url: str) -> set[str] | None:
        """Return the names of all that the transport keeps on the server (keys, tables, queues), None where unknown."""
        return None

    def store_url(self, url: str) -> str:
        """Return the URL of the result store that shares the broker's server, for fused commits."""
        return url

    def database(self, url: str) -> AbstractContextManager[Any]:
        """Return a connection of the caller's own, with ``commit()`` and ``rollback()``, for ``send_in``."""
        raise NotImplementedError("transactional_send is declared: override database(url) so that the kit can test it")

    def proxy_target(self, url: Url) -> tuple[str, int]:
        """Return the host and port to put the fault proxy in front of."""
        if not url.host or not url.port:
            pytest.fail("the url fixture has no host and port to put a proxy in front of: override proxy_target")
        return url.host, url.port

    def through_proxy(self, url: Url, port: int) -> Url:
        """Return the URL with the server replaced by the proxy on this machine's ``port``."""
        return Url(url.scheme, url.username, url.password, "127.0.0.1", port, url.path, url.query)

    @pytest.fixture
    def rig(self, url: str) -> Iterator[TransportRig]:
        rig = TransportRig(self, url)
        yield rig
        rig.close()
