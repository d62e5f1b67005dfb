"""The rules ``every SECONDS`` and ``at EPOCH_SECONDS``, as arithmetic on nominal times.

The n-th firing of an interval is ``anchor + n * seconds``, computed afresh each time: adding the interval again and
again would add up the rounding, and counting from the moment of the last firing would add up the delays.
"""

from __future__ import annotations

import math

from msgspec import Struct

from taskq.errors import ConfigError, NotSupported


class Every(Struct, frozen=True):
    """Fires at ``anchor + seconds``, ``anchor + 2 * seconds``, and so on."""

    seconds: float

    def first(self, now: float) -> tuple[float, float]:
        """Return the anchor and the first due time of a rule that begins now."""
        return now, now + self.seconds

    def after(self, due: float, anchor: float) -> float | None:
        """Return the first nominal time after a nominal time."""
        return self._time(round((due - anchor) / self.seconds) + 1, anchor)

    def latest(self, due: float, anchor: float, now: float) -> float:
        """Return the last nominal time until now; ``due`` is one."""
        number = math.floor((now - anchor) / self.seconds)
        # The division may be off by one where now is a nominal time, or nearly so.
        if self._time(number + 1, anchor) <= now:
            number += 1
        elif self._time(number, anchor) > now:
            number -= 1
        return max(due, self._time(number, anchor))

    def _time(self, number: int, anchor: float) -> float:
        return anchor + number * self.seconds


class At(Struct, frozen=True):
    """Fires once."""

    moment: float

    def first(self, now: float) -> tuple[float, float]:
        """Return the anchor and the due time; a moment that has passed is due at once."""
        return self.moment, self.moment

    def after(self, due: float, anchor: float) -> float | None:
        """Return None: there is no further time."""
        return None

    def latest(self, due: float, anchor: float, now: float) -> float:
        """Return the only time."""
        return due


def parse(rule: str, schedule_id: str) -> Every | At:
    """Read a rule.

    Raises:
        NotSupported: the rule is of a kind that this scheduler does not keep.
        ConfigError: its number is none, or makes no sense.
    """
    word, _, rest = rule.strip().partition(" ")
    if word not in ("every", "at"):
        raise NotSupported(
            f"Schedule {schedule_id!r} has the rule {rule!r}, but the simple scheduler keeps only 'every SECONDS' and "
            f"'at EPOCH_SECONDS'. Use one of these, or install a scheduler that declares {word!r} among its rules and "
            "name it in the setting scheduler; `taskq plugins list --kind scheduler` shows those that are installed."
        )
    try:
        number = float(rest)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or (word == "every" and number <= 0):
        wanted = "a number of seconds above 0" if word == "every" else "a moment in seconds since the epoch"
        raise ConfigError(
            f"Schedule {schedule_id!r} has the rule {rule!r}; after {word!r} comes {wanted}, as '{word} 60'."
        )
    return Every(number) if word == "every" else At(number)
