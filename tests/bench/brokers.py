"""What a contender gets on a server: an empty database, or names that nobody else uses, removed afterwards.

Also the servers' settings that decide about speed and safety, and how large the messages in them are.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.bench.measure import wait_for
from tests.support.databases import fresh_database
from tests.support.rabbitmq_servers import fresh_vhost
from tests.support.servers import free_port

_POSTGRESQL = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "wal_level", "shared_buffers")
_MARIADB = ("version", "innodb_flush_log_at_trx_commit", "innodb_doublewrite", "innodb_buffer_pool_size", "log_bin")
_number = itertools.count(1).__next__


@dataclass
class Surroundings:
    """Where a contender's messages are."""

    url: str
    name: str = field(default_factory=lambda: f"bench{os.getpid()}x{_number()}")
    queues: list[str] = field(default_factory=list)
    port: int = field(default_factory=free_port)

    @classmethod
    @contextlib.contextmanager
    def of(cls, server: str) -> Iterator[Surroundings]:
        """Make them on the server of this URL; "" is none."""
        if not server:
            yield cls("")
            return
        with _kinds()[urlsplit(server).scheme](cls, server) as made:
            yield made

    def listening(self) -> bool:
        """Whether something listens on this one's port."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def message_bytes(self, count: int) -> float | None:
        """Return what one of so many waiting messages takes, with everything that belongs to it; None: cannot tell."""
        scheme = urlsplit(self.url).scheme
        if scheme == "redis":
            return _redis_bytes(self.url) / count
        if scheme == "amqp" and self.queues:
            return _amqp_bytes(self.url, self.queues[0])
        return None


def settings(server: str) -> dict[str, str]:
    """Return the settings of a server that decide about speed and safety."""
    parts = urlsplit(server)
    if parts.scheme == "postgresql":
        import psycopg

        with psycopg.connect(server, connect_timeout=10) as connection:
            return {name: str(connection.execute(f"SHOW {name}").fetchone()[0]) for name in _POSTGRESQL}  # type: ignore[index]
    if parts.scheme == "redis":
        import redis

        with redis.Redis.from_url(server) as client:
            asked: dict[str, Any] = client.config_get("appendonly", "appendfsync", "save", "io-threads")  # type: ignore[assignment,call-arg]
            info: dict[str, Any] = client.info("server")  # type: ignore[assignment]
            return {"version": str(info["redis_version"]), **{k: str(v) or '""' for k, v in asked.items()}}
    if parts.scheme == "amqp":
        with _amqp(server) as connection:
            about = connection._impl.server_properties
            version = f"{about['product']} {about['version']}"
        return {"version": version, "messages": "persistent, on quorum queues of one node unless said"}
    if parts.scheme == "mysql":
        import pymysql

        who = {"user": parts.username or "", "password": parts.password or ""}
        with (
            pymysql.connect(host=parts.hostname, port=parts.port or 3306, **who) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(f"SHOW GLOBAL VARIABLES WHERE variable_name IN {_MARIADB}")
            return {name: str(value) for name, value in cursor.fetchall()}
    return {"kind": "ElasticMQ, an emulator; messages in memory"}


def _kinds() -> dict[str, Callable[..., contextlib.AbstractContextManager[Surroundings]]]:
    return {"postgresql": _database, "mysql": _database, "redis": _redis, "amqp": _rabbitmq, "sqs": _sqs}


@contextlib.contextmanager
def _database(cls: type[Surroundings], server: str) -> Iterator[Surroundings]:
    with fresh_database(server) as url:
        yield cls(url)


@contextlib.contextmanager
def _redis(cls: type[Surroundings], server: str) -> Iterator[Surroundings]:
    import redis

    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw14").removeprefix("gw")
    url = f"{server.rpartition('/')[0]}/{1 + int(worker) % 15}"  # as the tests' own
    setting = "auto-aof-rewrite-percentage"
    with redis.Redis.from_url(url) as client:
        before: dict[str, str] = client.config_get(setting)
        client.flushdb()
        client.config_set(setting, 0)  # no rewriting of what others left while this one is measured
        try:
            yield cls(url)
        finally:
            client.flushdb()
            client.config_set(setting, before[setting])
            if client.info("persistence")["aof_enabled"]:
                with contextlib.suppress(redis.ResponseError):  # under way
                    client.bgrewriteaof()  # of nothing: quick
                wait_for(lambda: not client.info("persistence")["aof_rewrite_in_progress"], 5)


@contextlib.contextmanager
def _rabbitmq(cls: type[Surroundings], server: str) -> Iterator[Surroundings]:
    with fresh_vhost(server) as url:
        yield cls(url)


@contextlib.contextmanager
def _sqs(cls: type[Surroundings], server: str) -> Iterator[Surroundings]:
    made = cls(server)
    yield made
    with contextlib.suppress(Exception):
        client = sqs(server)
        for url in client.list_queues(QueueNamePrefix=made.name).get("QueueUrls", ()):
            client.delete_queue(QueueUrl=url)


def sqs(url: str) -> Any:
    """Return a client of an SQS emulator."""
    import boto3

    parts = urlsplit(url)
    return boto3.client(
        "sqs", endpoint_url=f"http://{parts.hostname}:{parts.port}", region_name="elasticmq", aws_access_key_id="x",
        aws_secret_access_key="x",
    )  # fmt: skip


@contextlib.contextmanager
def _amqp(url: str) -> Iterator[Any]:
    import pika

    parts = urlsplit(url)
    who = pika.PlainCredentials(unquote(parts.username or "guest"), unquote(parts.password or "guest"))
    connection = pika.BlockingConnection(
        pika.ConnectionParameters(parts.hostname, parts.port or 5672, unquote(parts.path[1:]) or "/", who)
    )
    try:
        yield connection
    finally:
        connection.close()


def _redis_bytes(url: str) -> int:
    """Add up keys' names and contents, without the server's own overhead."""
    import redis

    total = 0
    with redis.Redis.from_url(url) as client:
        for key in client.scan_iter(count=1000):
            total += len(key)
            kind: bytes = client.type(key)
            if kind == b"string":
                total += client.strlen(key)
            elif kind == b"list":
                total += sum(map(len, client.lrange(key, 0, -1)))
            elif kind == b"set":
                total += sum(map(len, client.smembers(key)))
            elif kind == b"zset":
                total += sum(len(part) + 8 for part in client.zrange(key, 0, -1))
            elif kind == b"hash":
                total += sum(len(k) + len(v) for k, v in client.hgetall(key).items())
            elif kind == b"stream":
                for _, fields in client.xrange(key):
                    total += 16 + sum(len(k) + len(v) for k, v in fields.items())
    return total


def _amqp_bytes(url: str, queue: str) -> float | None:
    """Return body, headers and properties of one message, as they are sent."""
    with _amqp(url) as connection:
        channel = connection.channel()
        method, properties, body = channel.basic_get(queue)
        if method is None:
            return None
        channel.basic_nack(method.delivery_tag)
        return len(body) + sum(map(len, properties.encode()))
