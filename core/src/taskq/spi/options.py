"""Options of a plugin: one frozen dataclass whose fields carry type, default, help and secrecy.

The kernel fills it from the configuration (``[tool.taskq.transports.NAME]``), the environment and a URL's query, checks
every value against the field's type and refuses unknown names with a suggestion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

_MISSING: Any = object()


def option(default: Any = _MISSING, *, help: str, secret: bool = False,
           choices: Sequence[Any] | None = None, minimum: float | None = None, unit: str = "") -> Any:  # fmt: skip
    """Declare one option as a dataclass field.

    Args:
        default: value when nothing sets it; required where missing.
        help: one sentence, printed by ``plugins show``.
        secret: redacted in every listing, log and repr.
        choices: the only values accepted.
        minimum: the least number accepted.
        unit: "s", "bytes", … for listings.
    """
    import dataclasses  # only plugins with options pay for it

    metadata = {"help": help, "secret": secret, "choices": choices, "minimum": minimum, "unit": unit}
    if isinstance(default, list | dict | set):
        copied = default
        return dataclasses.field(default_factory=lambda: type(copied)(copied), metadata=metadata, repr=not secret)
    if default is _MISSING:
        return dataclasses.field(metadata=metadata, repr=not secret)
    return dataclasses.field(default=default, metadata=metadata, repr=not secret)


class NoOptions(Struct, frozen=True):
    """For a plugin without options: it has no fields."""
