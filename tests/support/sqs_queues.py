"""Queues on ElasticMQ, or on AWS, for tests."""

from __future__ import annotations

import contextlib
import functools
import uuid
from collections.abc import Iterator
from typing import Any


@functools.cache
def sqs_client(server: str) -> Any:
    """A client of the tests' own, kept for the process: making one takes a while."""
    import boto3
    from botocore.config import Config

    from taskq.spi import parse_urls

    (url,) = parse_urls(server)
    config = Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 2})
    if url.port is None:
        return boto3.client("sqs", region_name=url.host, config=config)
    return boto3.client(
        "sqs",
        region_name="elasticmq",
        endpoint_url=f"http://{url.host}:{url.port}",
        aws_access_key_id="taskq",
        aws_secret_access_key="taskq",
        config=config,
    )


@contextlib.contextmanager
def own_queues(server: str) -> Iterator[str]:
    """Give the URL of a broker without queues: a prefix of this test's own. Queues are deleted afterwards."""
    prefix = f"t{uuid.uuid4().hex[:8]}-"
    yield f"{server}{'&' if '?' in server else '?'}queue_prefix={prefix}"
    client = sqs_client(server)
    pages = client.get_paginator("list_queues").paginate(QueueNamePrefix=prefix, PaginationConfig={"PageSize": 1000})
    for page in pages:
        for queue in page.get("QueueUrls", ()):
            client.delete_queue(QueueUrl=queue)
