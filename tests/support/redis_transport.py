"""The Redis transport, single or cluster, open for the tests of its own."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from taskq.spi import TransportConfig, parse_urls
from taskq_transport_redis.options import RedisOptions
from taskq_transport_redis.plugin import taskq_transport
from tests.support.steps import opening


def opened(url: str, *, lease_s: float = 30.0, **options: Any) -> AbstractContextManager[Any]:
    options = {"timeout": 3.0, "connect_timeout": 3.0, **options}
    config = TransportConfig(urls=parse_urls(url), options=RedisOptions(**options), lease_s=lease_s)
    return opening(taskq_transport(config.urls[0].scheme).factory(config))
