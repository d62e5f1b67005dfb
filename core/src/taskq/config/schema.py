"""Every setting of the kernel: its name, type, default and meaning, once.

A setting is one line: ``name: Annotated[type, About("help", unit=…, …)] = default``. Its place in a file, its
environment variable, its conversion from text, ``config show`` and the reference follow from that line.

Settings are immutable. Times are in seconds and sizes in bytes; as text both take a unit (``"10m"``, ``"64MiB"``), and
``"none"`` unsets a setting that may be unset. Plugins add options of their own under ``transports.NAME`` and its like
(``PLUGIN_SECTIONS``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Struct

from taskq.config.redact import redact
from taskq.config.values import About
from taskq.spi.transport import DeclareMode, SubscribeOrder
from taskq.spi.url import Url


class Section(Struct, frozen=True, kw_only=True):
    """A table of settings. Its repr shows what differs from the defaults, without secrets."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in redact(self).items())})"


class BrokerSettings(Section, frozen=True, kw_only=True):
    """``brokers.NAME``: a further broker; ``brokers.NAME = URL`` is short for its ``url``."""

    url: Annotated[tuple[Url, ...], About('broker URL; ";" or a list for fail-over servers')]


class QueueSettings(Section, frozen=True, kw_only=True):
    """``queues.NAME``: how one queue is declared and sent to."""

    broker: Annotated[str | None, About("name of the broker, under brokers, that it is on; default: broker")] = None
    priority: Annotated[int | None, About("priority of messages that name none", choices=range(10))] = None
    ordered: Annotated[bool, About("strict first in, first out per group")] = False
    durable: Annotated[bool, About("whether the queue survives a restart of the broker")] = True
    weight: Annotated[int, About('share among the queues of a worker with queue_order = "weighted"', minimum=1)] = 1
    pool: Annotated[str | None, About("pool of tasks from this queue that name none themselves")] = None
    options: Annotated[Mapping[str, Any], About("declaration options of the transport's own")] = {}


class RouteSettings(Section, frozen=True, kw_only=True):
    """One entry of ``routes``: the first whose ``match`` fits a task's name decides."""

    match: Annotated[str, About('task name, glob ("emails.*") or regular expression ("re:…", the whole name)')]
    queue: Annotated[str, About("queue for the tasks that match")]
    priority: Annotated[int | None, About("priority of these messages, 0-9", choices=range(10))] = None


class ScheduleSettings(Section, frozen=True, kw_only=True):
    """``schedules.NAME``: a task that is sent by the clock."""

    task: Annotated[str, About("name of the task")]
    rule: Annotated[str, About('"every SECONDS", "at EPOCH_SECONDS", or "cron EXPRESSION" where the scheduler can')]
    args: Annotated[tuple[Any, ...], About("positional arguments")] = ()
    kwargs: Annotated[Mapping[str, Any], About("keyword arguments")] = {}
    options: Annotated[Mapping[str, Any], About("options as of apply_async")] = {}
    enabled: Annotated[bool, About("whether it fires")] = True


class PluginSettings(Section, frozen=True, kw_only=True):
    """``plugins``: which plugins may load, and which of several is meant."""

    blocked: Annotated[tuple[str, ...], About("plugins never to load: NAME, KIND:NAME, a distribution, with *")] = ()
    only: Annotated[tuple[str, ...] | None, About("the only plugins to load, likewise; default: all")] = None
    choose: Annotated[Mapping[str, str], About('"KIND:NAME" = distribution, where two offer the same')] = {}


class WorkerSettings(Section, frozen=True, kw_only=True):
    """``worker``: how a worker takes and runs messages."""

    name: Annotated[str | None, About("name in logs and statistics; default: host and process id")] = None
    pool: Annotated[str, About('"auto", a pool plugin, or several with slots: "prefork=2,asyncio=500"')] = "auto"
    concurrency: Annotated[int | None, About("slots; default: the CPUs that this process may use", minimum=1)] = None
    queues: Annotated[tuple[str, ...], About("queues to serve; default: all that the application names")] = ()
    queue_order: Annotated[SubscribeOrder, About("how the queues share the worker")] = "fair"
    grace: Annotated[float, About("time for running tasks to end after TERM", unit="s", minimum=0)] = 25.0
    prefetch: Annotated[int | None, About("most messages held at once; default: adaptive", minimum=1)] = None
    prefetch_bytes: Annotated[int, About("most payload held", unit="bytes", minimum=1)] = 64 << 20
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], About("least level that is logged")
    ] = "INFO"
    log_json: Annotated[bool, About("log one JSON object per line")] = False
    stall_timeout: Annotated[
        float,
        About("time without progress, with a backlog and free slots, until it subscribes again", unit="s", minimum=1),
    ] = 120.0
    maintenance: Annotated[bool, About("whether this worker reaps, promotes and sweeps for the transport")] = True
    autoscale: Annotated[tuple[int, int] | None, About('"MIN,MAX" slots, as load demands', minimum=1)] = None
    autoscaler: Annotated[str, About("name of an autoscaler plugin")] = "simple"
    max_tasks_per_child: Annotated[int | None, About("replace a pool's child after so many tasks", minimum=1)] = None
    max_memory_per_child: Annotated[
        int | None, About("replace a pool's child at that size", unit="bytes", minimum=1)
    ] = None


class Settings(Section, frozen=True, kw_only=True):
    """All settings of the kernel. ``result_store`` is None for "by the broker's kind" and ``()`` for none."""

    broker: Annotated[tuple[Url, ...], About('broker URL; ";" or a list for fail-over servers')] = (Url("sqlite"),)
    brokers: Annotated[Mapping[str, BrokerSettings], About("further brokers, for the queues that name one")] = {}
    result_store: Annotated[
        tuple[Url, ...] | None, About('result store URL, "none", or "auto": the broker where it can', none=())
    ] = None
    include: Annotated[tuple[str, ...], About("modules to import for their tasks")] = ()

    default_queue: Annotated[str, About("queue of tasks that nothing routes")] = "default"
    queues: Annotated[Mapping[str, QueueSettings], About("queues with properties of their own")] = {}
    routes: Annotated[tuple[RouteSettings, ...], About("task name to queue, first match wins")] = ()
    declare: Annotated[DeclareMode, About("create missing queues, only check for them, or trust")] = "create"

    serializer: Annotated[str, About("format of arguments")] = "json"
    result_serializer: Annotated[str | None, About("format of results; default: as serializer")] = None
    accept: Annotated[tuple[str, ...], About("formats that are read; nothing else is ever decoded")] = ("json",)
    compressor: Annotated[str | None, About("compressor of large payloads")] = None
    compress_above: Annotated[int, About("least payload that is compressed", unit="bytes", minimum=0)] = 16384
    max_decompressed_bytes: Annotated[int, About("most that a payload may grow to", unit="bytes", minimum=1)] = 64 << 20
    max_payload_bytes: Annotated[
        int | None, About("largest message sent; default: the transport's limit", unit="bytes", minimum=1)
    ] = None

    delivery: Annotated[
        Literal["at_least_once", "at_most_once"], About("acknowledge after the run, or at its start")
    ] = "at_least_once"
    max_retries: Annotated[int, About("runs after the first one, of tasks that say nothing", minimum=0)] = 3
    retry_backoff: Annotated[float, About("wait before the first retry; doubles each time", unit="s", minimum=0)] = 1.0
    retry_backoff_max: Annotated[float, About("longest wait before a retry", unit="s", minimum=0)] = 600.0
    retry_jitter: Annotated[bool, About("wait a random part of the back-off")] = True
    max_deliveries: Annotated[int, About("started deliveries without an outcome before the dead letter", minimum=1)] = 5
    unknown_task_wait: Annotated[
        float, About("time a task that a worker does not know is offered to others first", unit="s", minimum=0)
    ] = 5.0
    lease: Annotated[
        float | None, About("time a silent worker keeps messages; default: the transport's", unit="s", minimum=0.1)
    ] = None

    publish_timeout: Annotated[float, About("longest time for a send with its repeats", unit="s", minimum=0.001)] = 10.0
    publish_retries: Annotated[int, About("repeats of a send that failed and may be repeated", minimum=0)] = 8

    ignore_result: Annotated[bool, About("do not store results of tasks that say nothing")] = False
    result_ttl: Annotated[float, About("how long results are kept", unit="s", minimum=1)] = 86400.0
    max_result_bytes: Annotated[int, About("largest result that is stored", unit="bytes", minimum=1)] = 16 << 20
    track_queued: Annotated[bool, About("record QUEUED at every send, where that costs a round trip")] = False
    track_started: Annotated[bool, About("record STARTED when a task begins")] = False

    task_always_eager: Annotated[bool, About("run tasks at the call, in the caller's process")] = False
    eager_propagates: Annotated[bool, About("raise a failed eager task's exception at the call")] = True

    scheduler: Annotated[str, About("name of a scheduler plugin")] = "simple"
    schedules: Annotated[Mapping[str, ScheduleSettings], About("tasks that are sent by the clock")] = {}

    worker: Annotated[WorkerSettings, About("how a worker takes and runs messages")] = WorkerSettings()
    plugins: Annotated[PluginSettings, About("which plugins may load")] = PluginSettings()


PLUGIN_SECTIONS: Mapping[str, str] = {
    "transport": "transports",
    "result_store": "result_stores",
    "pool": "pools",
    "serializer": "serializers",
    "compressor": "compressors",
    "scheduler": "schedulers",
    "autoscaler": "autoscalers",
    "extension": "extensions",
}
"""Kind of plugin to the table that holds its options; ``extensions`` is for hook-only plugins (``taskq.plugins``)."""

SHORT: Mapping[str, str] = {"brokers": "url"}
"""Tables of tables in which a plain value stands for the table's one setting: ``brokers.eu = "redis://…"``."""

READ_ELSEWHERE = ("TASKQ_APP", "TASKQ_CONFIG")
"""Variables that are no settings: the command line's ``-A``, and the name of the file."""

IGNORED_VARIABLES = ("TASKQ_TEST_", "TASKQ_SEED", "TASKQ_SOAK")
"""Beginnings of the test suite's variables, which share the prefix and are nobody's mistake."""
