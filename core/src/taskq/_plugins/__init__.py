"""Find, choose, load, validate and call plugins: the only place of the kernel that knows stevedore and pluggy.

Importing this package imports neither of them, nor click, nor ``importlib.metadata``, nor any plugin.
"""

from __future__ import annotations

from taskq._plugins.manager import PluginManager
from taskq._plugins.records import KINDS, Explanation, Plan, PluginRecord, State

__all__ = ["KINDS", "Explanation", "Plan", "PluginManager", "PluginRecord", "State"]
