"""What a running task may know about itself."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from taskq.errors import NotInTask

if TYPE_CHECKING:
    from taskq.envelope import Header


class Request(Struct, gc=False):
    """The call that a task is running for; ``self.request`` in a bound task, or ``current_request()``.

    ``attempt`` counts retries (0 at first), ``deliveries`` how often the broker handed the message out.
    """

    header: Any
    args: Any
    kwargs: Any
    queue: str
    deliveries: int
    task: Any
    worker: str = ""

    @property
    def _header(self) -> Header:
        header: Header = self.header
        return header

    @property
    def id(self) -> str:
        """The task id."""
        return self._header.id

    @property
    def name(self) -> str:
        """The task's name."""
        return self._header.task

    @property
    def attempt(self) -> int:
        """Retries before this run."""
        return self._header.attempt

    retries = attempt

    @property
    def epoch(self) -> int:
        """How often the message was replayed from a dead-letter queue."""
        return int(self._header.get("ep", 0))

    @property
    def headers(self) -> dict[str, Any]:
        """The user's headers."""
        return dict(self._header.get("h") or {})

    @property
    def priority(self) -> int:
        """0–9, higher first."""
        return int(self._header.get("p", 5))

    @property
    def enqueued_at(self) -> float:
        """When it was sent, in epoch seconds of the sender's clock."""
        return self._header.enqueued_at

    @property
    def eta(self) -> float | None:
        """The earliest start asked for, in epoch seconds."""
        value = self._header.get("nb")
        return None if value is None else float(value)

    @property
    def expires(self) -> float | None:
        """The latest start asked for, in epoch seconds."""
        value = self._header.get("ex")
        return None if value is None else float(value)

    @property
    def parent_id(self) -> str | None:
        """The id of the task that sent this one."""
        value = self._header.get("pa")
        return None if value is None else str(value)

    @property
    def root_id(self) -> str:
        """The id of the first task of the line that led here."""
        return str(self._header.get("ro") or self._header.id)

    @property
    def group(self) -> str | None:
        """The ordering group."""
        value = self._header.get("g")
        return None if value is None else str(value)


request_var: ContextVar[Request | None] = ContextVar("taskq_request", default=None)


def current_request() -> Request:
    """Return the request of the task that runs in this context.

    Raises:
        NotInTask: no task is running here.
    """
    request = request_var.get()
    if request is None:
        raise NotInTask(
            "no task is running in this context; current_request() and self.request work inside a task only"
        )
    return request


def current_task() -> Any:
    """Return the task that runs in this context.

    Raises:
        NotInTask: no task is running here.
    """
    return current_request().task
