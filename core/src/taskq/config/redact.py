"""What may be shown of a value.

Declared secrets (``option(secret=True)``) are always hidden. Where nothing is declared (free-form tables, a plugin that
is not loaded) the name of the key and the shape of the value decide, and doubt hides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from taskq.spi.url import Url

HIDDEN = "***"
_SECRET_NAME = re.compile(
    r"passw|passphr|secret|token|credential|dsn|auth|signature|private|apikey|(^|[_.-])(key|pw|pin)s?$",
    re.IGNORECASE,
)


def redact_url(url: Url) -> str:
    """Return a URL without its password and the values of its query; what may be a misplaced password hides more."""
    if "@" in url.path or "@" in (url.host or "") or any("@" in key for key, _ in url.query):
        return f"{url.scheme}:{HIDDEN}"
    return str(url.without_query()) + "?&"[: bool(url.query)] + "&".join(f"{key}={HIDDEN}" for key, _ in url.query)


def redact(value: Any, name: str = "", *, secret: bool = False) -> Any:
    """Return a copy of a value, as plain data, that may be printed; ``name`` is the key that it stands under."""
    if value is None or isinstance(value, bool):
        return value
    if secret or _SECRET_NAME.search(name):
        return HIDDEN
    if isinstance(value, Url):
        return redact_url(value)
    if isinstance(value, str):
        return HIDDEN if "@" in value else value  # it may be a URL with a password, and nobody knows where that ends
    if isinstance(value, Mapping):
        return {redact(str(k)): redact(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(item, name) for item in value]
    if isinstance(value, int | float):
        return value
    return repr(value) if hasattr(value, "__struct_fields__") else str(value)
