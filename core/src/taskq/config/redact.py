"""What may be shown of a value.

Declared secrets (``option(secret=True)``) are always hidden. Where nothing is declared (free-form tables, a plugin that
is not loaded) the name of the key and the shape of the value decide, and doubt hides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from taskq.config.values import fields_of
from taskq.spi.url import Url

HIDDEN = "***"
_SUSPECT = r"(?i)passw|passphr|secret|token|credential|dsn|auth|signature|private|apikey|(^|[_.-])(key|pw|pin|salt)s?$"


def redact_url(url: Url) -> str:
    """Return a URL without its password and its query; what may be a misplaced password hides more."""
    if any("@" in part for part in (url.path, url.host or "", *(text for pair in url.query for text in pair))):
        return f"{url.scheme}:{HIDDEN}"
    return str(url.without_query()) + (f"?{HIDDEN}" if url.query else "")


def redact(value: Any, name: str = "", *, secret: bool = False) -> Any:
    """Return a copy of a value, as plain data, that may be printed; ``name`` is the key that it stands under."""
    if value is None or isinstance(value, bool):
        return value
    if secret or re.search(_SUSPECT, name):
        return HIDDEN
    if isinstance(value, Url):
        return redact_url(value)
    if isinstance(value, str):
        return HIDDEN if "@" in value else str(value)  # it may be a URL, and nobody knows where its password ends
    if isinstance(value, Struct):
        fields = ((field, getattr(value, field.name)) for field in fields_of(type(value)).values())
        return {f.name: redact(v, f.name, secret=f.about.secret) for f, v in fields if v != f.default}
    if isinstance(value, Mapping):
        return {redact(str(key)): redact(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        if value and all(isinstance(item, Url) for item in value):
            return ";".join(redact_url(item) for item in value)
        return [redact(item, name) for item in value]
    return value if isinstance(value, int | float) else redact(str(value))
