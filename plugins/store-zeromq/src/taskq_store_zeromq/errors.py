"""The errors of a connection that serves a result store."""

from __future__ import annotations

from taskq.errors import StoreError, StoreUnavailable


class AnswerLost(StoreUnavailable):
    """The connection broke before the answer came."""


class StoreRefused(StoreError):
    """The hub refuses the keys."""

    retryable = False


class StoreFull(StoreError):
    """The hub has no room for more results."""
