"""Celery's names for settings, so that a ported configuration is answered with ours instead of a shrug."""

from __future__ import annotations

_OURS = {
    "broker_url": "broker",
    "broker_failover_strategy": 'broker (";" between fail-over servers)',
    "broker_use_ssl": "broker (a scheme with TLS: amqps://, rediss://)",
    "broker_heartbeat": "lease",
    "broker_transport_options": "the section transports.NAME, or lease for visibility_timeout",
    "visibility_timeout": "lease",
    "result_backend": "result_store",
    "result_backend_transport_options": "the section result_stores.NAME",
    "result_expires": "result_ttl",
    "task_result_expires": "result_ttl",
    "result_compression": "compressor",
    "accept_content": "accept",
    "task_serializer": "serializer",
    "task_compression": "compressor",
    "task_acks_late": 'delivery ("at_least_once", the default, is acks_late = true)',
    "task_reject_on_worker_lost": 'delivery ("at_least_once" already does that)',
    "task_ignore_result": "ignore_result",
    "task_track_started": "track_started",
    "always_eager": "task_always_eager",
    "task_eager_propagates": "eager_propagates",
    "eager_propagates_exceptions": "eager_propagates",
    "task_publish_retry": "publish_retries",
    "task_publish_retry_policy": "publish_retries and publish_timeout",
    "task_default_queue": "default_queue",
    "task_default_priority": "queues.NAME.priority",
    "task_queue_max_priority": "queues.NAME.priority (0-9, higher first, on every broker)",
    "task_queues": "queues",
    "task_routes": "routes",
    "task_create_missing_queues": "declare",
    "imports": "include",
    "worker_concurrency": "worker.concurrency",
    "worker_prefetch_multiplier": "worker.prefetch (messages, not a multiple; adaptive where unset)",
    "worker_pool": "worker.pool",
    "worker_autoscaler": "worker.autoscaler",
    "worker_max_tasks_per_child": "worker.max_tasks_per_child",
    "max_tasks_per_child": "worker.max_tasks_per_child",
    "worker_max_memory_per_child": "worker.max_memory_per_child (bytes, not KiB)",
    "max_memory_per_child": "worker.max_memory_per_child (bytes, not KiB)",
    "worker_soft_shutdown_timeout": "worker.grace",
    "beat_schedule": "schedules",
    "beat_scheduler": "scheduler",
}
_WITHOUT = {
    "enable_utc": "times are always kept in UTC",
    "worker_hijack_root_logger": "the root logger is left alone",
    "worker_redirect_stdouts": "standard output is left alone",
    "broker_pool_limit": "connections are the transport's; see the options in transports.NAME",
    "broker_connection_retry": "a worker always reconnects",
    "broker_connection_retry_on_startup": "a worker always reconnects",
    "task_time_limit": "time limits belong to a task",
    "task_soft_time_limit": "time limits belong to a task",
    "task_default_rate_limit": "rate limits belong to a task",
}


def celery_hint(name: str) -> str | None:
    """Return what to write instead of a setting of Celery's, old or new spelling; None where it is not one."""
    plain = name.lower()
    for old, new in (("celeryd_", "worker_"), ("celerybeat_", "beat_"), ("celery_", "")):
        if plain.startswith(old):
            plain = new + plain.removeprefix(old)
            break
    for candidate in (plain, f"task_{plain}"):
        if candidate in _OURS:
            return f"that is Celery's name; here it is {_OURS[candidate]}"
        if candidate in _WITHOUT:
            return f"that is Celery's name; here {_WITHOUT[candidate]}"
    if name.lower().startswith(("celery_", "celeryd_", "celerybeat_")):
        return "that is a name of Celery's without a counterpart here"
    return None
