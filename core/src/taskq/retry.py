"""Retry policy: which failures are tried again, how often, and after how long."""

from __future__ import annotations

import random

from msgspec import Struct


class RetryPolicy(Struct, frozen=True, kw_only=True):
    """When a task that raised is run again.

    ``retry_on`` are exception classes; ``never`` wins over it. ``backoff`` is the first delay in seconds, doubled per
    attempt up to ``backoff_max``; with ``jitter`` the delay is drawn evenly from the upper half of that.
    """

    max_retries: int = 3
    retry_on: tuple[type[BaseException], ...] = ()
    never: tuple[type[BaseException], ...] = ()
    backoff: float = 1.0
    backoff_max: float = 600.0
    jitter: bool = True

    def wants(self, error: BaseException) -> bool:
        """Return whether this failure is of a kind to be retried."""
        return isinstance(error, self.retry_on) and not isinstance(error, self.never)

    def delay(self, attempt: int) -> float:
        """Return seconds until the run after ``attempt`` (0 for the first run)."""
        # 2.0 ** 1024 overflows; far above any backoff_max long before that
        full = min(self.backoff_max, self.backoff * 2.0 ** min(attempt, 64))
        return full * random.uniform(0.5, 1.0) if self.jitter else full  # noqa: S311  spreading load, no secret
