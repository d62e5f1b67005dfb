"""The delays between attempts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from taskq.retry import RetryPolicy


@given(
    attempt=st.integers(0, 10_000),
    backoff=st.floats(0, 1e6),
    longest=st.floats(0, 1e9),
    jitter=st.booleans(),
)
def test_within_bounds_whatever_the_attempt(attempt: int, backoff: float, longest: float, jitter: bool) -> None:
    policy = RetryPolicy(backoff=backoff, backoff_max=longest, jitter=jitter)
    full = min(longest, backoff * 2.0 ** min(attempt, 64))
    delay = policy.delay(attempt)
    assert full / 2 <= delay <= full if jitter else delay == full


def test_never_wins_over_retry_on() -> None:
    policy = RetryPolicy(retry_on=(OSError,), never=(FileNotFoundError,))
    assert policy.wants(ConnectionResetError())
    assert not policy.wants(FileNotFoundError())
    assert not policy.wants(ValueError())
