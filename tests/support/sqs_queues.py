"""Queues on ElasticMQ, or on AWS, for tests."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator


@contextlib.contextmanager
def own_queues(server: str) -> Iterator[str]:
    """Give the URL of a broker without queues: a prefix of this test's own. Queues are deleted afterwards."""
    import boto3
    from botocore.config import Config

    from taskq.spi import parse_urls

    (url,) = parse_urls(server)
    prefix = f"t{uuid.uuid4().hex[:8]}-"
    try:
        yield f"{server}{'&' if url.query else '?'}queue_prefix={prefix}"
    finally:
        with contextlib.suppress(Exception):
            emulator = url.port is not None
            client = boto3.client(
                "sqs",
                region_name=url.host if not emulator else "elasticmq",
                endpoint_url=f"http://{url.host}:{url.port}" if emulator else None,
                aws_access_key_id="x" if emulator else None,
                aws_secret_access_key="x" if emulator else None,
                config=Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1}),
            )
            for page in client.get_paginator("list_queues").paginate(QueueNamePrefix=prefix, PaginationConfig={"PageSize": 1000}):
                for queue in page.get("QueueUrls", ()):
                    client.delete_queue(QueueUrl=queue)
            client.close()
