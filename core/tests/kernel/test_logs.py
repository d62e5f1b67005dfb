"""Log records know the task they are about, and never hijack anybody's logging."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from taskq import get_task_logger
from taskq.logs import JsonFormatter, TaskContext, TextFormatter, set_up_logging


class Lines(logging.Handler):
    """Keeps formatted lines."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.addFilter(TaskContext())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def lines() -> Any:
    handler = Lines(JsonFormatter())
    logger = logging.getLogger("taskq")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel("INFO")
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_a_line_of_a_task_names_the_task(rig: Any, backend: str, pool: str, lines: Lines) -> None:
    app = rig.app(backend)
    log = get_task_logger("shop.orders")

    @app.task(name="inner")
    def inner() -> None:
        log.warning("inside %s", "it")

    @app.task(name="outer")
    def outer() -> None:
        inner.delay()

    with rig.work(app, pool) as worker:
        result = outer.delay()
        result.get(timeout=10)
        rig.wait_empty(app)
    (entry,) = [e for line in lines.lines if (e := json.loads(line))["message"] == "inside it"]
    assert (entry["logger"], entry["level"]) == ("taskq.task.shop.orders", "WARNING")
    assert (entry["task"], entry["queue"], entry["attempt"], entry["worker"]) == ("inner", "default", 0, worker.name)
    assert entry["parent_id"] == entry["root_id"] == result.id
    assert entry["task_id"] not in ("", result.id)


def test_a_failure_s_line_has_the_fields_and_no_argument(rig: Any, pool: str, lines: Lines) -> None:
    app = rig.app("memory")

    @app.task(name="fails")
    def fails(password: str) -> None:
        raise ValueError("no luck")

    with rig.work(app, pool):
        result = fails.delay("s3cr3t")
        with pytest.raises(ValueError, match="no luck"):
            result.get(timeout=10)
        rig.wait_empty(app)
    (entry,) = [e for line in lines.lines if (e := json.loads(line))["level"] == "ERROR"]
    assert (entry["task"], entry["task_id"], entry["queue"]) == ("fails", result.id, "default")
    assert "s3cr3t" not in "".join(lines.lines)


def test_text_lines_of_tasks_end_with_the_task() -> None:
    record = logging.LogRecord("taskq.task.shop", logging.INFO, "", 0, "hello", (), None)
    record.task, record.task_id = "ship", "0123"
    assert TextFormatter(colour=False).format(record).endswith("INFO     hello  [ship 0123]")
    record.name = "taskq.worker"
    assert TextFormatter(colour=False).format(record).endswith("INFO     hello")
    record.levelno = logging.ERROR
    assert TextFormatter(colour=True).format(record).startswith("\x1b[31m")


def test_the_root_logger_is_left_alone(rig: Any, app: Any) -> None:
    root, ours = logging.getLogger(), logging.getLogger("taskq")
    before = (root.level, list(root.handlers))
    kept = (ours.level, list(ours.handlers), ours.propagate)
    try:
        set_up_logging(app)
        assert (root.level, root.handlers) == before
        assert app.logs
    finally:
        ours.level, ours.handlers[:], ours.propagate = kept[0], kept[1], kept[2]
