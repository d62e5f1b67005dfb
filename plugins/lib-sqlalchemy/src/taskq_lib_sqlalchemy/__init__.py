"""What the SQL transport and the SQL result store share; nothing here is imported before a factory runs."""

from __future__ import annotations
