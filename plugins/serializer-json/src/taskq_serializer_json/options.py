"""Options of the json serializer."""

from __future__ import annotations

from dataclasses import dataclass

from taskq.spi import option


@dataclass(frozen=True)
class JsonOptions:
    """What the json serializer can be told."""

    classes: str = option(
        "loaded",
        choices=("loaded", "none"),
        help="which dataclasses and enums named by a message are rebuilt: those of loaded modules, or none",
    )
