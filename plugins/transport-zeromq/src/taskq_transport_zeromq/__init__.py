"""Queues in a small hub, reached by ZeroMQ."""

from __future__ import annotations
