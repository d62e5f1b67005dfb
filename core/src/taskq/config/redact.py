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
    r"passw|passphrase|secret|token|credential|dsn|auth|signature|private|apikey|(^|[_.-])(key|pw|pin)s?$",
    re.IGNORECASE,
)
_WITH_USER = re.compile(r"^([a-zA-Z][\w+.\-]*:(?://)?)?.*@(.*)$", re.S)
_QUERY = re.compile(r"([?&;][^=&;\s]*)=[^&;\s]*")


def redact_url(text: str) -> str:
    """Return URL text, well-formed or not, without user, password and query values."""
    return _QUERY.sub(rf"\1={HIDDEN}", _WITH_USER.sub(rf"\1{HIDDEN}@\2", text))


def redact(value: Any, name: str = "", *, secret: bool = False) -> Any:
    """Return a copy of a value that may be printed; ``name`` is the key that it stands under."""
    if value is None or isinstance(value, bool):
        return value
    if secret or _SECRET_NAME.search(name):
        return HIDDEN
    if isinstance(value, Url):
        return redact_url(str(value)) if value.host is None and "@" in value.path else str(value)
    if isinstance(value, str):
        return ";".join(redact_url(part) for part in value.split(";")) if "@" in value else value
    if isinstance(value, Mapping):
        return {redact(k): redact(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(item, name) for item in value]
    return value
