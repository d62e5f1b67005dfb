"""Options of the asyncio pool; asking for them imports no driver."""

from __future__ import annotations

from dataclasses import dataclass

from taskq.spi import option


@dataclass(frozen=True)
class AsyncioOptions:
    """Options of ``-P asyncio``."""

    loops: int = option(
        1, help="event loops, each on a thread of its own, which share the slots: one blocked loop stops its own share",
        minimum=1,
    )  # fmt: skip
    loop: str = option(
        "auto", help="the event loop: uvloop where it is installed (auto), or one of the two for certain",
        choices=("auto", "asyncio", "uvloop"),
    )  # fmt: skip
    block_warning_s: float = option(
        1.0, help="time after which a task that keeps the event loop from running others is warned of; 0: never",
        minimum=0, unit="s",
    )  # fmt: skip
