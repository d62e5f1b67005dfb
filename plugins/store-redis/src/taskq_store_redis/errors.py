"""Errors of the Redis result store."""

from __future__ import annotations

from taskq.errors import StoreError, StoreUnavailable
from taskq_lib_redis.connection import Errors


class StoreRefused(StoreError):
    """The server refuses the credentials or a command; repeating is pointless."""

    retryable = False


class AnswerLost(StoreUnavailable):
    """The connection broke after something was sent; whether it was done is not known."""


class StoreFull(StoreUnavailable):
    """The server has no memory left; nothing was stored."""


ERRORS = Errors(StoreUnavailable, AnswerLost, StoreRefused, StoreFull)
