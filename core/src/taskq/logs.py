"""Logging of taskq's own processes. Only the logger ``taskq`` is touched, never the root logger.

Every record that is made while a task runs, by taskq or by the task itself, knows the task: see ``TaskContext``. No
argument, result or URL with a password is ever logged.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TYPE_CHECKING, Any, ClassVar

from taskq.context import request_var

if TYPE_CHECKING:
    from taskq.app import TaskQ

FIELDS = ("task", "task_id", "queue", "attempt", "worker", "root_id", "parent_id", "slots", "wanted_slots")
"""Names under which a record carries what it is about; absent where it is about no task."""
TASK_LOGGER = "taskq.task"


def get_task_logger(name: str) -> logging.Logger:
    """Return a logger for a task module, below ``taskq.task``: its records go where the worker's go, with the task.

    ``logging.getLogger(__name__)`` works as ever, too; where it goes is the application's own matter.
    """
    return logging.getLogger(f"{TASK_LOGGER}.{name}")


def task_fields(header: Any, *, queue: str, worker: str) -> dict[str, Any]:
    """Return the fields of a record about one task, for ``extra=``; empty without a header."""
    if header is None:
        return {"queue": queue, "worker": worker}
    root, parent = header.get("ro"), header.get("pa")
    fields: dict[str, Any] = {
        "task": header.task, "task_id": header.id, "queue": queue, "attempt": header.attempt, "worker": worker,
    }  # fmt: skip
    if root:
        fields["root_id"] = root
    if parent:
        fields["parent_id"] = parent
    return fields


class TaskContext(logging.Filter):
    """Gives each record the fields of the task in whose context it is made; put it on a handler of your own, too."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields; every record passes."""
        request = request_var.get()
        if request is not None and not hasattr(record, "task_id"):
            record.__dict__.update(task_fields(request.header, queue=request.queue, worker=request.worker))
        return True


class TextFormatter(logging.Formatter):
    """``12:00:00.000 INFO     worker ready …``, coloured on a terminal; a task's own lines name the task."""

    colours: ClassVar[dict[int, str]] = {
        logging.WARNING: "\x1b[33m",
        logging.ERROR: "\x1b[31m",
        logging.CRITICAL: "\x1b[1;31m",
    }

    def __init__(self, *, colour: bool) -> None:
        super().__init__("%(asctime)s.%(msecs)03d %(levelname)-8s %(message)s", "%H:%M:%S")
        self._colour = colour

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the name that logging calls
        """Return the line without a traceback."""
        text = super().formatMessage(record)
        if record.name.startswith(TASK_LOGGER) and (task_id := getattr(record, "task_id", None)):
            text += f"  [{getattr(record, 'task', '?')} {task_id}]"
        return text

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with a traceback where there is one."""
        text = super().format(record)
        start = self.colours.get(record.levelno) if self._colour else None
        return f"{start}{text}\x1b[0m" if start else text


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, process, the task's fields, a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object as text."""
        entry: dict[str, Any] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
        }
        entry.update((name, value) for name in FIELDS if (value := getattr(record, name, None)) is not None)
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def set_up_logging(app: TaskQ) -> None:
    """Log to standard error at the level of the settings, unless a plugin sets logging up."""
    app.logs = True
    settings = app.settings.worker
    if app.plugins.logging_setup(app, settings.log_level):
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(TaskContext())
    handler.setFormatter(JsonFormatter() if settings.log_json else TextFormatter(colour=sys.stderr.isatty()))
    logger = logging.getLogger("taskq")
    logger.handlers[:] = [handler]
    logger.setLevel(settings.log_level)
    logger.propagate = False
