"""Who is measured on which broker. Another broker, pool, variant or peer is one more entry here.

`server` is the environment variable with the URL of a server that tests.support.servers starts; where it is empty, each
contender gets a folder. A contender that `needs` plugins takes part once they are installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.bench import cases, pool_cases
from tests.bench.cases import BULK, DRAIN, DRAIN_KEPT, SINGLE, SIZE, START, TRIP, Sizes, Turn
from tests.bench.contender import Contender

TASKQ = "tests.bench.taskq_app"


@dataclass
class Group:
    """The contenders of one broker; the first one is what ratios refer to."""

    name: str
    title: str
    contenders: list[Contender]
    sizes: Sizes
    goals: dict[str, str] = field(default_factory=dict)
    server: str = ""
    idle: bool = False
    measure: Callable[[Turn], None] = cases.broker
    absent: dict[str, str] = field(default_factory=dict)  # who could be expected here, and why it is not


def taskq(
    label: str, url: str = "", *, pool: str = "-P solo", needs: str = "", scale: float = 1.0, asynchronous: str = ""
) -> Contender:  # fmt: skip
    environment = {"BENCH_POOL": pool, "BENCH_ASYNC": asynchronous}
    return Contender(label, TASKQ, url, environment=environment, needs=tuple(needs.split()), scale=scale)


def peer(
    label: str, module: str, *, scale: float, call_scale: float = 1.0, kind: str = "python", rival: bool = False,
    **environment: str,
) -> Contender:  # fmt: skip
    """Name a peer; a rival is one that a goal names, and measured in every round."""
    path = module if module.endswith(".mjs") else f"tests.bench.peers.{module}"
    return Contender(
        label, path, peer=True, every_round=rival, scale=scale, call_scale=call_scale, kind=kind,
        environment={f"BENCH_{name.upper()}": value for name, value in environment.items()},
    )  # fmt: skip


def floor(label: str, module: str, *, scale: float = 1.0, needs: str = "", **environment: str) -> Contender:
    return Contender(
        label, f"tests.bench.floors.{module}", scale=scale, needs=tuple(needs.split()),
        environment={f"BENCH_{name.upper()}": value for name, value in environment.items()},
    )  # fmt: skip


CAULI_BEST = "--batch 256 --ack-batch 256"
AMQP, ZEROMQ, SQS = (f"taskq.transports:{name}" for name in ("amqp", "zeromq", "sqs"))

GROUPS = [
    Group(
        "redis",
        "Redis, one worker process, no-op tasks",
        [
            taskq("taskq"),
            taskq("taskq, threads", pool="-P threads"),
            floor("redis-py alone", "redis"),
            peer("cauli, best", "cauli_redis", scale=0.3, rival=True, worker=CAULI_BEST),
            peer("cauli", "cauli_redis", scale=0.15),
            peer("mayu, prefetch × 256", "mayu_redis", scale=0.1, kind="python3.13", prefetch="256"),
            peer("mayu", "mayu_redis", scale=0.025, kind="python3.13"),
            peer("tarsk", "tarsk_redis", scale=0.06),
            peer("blitzq", "blitzq_redis", scale=0.06, kind="python3.13"),
            peer("ardiq", "ardiq_redis", scale=0.03, kind="python3.13"),
            peer("BullMQ", "bullmq_redis.mjs", scale=0.03, kind="node"),
            peer("potatoq", "potatoq_redis", scale=0.01),
            peer("dramatiq", "dramatiq_redis", scale=0.01),
            peer("taskiq", "taskiq_redis", scale=0.01),
            peer("Celery", "celery_redis", scale=0.005, rival=True),
            peer("huey", "huey_redis", scale=0.015),
            peer("saq", "saq_redis", scale=0.006),
            peer("arq", "arq_redis", scale=0.004, kind="arq"),
            peer("RQ, SimpleWorker", "rq_redis", scale=0.003),
            peer("RQ", "rq_redis", scale=0.0005, worker="Worker"),
        ],
        Sizes(drain=200_000, single=3_000, calls=1_000),
        {
            DRAIN: "≥ 150,000; ≥ 2 × cauli, best", DRAIN_KEPT: "≥ 80,000", BULK: "≥ 150,000", SINGLE: "≥ 1 × redis-py",
            TRIP: "≤ 0.7; ≤ 1.6 × redis-py", cases.TRIP_99: "≤ 2 × redis-py", SIZE: "≤ 100",
        },
        server="TASKQ_TEST_REDIS_URL",
    ),
    Group(
        "rabbitmq",
        "RabbitMQ, quorum queue, persistent, confirmed publishing, one worker process, no-op tasks",
        [
            taskq("taskq", needs=AMQP),
            floor("pika alone", "rabbitmq", scale=0.5),
            peer("Celery", "celery_rabbitmq", scale=0.04, rival=True),
            peer("taskiq", "taskiq_rabbitmq", scale=0.02),
            peer("potatoq", "potatoq_rabbitmq", scale=0.02),
            peer("tarsk", "tarsk_rabbitmq", scale=0.02, kind="tarsk-amqp"),
        ],
        Sizes(drain=60_000, single=500, calls=500),
        {
            DRAIN: "≥ 1.2 × pika, aim 45,000", BULK: "≥ 18,000", TRIP: "≤ 1.6 × pika",
        },
        server="TASKQ_TEST_RABBITMQ_URL",
    ),
    Group(
        "rabbitmq-classic",
        "RabbitMQ, classic queue, persistent, confirmed publishing, one worker process, no-op tasks",
        [
            taskq("taskq", "{database}?queue_type=classic", needs=AMQP),
            floor("pika alone", "rabbitmq", scale=0.5, queue="classic"),
            peer("dramatiq", "dramatiq_rabbitmq", scale=0.02),
        ],
        Sizes(drain=40_000, single=500, calls=500),
        {TRIP: "≤ 1.6 × pika"},
        server="TASKQ_TEST_RABBITMQ_URL",
    ),
    Group(
        "zeromq",
        "ZeroMQ, its hub without a journal, one worker process, no-op tasks",
        [taskq("taskq", "zeromq://127.0.0.1:{port}", needs=ZEROMQ), floor("pyzmq alone", "zeromq")],
        Sizes(drain=100_000, single=3_000, calls=1_000),
        {DRAIN: "≥ 100,000", TRIP: "≤ 0.4"},
        absent={"taskiq": "its ZeroMQ broker has no queue, so what is sent before a worker listens is lost"},
    ),
    Group(
        "sqs",
        "SQS emulator, one worker process, no-op tasks",
        [
            taskq("taskq", "{database}?queue_prefix={name}-", needs=SQS),
            floor("boto3 alone", "sqs"),
            peer("Celery", "celery_sqs", scale=0.1, call_scale=0.5),
        ],
        Sizes(drain=4_000, single=100, calls=50),
        {DRAIN: "≥ 0.7 × boto3", BULK: "≥ 0.7 × boto3", TRIP: ""},
        server="TASKQ_TEST_ELASTICMQ_URL",
    ),
    Group(
        "pools-prefork",
        "Pools: 2 processes, on Redis",
        [
            taskq("taskq, prefork", pool="-P prefork -c 2", needs="taskq.pools:prefork"),
            floor("bare loop", "processes"),
            peer("Celery prefork", "celery_redis", scale=0.01, rival=True, pool="-P prefork -c 2", prefetch="4"),
            peer("dramatiq", "dramatiq_redis", scale=0.02, pool="-p 2 -t 1"),
            peer("taskiq", "taskiq_redis", scale=0.02, pool="--workers 2"),
        ],
        Sizes(drain=150_000, single=300, calls=500),
        {
            DRAIN: "≥ 80,000; ≥ 40 × Celery", TRIP: "≤ 1", pool_cases.BURN: "≥ 0.97 × bare loop",
            pool_cases.MIXED: "≤ 30", START: "≤ 0.5", pool_cases.PARENT: "≤ 45", pool_cases.CHILD: "≤ 12",
        },
        server="TASKQ_TEST_REDIS_URL",
        measure=pool_cases.prefork,
    ),
    Group(
        "pools-threads",
        "Pools: 8 threads, on Redis",
        [
            taskq("taskq, threads", pool="-P threads -c 8"),
            taskq("taskq, solo"),
            peer("dramatiq", "dramatiq_redis", scale=0.01, pool="-p 1 -t 8"),
        ],
        Sizes(drain=150_000, single=300, calls=500),
        {DRAIN: "≥ 80,000", TRIP: "≤ 1"},
        server="TASKQ_TEST_REDIS_URL",
        measure=pool_cases.light,
    ),
    Group(
        "pools-asyncio",
        "Pools: one event loop, async def, 1,000 tasks at a time, on Redis",
        [
            taskq("taskq, asyncio", pool="-P asyncio -c 1000", needs="taskq.pools:asyncio", asynchronous="1"),
            peer("taskiq", "taskiq_redis", scale=0.015, rival=True, pool="--workers 1 --max-async-tasks 1000"),
            peer("cauli", "cauli_redis", scale=0.2, worker=f"{CAULI_BEST} --io-concurrency 1000"),
        ],
        Sizes(drain=100_000, single=20_000, calls=500),
        {DRAIN: "≥ 60,000", pool_cases.NAP: "≥ 8,000; ≥ 3 × taskiq"},
        server="TASKQ_TEST_REDIS_URL",
        measure=pool_cases.concurrent,
    ),
    Group(
        "pools-gevent",
        "Pools: greenlets, 1,000 tasks at a time, on Redis",
        [
            taskq("taskq, gevent", pool="-P gevent -c 1000", needs="taskq.pools:gevent"),
            taskq("taskq, eventlet", pool="-P eventlet -c 1000", needs="taskq.pools:eventlet"),
            peer("Celery gevent", "celery_redis", scale=0.01, rival=True, pool="-P gevent -c 1000", prefetch="4"),
        ],
        Sizes(drain=80_000, single=8_000, calls=300),
        {pool_cases.NAP: "≥ 3,000; ≥ 2 × Celery gevent"},
        server="TASKQ_TEST_REDIS_URL",
        measure=pool_cases.concurrent,
    ),
    Group(
        "sqlite",
        "SQLite file, one worker process, one task at a time",
        [
            taskq("taskq", "sqlite:///{folder}/taskq.db"),
            taskq("taskq, synchronous=NORMAL", "sqlite:///{folder}/taskq.db?synchronous=NORMAL"),
            floor("sqlite3 alone", "sqlite"),
            peer("huey", "huey_sqlite", scale=0.01),
            peer("Celery, SQLAlchemy", "celery_sqlalchemy", scale=0.003, call_scale=0.2),
            peer("Celery, filesystem", "celery_filesystem", scale=0.006, call_scale=0.2),
            peer("flexiq", "flexiq_sqlite", scale=0.008),
            peer("potatoq", "potatoq_sqlite", scale=0.015),
        ],
        Sizes(drain=100_000, single=2_000, calls=500),
        {
            DRAIN: "≥ 40,000", DRAIN_KEPT: "≥ 18,000", BULK: "≥ 80,000", SINGLE: "≥ 2,500", TRIP: "≤ 2", START: "≤ 0.5",
        },
        idle=True,
    ),
    Group(
        "postgresql",
        "PostgreSQL, fsync on, one worker process, one task at a time",
        [
            taskq("taskq"),
            floor("psycopg alone", "postgresql"),
            peer("procrastinate", "procrastinate_postgresql", scale=0.05),
            peer("gylo", "gylo_postgresql", scale=0.5),
        ],
        Sizes(drain=30_000, single=1_000, calls=300),
        {DRAIN: "≥ 8,000", TRIP: "≤ 4"},
        server="TASKQ_TEST_POSTGRESQL_URL",
    ),
    Group(
        "mariadb",
        "MariaDB, innodb_flush_log_at_trx_commit=1, one worker process, one task at a time",
        [taskq("taskq")],
        Sizes(drain=20_000, single=1_000, calls=200),
        server="TASKQ_TEST_MARIADB_URL",
    ),
]  # fmt: skip
