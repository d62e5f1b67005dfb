"""Configuration: one typed schema, four sources, and where each value came from.

Code < ``taskq.toml`` or ``[tool.taskq]`` in ``pyproject.toml`` < ``TASKQ_*`` environment < command line; below code
stand the defaults that contributions offer (``taskq_config_defaults``), below those the schema's own.
"""

from __future__ import annotations

from taskq.config.load import ConfigWarning, LoadedConfig, Row, load
from taskq.config.redact import HIDDEN, redact, redact_url
from taskq.config.schema import (
    PLUGIN_SECTIONS,
    PluginSettings,
    QueueSettings,
    RouteSettings,
    ScheduleSettings,
    Settings,
    WorkerSettings,
)
from taskq.config.sources import Given, Origin

__all__ = [
    "HIDDEN", "PLUGIN_SECTIONS", "ConfigWarning", "Given", "LoadedConfig", "Origin", "PluginSettings", "QueueSettings",
    "RouteSettings", "Row", "ScheduleSettings", "Settings", "WorkerSettings", "load", "redact", "redact_url",
]  # fmt: skip
