"""Stub."""

from __future__ import annotations

from typing import Any


class Journal:
    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError
