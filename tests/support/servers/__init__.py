"""Real servers for the tests; `python -m tests.support.servers --help` says how to start them."""

from tests.support.servers.fleet import in_ci
from tests.support.servers.kinds import SERVERS, ElasticMQ, PostgreSQL, RabbitMQ
from tests.support.servers.server import START_TIMEOUT, free_port

__all__ = ["SERVERS", "START_TIMEOUT", "ElasticMQ", "PostgreSQL", "RabbitMQ", "free_port", "in_ci"]
