"""The options of a call: which there are, and what their values may be."""

from __future__ import annotations

import datetime as dt
import difflib
from collections.abc import Callable, Mapping
from typing import Any

from taskq.errors import NotSupported, TaskQError

CALL_OPTIONS = (
    "countdown", "eta", "queue", "priority", "expires", "task_id", "headers", "group", "ignore_result", "max_retries",
    "publish_timeout", "transaction", "routing_key",
)  # fmt: skip


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


_CHECKS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "task_id": (_is_name, "a string that is not empty"),
    "queue": (_is_name, "a string that is not empty"),
    "routing_key": (_is_name, "a string that is not empty"),
    "headers": (_is_mapping, "a mapping with strings as keys"),
    "max_retries": (_is_count, "an integer of at least 0"),
    "publish_timeout": (_is_time, "a number of seconds above 0"),
}


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that nobody knows, and values that would only fail at the worker."""
    for key, value in options.items():
        if key not in CALL_OPTIONS:
            raise _unknown_option(key)
        check = _CHECKS.get(key)
        if check is not None and value is not None and not check[0](value):
            raise NotSupported(f"{key} is {check[1]}, not {value!r}")


def delay_of(options: Mapping[str, Any], now: float) -> float:
    countdown, eta = options.get("countdown"), options.get("eta")
    if countdown is not None and eta is not None:
        raise NotSupported("give countdown or eta, not both")
    if countdown is not None:
        if isinstance(countdown, bool) or not isinstance(countdown, int | float) or not 0 <= countdown < 1e10:
            raise NotSupported(f"countdown is a number of seconds of at least 0, not {countdown!r}")
        return float(countdown)
    return 0.0 if eta is None else max(0.0, moment_of(eta, now, "eta") - now)


def moment_of(value: Any, now: float, label: str) -> float:
    """Return epoch seconds for an aware datetime, or (``expires`` only) for seconds from now."""
    if isinstance(value, dt.datetime):
        if value.tzinfo is None:
            raise NotSupported(
                f"{label} is a naive datetime, whose zone is unknown; pass an aware one: datetime.now(timezone.utc)"
            )
        return value.timestamp()
    if label == "expires" and isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return now + value
    raise NotSupported(f"{label} must be an aware datetime{' or seconds' if label == 'expires' else ''}, not {value!r}")


def check_priority(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 9:
        raise NotSupported(f"priority is an integer from 0 to 9 (higher first), not {value!r}")
    return value


def _unknown_option(key: str) -> TaskQError:
    near = difflib.get_close_matches(key, CALL_OPTIONS, 1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(CALL_OPTIONS)}"
    return NotSupported(f"unknown option {key!r} of apply_async{hint}")
