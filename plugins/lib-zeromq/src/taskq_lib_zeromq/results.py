"""What the transport needs to know of the result store of the same hub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from taskq.message import Record


@runtime_checkable
class HubResults(Protocol):
    """The result store in the same hub, as the transport sees it."""

    @property
    def results_place(self) -> tuple[str, ...]:
        """The hub's addresses: equal where a fused commit is possible."""
        ...

    def check_records(self, records: Sequence[Record]) -> None:
        """Refuse what is too large before anything is sent. Raises: ResultTooLarge."""
        ...
