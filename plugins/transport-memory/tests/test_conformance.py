from __future__ import annotations

from collections.abc import Iterator

import pytest

from taskq.testing import PackagingSuite, TransportSuite
from taskq.testing.base import unique
from taskq_lib_memory import forget


class TestConformance(TransportSuite):
    scheme = "memory"
    quiet_s = 0.03  # what happens, happens at once
    lease_s = 0.4

    @pytest.fixture
    def url(self) -> Iterator[str]:
        name = unique("conformance")
        yield f"memory://{name}"
        forget(name)


class TestPackaging(PackagingSuite):
    kind = "transport"
    name = "memory"
