"""The conformance kit of stores and of coordination."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest

from taskq.testing import CoordinationSuite, PackagingSuite, StoreSuite


class OnAFile:
    scheme = "sqlite"

    @pytest.fixture
    def url(self) -> Iterator[str]:
        with tempfile.TemporaryDirectory() as folder:  # tmp_path may be too long for a socket
            yield f"sqlite:///{folder}/results.db"


class TestConformance(OnAFile, StoreSuite):
    options = {"synchronous": "NORMAL"}  # noqa: RUF012  spares the disk; nothing else depends on it


class TestByPolling(OnAFile, StoreSuite):
    options = {"wake_up": "poll", "poll_interval": 0.02, "synchronous": "NORMAL"}  # noqa: RUF012


class TestCoordination(OnAFile, CoordinationSuite):
    options = {"synchronous": "NORMAL"}  # noqa: RUF012


class TestPackaging(PackagingSuite):
    kind = "result_store"
    name = "sqlite"
