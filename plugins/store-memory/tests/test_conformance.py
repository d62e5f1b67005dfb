from __future__ import annotations

from collections.abc import Iterator

import pytest

from taskq.testing import CoordinationSuite, PackagingSuite, StoreSuite
from taskq.testing.base import unique
from taskq_lib_memory import forget


class OnMemory:
    scheme = "memory"
    ttl_s = 0.4
    quiet_s = 0.03  # what happens, happens at once

    @pytest.fixture
    def url(self) -> Iterator[str]:
        name = unique("conformance")
        yield f"memory://{name}"
        forget(name)


class TestConformance(OnMemory, StoreSuite):
    pass


class TestCoordination(OnMemory, CoordinationSuite):
    pass


class TestPackaging(PackagingSuite):
    kind = "result_store"
    name = "memory"
