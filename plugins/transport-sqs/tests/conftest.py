"""What stands in front of a server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from taskq.spi import parse_urls
from tests.support.sqs_meddler import Meddler


@pytest.fixture
def meddler(sqs_url: str) -> Iterator[Meddler]:
    (url,) = parse_urls(sqs_url)
    if url.port is None:
        pytest.skip("only an emulator can be stood in front of")
    with Meddler(url.host, url.port) as found:
        yield found
