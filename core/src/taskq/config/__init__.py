"""Configuration: one typed schema, four sources, and where each value came from.

Code < ``taskq.toml`` or ``[tool.taskq]`` in ``pyproject.toml`` < ``TASKQ_*`` environment < command line; below code
stand the defaults that contributions offer (``taskq_config_defaults``), below those the schema's own.
"""

from __future__ import annotations

from taskq.config.schema import (
    PLUGIN_SECTIONS,
    PluginSettings,
    QueueSettings,
    RouteSettings,
    ScheduleSettings,
    Settings,
    WorkerSettings,
)

__all__ = [
    "PLUGIN_SECTIONS", "PluginSettings", "QueueSettings", "RouteSettings", "ScheduleSettings", "Settings",
    "WorkerSettings",
]  # fmt: skip
