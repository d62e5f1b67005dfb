"""Logging of taskq's own processes. Only the logger ``taskq`` is touched, never the root logger."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from taskq.app import TaskQ


class _Text(logging.Formatter):
    """``12:00:00 INFO  worker ready …``, coloured on a terminal."""

    colours: ClassVar[dict[int, str]] = {
        logging.WARNING: "\x1b[33m",
        logging.ERROR: "\x1b[31m",
        logging.CRITICAL: "\x1b[1;31m",
    }

    def __init__(self, *, colour: bool) -> None:
        super().__init__("%(asctime)s.%(msecs)03d %(levelname)-8s %(message)s", "%H:%M:%S")
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        start = self.colours.get(record.levelno) if self._colour else None
        return f"{start}{text}\x1b[0m" if start else text


class _Json(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def set_up_logging(app: TaskQ) -> None:
    """Log to standard error at the level of the settings, unless a plugin sets logging up."""
    settings = app.settings.worker
    if app.plugins.logging_setup(app, settings.log_level):
        return
    terminal = sys.stderr.isatty()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if settings.log_json else _Text(colour=terminal))
    logger = logging.getLogger("taskq")
    logger.handlers[:] = [handler]
    logger.setLevel(settings.log_level)
    logger.propagate = False
