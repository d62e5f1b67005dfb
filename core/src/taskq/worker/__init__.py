"""The worker: takes messages, has their tasks run, and ends them without losing any."""

from __future__ import annotations

from taskq.worker.worker import Worker

__all__ = ["Worker"]
