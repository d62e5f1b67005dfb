"""Results, and coordination, in a SQL database."""

from __future__ import annotations
