"""Where the servers are and how to get in: URLs, TLS, credentials, and the errors of the side that asks."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Protocol

from taskq.errors import NotSupported, TaskQError
from taskq.spi import Url

PORT, TLS_PORT = 5672, 5671


@dataclass(frozen=True)
class Errors:
    """The error types of the side (transport or store) that a connection serves."""

    failed: type[TaskQError]
    """Nothing was done: the server could not be reached, or cannot work just now."""
    lost: type[TaskQError]
    """The connection broke, or no answer came."""
    refused: type[TaskQError]
    """The server refuses user, password, virtual host or rights; repeating is pointless."""
    full: type[TaskQError]
    """The server takes no messages, for want of memory or disk; nothing was done."""


class ServerOptions(Protocol):
    """The options that transport and store have in common."""

    @property
    def connect_timeout(self) -> float: ...
    @property
    def timeout(self) -> float: ...
    @property
    def heartbeat(self) -> int: ...
    @property
    def tls_ca_file(self) -> str: ...
    @property
    def tls_cert_file(self) -> str: ...
    @property
    def tls_key_file(self) -> str: ...
    @property
    def tls_verify(self) -> bool: ...


@dataclass(frozen=True)
class Target:
    """Where and how to connect; ``urls`` are tried in order, beginning with the one that answered last."""

    urls: tuple[Url, ...]
    connect_timeout: float
    timeout: float
    heartbeat: int
    errors: Errors
    tls: ssl.SSLContext | None = None
    product: str = "taskq"
    first: list[int] = field(default_factory=lambda: [0])

    @property
    def name(self) -> str:
        """The servers without secrets, for messages."""
        return "; ".join(str(u.without_query()) for u in self.urls)


def make_target(
    urls: tuple[Url, ...], options: ServerOptions, errors: Errors, *, product: str, heartbeat: int = 0
) -> Target:
    """Return the target that options describe; ``heartbeat`` is in seconds, for where the options leave it open.

    Raises:
        NotSupported: an option that does not go with the URL's scheme, or a TLS file that cannot be read.
    """
    files = (options.tls_ca_file, options.tls_cert_file, options.tls_key_file)
    tls: ssl.SSLContext | None = None
    if urls[0].scheme == "amqps":
        try:
            tls = ssl.create_default_context(cafile=options.tls_ca_file or None)
            if options.tls_cert_file:
                tls.load_cert_chain(options.tls_cert_file, options.tls_key_file or None)
        except (OSError, ssl.SSLError) as error:
            raise NotSupported(f"the TLS files of {urls[0].without_query()} cannot be used: {error}") from error
        if not options.tls_verify:
            tls.check_hostname = False
            tls.verify_mode = ssl.CERT_NONE
    elif any(files) or not options.tls_verify:
        raise NotSupported(f"{urls[0].scheme}:// is not encrypted, the tls_ options would do nothing; write amqps://")
    beat = options.heartbeat or heartbeat
    return Target(urls, options.connect_timeout, options.timeout, beat, errors, tls, product)


def address(url: Url) -> tuple[str, int]:
    """Return host and port."""
    return url.host or "localhost", url.port or (TLS_PORT if url.scheme == "amqps" else PORT)


def virtual_host(url: Url) -> str:
    """Return the virtual host: ``//`` and no path at all are the server's default one, which is called ``/``."""
    return url.path[1:] or "/"


def credentials(url: Url) -> tuple[str, str]:
    """Return user and password; a URL without a password means the server's own default."""
    return url.username or "guest", "guest" if url.password is None else url.password
