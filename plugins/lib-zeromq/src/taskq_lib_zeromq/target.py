"""Where a hub is and how it is connected to: from URLs and options to a ``Target``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from taskq.errors import NotSupported, TaskQError
from taskq.spi import Url
from taskq_lib_zeromq.protocol import DEFAULT_PORT


@dataclass(frozen=True)
class Errors:
    """The error types of the side (transport or store) that a link serves."""

    failed: type[TaskQError]
    """The hub could not be reached; nothing was done."""
    lost: type[TaskQError]
    """The connection broke, or no answer came, and what was asked may have been done."""
    refused: type[TaskQError]
    """The hub refuses the keys; repeating is pointless."""
    mismatch: type[TaskQError]
    """The hub speaks another version."""
    full: type[TaskQError]
    """The hub has no room, or its disk; nothing was done."""
    wrong: type[TaskQError]
    """The hub cannot do what it was asked."""


@dataclass(frozen=True)
class Curve:
    """Keys of an encrypted connection, in the 40 characters of Z85."""

    server: str
    public: str
    secret: str = field(repr=False)


@dataclass(frozen=True)
class Target:
    """Where and how to connect; ``addresses`` are tried in order."""

    addresses: tuple[str, ...]
    name: str
    connect_timeout: float
    timeout: float
    heartbeat: float
    curve: Curve | None
    errors: Errors
    first: list[int] = field(default_factory=lambda: [0])
    """Index of the address that answered last. Shared by all links."""
    revive: Callable[[], bool] | None = None
    """Called where no hub answers: whether it has started one."""


class LinkOptions(Protocol):
    """The options that transport and store have in common."""

    @property
    def connect_timeout(self) -> float: ...
    @property
    def timeout(self) -> float: ...
    @property
    def heartbeat(self) -> float: ...
    @property
    def curve_server_key(self) -> str: ...
    @property
    def curve_public_key(self) -> str: ...
    @property
    def curve_secret_key(self) -> str: ...


def address_of(url: Url) -> str:
    """Return the ZeroMQ address of a URL: TCP, or with a path and no host a Unix socket.

    Raises:
        NotSupported: both, or a user or password, which a hub does not know.
    """
    if url.username or url.password:
        raise NotSupported(
            f"{url} has a user or password; a hub knows clients by curve_public_key and curve_secret_key"
        )
    path = url.path.rstrip("/")
    if not path:
        host = url.host or "127.0.0.1"
        return f"tcp://{f'[{host}]' if ':' in host else host}:{url.port or DEFAULT_PORT}"
    if url.host or url.port:
        raise NotSupported(f"{url} has a path; write zeromq://HOST:PORT, or zeromq:///PATH for a Unix socket")
    return f"ipc://{path}"


def make_target(urls: tuple[Url, ...], options: LinkOptions, errors: Errors) -> Target:
    """Return the target of a configuration.

    Raises:
        NotSupported: a URL that cannot be a hub's, or keys that are none.
    """
    return Target(
        addresses=tuple(address_of(u) for u in urls),
        name="; ".join(str(u.without_query()) for u in urls),
        connect_timeout=options.connect_timeout,
        timeout=options.timeout,
        heartbeat=options.heartbeat,
        curve=_curve(options),
        errors=errors,
    )


def _curve(options: LinkOptions) -> Curve | None:
    server, public, secret = options.curve_server_key, options.curve_public_key, options.curve_secret_key
    if not server and not public and not secret:
        return None
    if not server or bool(public) != bool(secret):
        raise NotSupported(
            "an encrypted connection needs curve_server_key, the hub's public key, and either both of "
            "curve_public_key and curve_secret_key or neither"
        )
    if not public:
        import zmq  # of no use without encryption

        made = zmq.curve_keypair()
        public, secret = made[0].decode(), made[1].decode()
    for name, key in (("curve_server_key", server), ("curve_public_key", public), ("curve_secret_key", secret)):
        if len(key) != 40 or not key.isascii():
            raise NotSupported(f"{name} is not a CURVE key of 40 characters; `taskq zeromq keys` makes a pair")
    return Curve(server, public, secret)
