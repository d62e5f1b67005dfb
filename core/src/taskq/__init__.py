"""taskq: a distributed task queue whose every capability is a plugin.

    from taskq import TaskQ

    app = TaskQ("hello")

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

Names are imported when they are first used, so that ``import taskq`` costs little wherever it is written.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskq.app import TaskQ
    from taskq.canvas import Signature
    from taskq.context import Request, current_request, current_task
    from taskq.errors import Reject, Retry, SendManyError, TaskFailure, TaskQError, TaskTimeout
    from taskq.events import Event
    from taskq.logs import get_task_logger
    from taskq.middleware import Middleware
    from taskq.result import AsyncResult, aas_completed, as_completed, gather
    from taskq.shared import SharedTask, current_app, shared_task
    from taskq.task import Task
    from taskq.worker import Worker

__version__ = "0.1.0"

_HOMES = {
    "SharedTask": "shared", "TaskQ": "app", "current_app": "shared", "shared_task": "shared",
    "Signature": "canvas",
    "Request": "context", "current_request": "context", "current_task": "context",
    "Reject": "errors", "Retry": "errors", "SendManyError": "errors", "TaskFailure": "errors", "TaskQError": "errors",
    "TaskTimeout": "errors",
    "Event": "events",
    "get_task_logger": "logs",
    "Middleware": "middleware",
    "AsyncResult": "result", "aas_completed": "result", "as_completed": "result", "gather": "result",
    "Task": "task",
    "Worker": "worker",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'taskq' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"taskq.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


__all__ = [
    "AsyncResult",
    "Event",
    "Middleware",
    "Reject",
    "Request",
    "Retry",
    "SendManyError",
    "SharedTask",
    "Signature",
    "Task",
    "TaskFailure",
    "TaskQ",
    "TaskQError",
    "TaskTimeout",
    "Worker",
    "aas_completed",
    "as_completed",
    "current_app",
    "current_request",
    "current_task",
    "gather",
    "get_task_logger",
    "shared_task",
]
