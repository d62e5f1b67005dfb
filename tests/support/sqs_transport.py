"""The SQS transport, open for the tests of its own."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from taskq.spi import TransportConfig, Url, parse_urls
from taskq_transport_sqs.options import SqsOptions
from taskq_transport_sqs.transport import SqsTransport
from tests.support.sqs_queues import sqs_client
from tests.support.steps import opening


def opened(url: str, *, lease_s: float = 30.0, **options: Any) -> AbstractContextManager[SqsTransport]:
    (parsed,) = parse_urls(url)
    options = {**dict(parsed.query), **options}
    config = TransportConfig(urls=(parsed.without_query(),), options=SqsOptions(**options), lease_s=lease_s)
    return opening(SqsTransport(config))


def through(url: str, port: int) -> str:
    (parsed,) = parse_urls(url)
    return Url(parsed.scheme, "key", "hush-hush", "127.0.0.1", port, "", parsed.query).raw()


def url_of(transport: SqsTransport, queue: str = "q") -> str:
    return transport.queues.find(queue).url


def raw(sqs_url: str) -> Any:
    return sqs_client(sqs_url.partition("?")[0])
