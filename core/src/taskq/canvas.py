"""Signatures: a call as a value, to keep, to pass on, to send many of at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from msgspec import Struct

if TYPE_CHECKING:
    from taskq.app import TaskQ
    from taskq.result import AsyncResult

R = TypeVar("R")


class Signature(Struct, Generic[R], frozen=True, kw_only=True, dict=True):
    """A frozen call: task name, arguments and the options of ``apply_async``.

    Further arguments given when it is sent go in front of its own, further keyword arguments win over its own; an
    immutable signature (``.si``) takes no further arguments.
    """

    app: Any
    task: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}
    options: Mapping[str, Any] = {}
    immutable: bool = False

    def __repr__(self) -> str:
        arguments = [repr(a) for a in self.args] + [f"{k}={v!r}" for k, v in self.kwargs.items()]
        return f"{self.task}({', '.join(arguments)})"

    def set(self, **options: Any) -> Signature[R]:
        """Return a copy with options of ``apply_async`` added or replaced."""
        return self._copy(options={**self.options, **options})

    def clone(
        self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Signature[R]:
        """Return a copy with further arguments (in front) and options; an immutable one keeps its arguments."""
        if self.immutable:
            return self.set(**options)
        merged = {**self.kwargs, **(kwargs or {})}
        return self._copy(args=tuple(args) + self.args, kwargs=merged, options={**self.options, **options})

    def _copy(self, **changes: Any) -> Signature[R]:
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        return type(self)(**{**fields, **changes})

    def delay(self, *args: Any, **kwargs: Any) -> AsyncResult[R]:
        """Send it, with further arguments."""
        return self.apply_async(args, kwargs)

    def apply_async(
        self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[R]:
        """Send it, with further arguments and options; see ``Task.apply_async``."""
        call = self.clone(args, kwargs, **options)
        app: TaskQ = self.app
        return app.send_task(call.task, call.args, call.kwargs, **call.options)

    async def adelay(self, *args: Any, **kwargs: Any) -> AsyncResult[R]:
        """Send it without blocking the event loop."""
        return await self.aapply_async(args, kwargs)

    async def aapply_async(
        self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[R]:
        """Send it without blocking the event loop, with further arguments and options."""
        call = self.clone(args, kwargs, **options)
        app: TaskQ = self.app
        return await app.asend_task(call.task, call.args, call.kwargs, **call.options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function here and now, with further arguments."""
        call = self.clone(args, kwargs)
        app: TaskQ = self.app
        return app.find_task(call.task)(*call.args, **call.kwargs)
