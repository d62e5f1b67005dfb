"""Which distribution provides which name, and what other projects' spellings are called here.

Hints only: what can be selected is decided by what is installed. They turn "unknown scheme" into a command to type.
"""

from __future__ import annotations

from collections.abc import Iterable

_SERVERS = {
    "memory": "memory",
    "sqlite": "sqlite",
    "sqlalchemy": "postgresql mysql mariadb sqlite+sqlalchemy",
    "redis": "redis rediss valkey valkeys redis+cluster rediss+cluster redis+sentinel rediss+sentinel",
    "mongodb": "mongodb",
    "couchdb": "couchdb",
    "django": "django",
}
_MORE: dict[str, dict[str, str]] = {
    "transport": {**_SERVERS, "amqp": "amqp amqps", "sqs": "sqs", "zeromq": "zeromq"},
    "result_store": {**_SERVERS, "amqp": "amqp amqps", "zeromq": "zeromq",
                     **{name: name for name in ("memcached", "cassandra", "file", "s3")}},
    "pool": {name: name for name in ("solo", "threads", "prefork", "asyncio", "gevent", "eventlet")},
    "serializer": {name: name for name in ("json", "pickle", "yaml", "msgpack")},
    "compressor": {name: name for name in ("zlib", "bzip2", "zstd")},
    "scheduler": {"simple": "simple"},
    "autoscaler": {name: name for name in ("simple", "latency", "cpu")},
}  # fmt: skip
KNOWN: dict[str, dict[str, str]] = {
    kind: {
        name: f"taskq-{'store' if kind == 'result_store' else kind}-{plugin}"
        for plugin, names in plugins.items()
        for name in names.split()
    }
    for kind, plugins in _MORE.items()
}
"""Kind → name → the distribution of this project that provides it."""

SAME_SERVER_STORES = frozenset(name for names in _SERVERS.values() for name in names.split())
"""Broker schemes whose server keeps the results too when no result store is set: fixed, whatever is installed."""

_SERVER_ALIASES = {
    "postgres": "postgresql", "sqlalchemy": "postgresql", "redis-cluster": "redis+cluster",
    "sentinel": "redis+sentinel", "redis-sentinel": "redis+sentinel", "redis+socket": "redis", "mongo": "mongodb",
    "rabbitmq": "amqp", "zmq": "zeromq", "couch": "couchdb", "django-db": "django", "inmemory": "memory",
}  # fmt: skip
# Transports of Celery's message library without a plugin of their own are reached over the bridge.
_BRIDGED = "filesystem consul zookeeper etcd azureservicebus azurestoragequeues confluentkafka gcpubsub pyro qpid slmq"
ALIASES: dict[str, dict[str, str]] = {
    "transport": {
        **_SERVER_ALIASES, "pyamqp": "amqp", "librabbitmq": "amqp", **{n: f"kombu+{n}" for n in _BRIDGED.split()},
    },
    "result_store": {
        **_SERVER_ALIASES, "rpc": "amqp", "pyamqp": "amqp", "cache": "memcached", "cache+memcached": "memcached",
        "cache+pymemcache": "memcached", "cache+pylibmc": "memcached", "cache+memory": "memory",
        "memcache": "memcached", "django-cache": "django", "filesystem": "file",
    },
    "pool": {
        "processes": "prefork", "process": "prefork", "multiprocessing": "prefork", "fork": "prefork",
        "thread": "threads", "threading": "threads", "single": "solo", "sync": "solo", "inline": "solo",
        "async": "asyncio", "aio": "asyncio", "greenlets": "gevent",
    },
    "serializer": {
        "application/json": "json", "application/x-python-serialize": "pickle", "application/x-yaml": "yaml",
        "yml": "yaml", "application/x-msgpack": "msgpack", "messagepack": "msgpack",
    },
    "compressor": {
        "gzip": "zlib", "application/x-gzip": "zlib", "deflate": "zlib", "bz2": "bzip2", "application/x-bz2": "bzip2",
        "zstandard": "zstd", "application/zstd": "zstd",
    },
    "scheduler": {"persistent": "simple", "celery.beat:PersistentScheduler": "simple"},
    "autoscaler": {"celery.worker.autoscale:Autoscaler": "simple"},
}  # fmt: skip


def label(kind: str, name: str) -> str:
    """Return how messages name a component: ``result store 'redis'``."""
    return f"{kind.replace('_', ' ')} {name!r}"


def install_command(*requirements: str, again: bool = False) -> str:
    """Return the command that installs distributions of this project from a clone; never from an index.

    Their names are not this project's there: whoever registers one would have their code run.
    """
    force = "--force-reinstall " if again else ""
    return f"pip install {force}--no-index --find-links dist {' '.join(requirements)}"


def provider(kind: str, name: str) -> str | None:
    """Return the distribution of this project that provides a name, or None."""
    if kind == "transport" and name.startswith("kombu+"):
        return "taskq-transport-kombu"
    return KNOWN.get(kind, {}).get(name)


def alias(kind: str, name: str) -> str | None:
    """Return our name for another project's spelling (``pyamqp``, ``db+postgresql``, ``processes``), or None."""
    ours = ALIASES.get(kind, {}).get(name)
    if ours is not None or kind not in ("transport", "result_store"):
        return ours
    # SQLAlchemy's own form, with or without Celery's prefix: sqla+mysql, db+postgresql+psycopg, postgresql+psycopg
    rest = name
    for prefix in ("db+", "sqla+", "sqlalchemy+"):
        rest = rest.removeprefix(prefix)
    head = rest.partition("+")[0]
    if rest != name and head == "sqlite":
        return "sqlite+sqlalchemy"
    head = ALIASES[kind].get(head, head)
    return head if head != name and head in KNOWN[kind] else None


def not_installed(kind: str, name: str, installed: Iterable[str]) -> str:
    """Return the message for a name that nothing installed offers: who provides it, or what was meant."""
    what = label(kind, name)
    distribution = provider(kind, name)
    if distribution:
        return f"{what} is not installed; it is provided by {distribution}: {install_command(distribution)}"
    form = "{}://…" if kind in ("transport", "result_store") else "{!r}"
    ours = alias(kind, name)
    if ours:
        by = provider(kind, ours)
        return f"{what} is another project's spelling; here it is {form.format(ours)} (provided by {by})"
    import difflib  # only on the way to an error

    names = sorted({*KNOWN.get(kind, {}), *installed})
    close = difflib.get_close_matches(name, names, n=3)
    if close:
        return f"{what} is unknown; did you mean {' or '.join(form.format(n) for n in close)}?"
    return (
        f"{what} is unknown: no installed plugin offers it; known are {', '.join(names) or 'none'}. "
        "`taskq plugins list` shows what is installed"
    )
