"""Who is measured on which broker. Another broker, pool, variant or peer is one more entry here.

`server` is the environment variable with the URL of a server that tests.support.servers starts; where it is empty, each
contender gets a folder.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench.cases import BULK, DRAIN, DRAIN_KEPT, SINGLE, START, TRIP, Sizes
from tests.bench.contender import Contender

TASKQ = "tests.bench.taskq_app"


@dataclass
class Group:
    """The contenders of one broker; the first one is what ratios refer to."""

    name: str
    title: str
    contenders: list[Contender]
    sizes: Sizes
    goals: dict[str, str]
    server: str = ""
    idle: bool = False


def taskq(label: str, url: str, *, pool: str = "-P solo", **more: float) -> Contender:
    return Contender(label, TASKQ, url, environment={"BENCH_POOL": pool}, **more)  # type: ignore[arg-type]


def peer(label: str, module: str, *, scale: float, call_scale: float = 1.0) -> Contender:
    return Contender(label, f"tests.bench.peers.{module}", peer=True, scale=scale, call_scale=call_scale)


def floor(label: str, module: str, *, scale: float = 1.0) -> Contender:
    return Contender(label, f"tests.bench.floors.{module}", scale=scale)


GROUPS = [
    Group(
        "sqlite",
        "SQLite file, one worker process, one task at a time",
        [
            taskq("taskq", "sqlite:///{folder}/taskq.db"),
            taskq("taskq, synchronous=NORMAL", "sqlite:///{folder}/taskq.db?synchronous=NORMAL"),
            floor("sqlite3 alone", "sqlite"),
            peer("huey", "huey_sqlite", scale=0.015),
            peer("Celery, SQLAlchemy", "celery_sqlalchemy", scale=0.006, call_scale=0.2),
            peer("Celery, filesystem", "celery_filesystem", scale=0.01, call_scale=0.2),
            peer("flexiq", "flexiq_sqlite", scale=0.015),
            peer("potatoq", "potatoq_sqlite", scale=0.015),
        ],
        Sizes(drain=100_000, single=5_000, calls=500),
        {
            DRAIN: "≥ 40,000", DRAIN_KEPT: "≥ 18,000", BULK: "≥ 80,000", SINGLE: "≥ 2,500", TRIP: "≤ 2", START: "≤ 0.5",
        },
        idle=True,
    ),
    Group(
        "postgresql",
        "PostgreSQL, fsync on, one worker process, one task at a time",
        [
            taskq("taskq", "{database}"),
            floor("psycopg alone", "postgresql"),
            peer("procrastinate", "procrastinate_postgresql", scale=0.1),
            peer("gylo", "gylo_postgresql", scale=0.5),
        ],
        Sizes(drain=30_000, single=1_500, calls=300),
        {DRAIN: "≥ 8,000", TRIP: "≤ 4"},
        server="TASKQ_TEST_POSTGRESQL_URL",
    ),
    Group(
        "mariadb",
        "MariaDB, innodb_flush_log_at_trx_commit=1, one worker process, one task at a time",
        [taskq("taskq", "{database}")],
        Sizes(drain=20_000, single=1_000, calls=200),
        {},
        server="TASKQ_TEST_MARIADB_URL",
    ),
]  # fmt: skip
