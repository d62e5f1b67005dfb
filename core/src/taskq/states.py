"""Task states.

QUEUED, SCHEDULED and STARTED are recorded by option only; UNKNOWN is the honest answer without a record.
"""

from __future__ import annotations

from typing import Final

QUEUED: Final = "QUEUED"
SCHEDULED: Final = "SCHEDULED"
STARTED: Final = "STARTED"
RETRY: Final = "RETRY"
SUCCESS: Final = "SUCCESS"
FAILURE: Final = "FAILURE"
EXPIRED: Final = "EXPIRED"
REVOKED: Final = "REVOKED"
DEAD: Final = "DEAD"
UNKNOWN: Final = "UNKNOWN"

TERMINAL: Final = frozenset({SUCCESS, FAILURE, EXPIRED, REVOKED, DEAD})
