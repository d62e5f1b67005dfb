"""The conformance kit, in every way the transport can be set up."""

from __future__ import annotations

import sqlite3
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import pytest

from taskq.testing import PackagingSuite, TransportSuite


class OnAFile(TransportSuite):
    scheme = "sqlite"

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/queue.db"

    def database(self, url: str) -> AbstractContextManager[Any]:
        return closing(sqlite3.connect(url.removeprefix("sqlite://"), timeout=5))


class TestConformance(OnAFile):
    options = {"synchronous": "NORMAL"}  # noqa: RUF012  spares the disk; nothing else depends on it


class TestByPolling(OnAFile):
    options = {"wake_up": "poll", "poll_interval": 0.02, "synchronous": "NORMAL"}  # noqa: RUF012


class TestPackaging(PackagingSuite):
    kind = "transport"
    name = "sqlite"
