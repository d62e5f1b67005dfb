"""The conformance kit, in every way the transport can be set up."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from typing import Any

import pytest

from taskq.testing import PackagingSuite, TransportSuite


class OnAFile(TransportSuite):
    scheme = "sqlite"

    @pytest.fixture
    def url(self) -> Iterator[str]:
        with tempfile.TemporaryDirectory() as folder:  # tmp_path may be too long for a socket
            yield f"sqlite:///{folder}/queue.db"

    def database(self, url: str) -> AbstractContextManager[Any]:
        return closing(sqlite3.connect(url.removeprefix("sqlite://"), timeout=5))


class TestConformance(OnAFile):
    options = {"synchronous": "NORMAL"}  # noqa: RUF012  spares the disk; nothing else depends on it


class TestByPolling(OnAFile):
    options = {"wake_up": "poll", "poll_interval": 0.02, "synchronous": "NORMAL"}  # noqa: RUF012


class TestPackaging(PackagingSuite):
    kind = "transport"
    name = "sqlite"
