"""The plan of a worker's pools: which there are, how many slots each has, and which tasks go where.

Everything that a pool cannot keep for a task or a setting is refused here, before a message is taken.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from taskq._plugins import State
from taskq.errors import ConfigError, NotSupported, WorkerError
from taskq.spi.capabilities import PoolCapabilities, Support
from taskq.spi.specs import PoolSpec

if TYPE_CHECKING:
    from taskq.app import TaskQ
    from taskq.config.schema import WorkerSettings
    from taskq.task import Task


class PlannedPool(Struct):
    """One pool of a worker: its spec, its slots, and the names of the tasks that have no other home."""

    spec: PoolSpec
    slots: int
    tasks: set[str]

    @property
    def capabilities(self) -> PoolCapabilities:
        """What the pool declares."""
        return self.spec.capabilities


def plan_pools(app: TaskQ, settings: WorkerSettings, *, embedded: bool) -> list[PlannedPool]:
    """Return a worker's pools, the one for tasks that fit several first.

    ``embedded``: the worker is a part of a program, which "auto" then does not start again in child processes.

    Raises:
        PluginError: a pool is missing or broken.
        ConfigError, NotSupported: the pools cannot work together, or cannot keep an option of a task or setting.
        WorkerError: there are no tasks.
    """
    if not app.tasks:
        raise WorkerError(
            f"application {app.name!r} has no tasks; import the modules that define them (include, or -A module)"
        )
    asked = _parse(settings.pool) if settings.pool != "auto" else dict.fromkeys(_automatic(app, embedded=embedded))
    specs = {name: app.plugins.select("pool", name) for name in asked}
    _check_company(specs)
    if settings.autoscale is not None and (len(specs) > 1 or not all(s.capabilities.resize for s in specs.values())):
        raise NotSupported(
            "worker.autoscale needs one pool that can be resized; this worker's pools are " + ", ".join(specs)
        )
    pools = [PlannedPool(spec, _slots(spec, asked[name], settings), set()) for name, spec in specs.items()]
    for task in app.tasks.values():
        home(app, task, None, pools).tasks.add(task.name)
    _check_tasks(app, settings, pools)
    return pools


def home(app: TaskQ, task: Task[..., Any], queue: str | None, pools: Sequence[PlannedPool]) -> PlannedPool:
    """Return the pool where a task's messages from a queue run: the task's own, else the queue's, else what fits.

    Raises:
        NotSupported: the task or queue asks for a pool that this worker does not have.
    """
    configured = None if queue is None else app.settings.queues.get(queue)
    for what, wanted in (
        (f"task {task.name}", task.pool),
        (f"queue {queue}", None if configured is None else configured.pool),
    ):
        if wanted is None:
            continue
        for pool in pools:
            if pool.spec.name == wanted:
                return pool
        names = ", ".join(p.spec.name for p in pools)
        raise NotSupported(
            f"{what} asks for pool {wanted!r}, this worker has {names} only; start it with -P {names},{wanted}"
        )
    if task.is_async:
        return next((p for p in pools if p.capabilities.async_tasks is Support.NATIVE), pools[0])
    return next((p for p in pools if p.capabilities.async_tasks is not Support.NATIVE), pools[0])


def _parse(text: str) -> dict[str, int | None]:
    """Read ``NAME[=SLOTS],…``."""
    pools: dict[str, int | None] = {}
    for part in text.split(","):
        name, _, slots = part.strip().partition("=")
        if not name or name in pools or (slots and not slots.isdecimal()) or slots == "0":
            raise ConfigError(f"worker.pool is NAME or NAME=SLOTS,NAME=SLOTS,… with each name once, not {text!r}")
        pools[name] = int(slots) if slots else None
    return pools


def _automatic(app: TaskQ, *, embedded: bool) -> list[str]:
    """Return what suits the tasks, of what is installed: processes for functions, a loop for coroutines.

    Children of an embedded worker would import the program again, and perhaps start it again: it gets threads.
    """
    installed = {r.name for r in app.plugins.records("pool") if r.state not in (State.BLOCKED, State.CONFLICT)}

    def first(*names: str) -> str:
        return next((name for name in names if name in installed), "threads")

    free = [task for task in app.tasks.values() if task.pool is None]
    chosen = []
    if any(not task.is_async for task in free):
        chosen.append(first(*([] if embedded else ["prefork"]), "threads", "solo"))
    if any(task.is_async for task in free) and (not chosen or "asyncio" in installed):
        chosen.append(first("asyncio", *([] if embedded else ["prefork"]), "threads", "solo"))
    chosen += [task.pool for task in app.tasks.values() if task.pool is not None]
    return list(dict.fromkeys(chosen))


def _check_company(specs: dict[str, PoolSpec]) -> None:
    if len(specs) < 2:
        return
    for name, spec in specs.items():
        if spec.capabilities.inline:
            raise NotSupported(f"pool {name} runs on the worker's own thread and shares a worker with no other pool")
        if spec.capabilities.monkey_patches:
            raise NotSupported(
                f"pool {name} patches the whole process with {spec.capabilities.monkey_patches} and shares a worker "
                "with no other pool; start a second worker for the others"
            )


def _slots(spec: PoolSpec, asked: int | None, settings: WorkerSettings) -> int:
    caps = spec.capabilities
    asked = asked if asked is not None else settings.concurrency
    if caps.max_concurrency is not None:
        if asked is not None and asked > caps.max_concurrency:
            raise NotSupported(
                f"pool {spec.name} runs {caps.max_concurrency} task at a time, not {asked}. "
                "Choose another pool (-P threads), or start several workers"
            )
        return caps.max_concurrency
    if asked is not None:
        return asked
    if settings.autoscale is not None:
        return settings.autoscale[0]
    return caps.default_concurrency or max(1, cpu_count())


def _check_tasks(app: TaskQ, settings: WorkerSettings, pools: Sequence[PlannedPool]) -> None:
    """Refuse what a pool cannot do for a task or setting, naming what to choose instead."""
    problems = []
    queues = [None, *(name for name, queue in app.settings.queues.items() if queue.pool is not None)]
    for task in app.tasks.values():
        for pool in {id(p): p for p in (home(app, task, queue, pools) for queue in queues)}.values():
            problems += _misfits(task, pool)
    for label in ("max_tasks_per_child", "max_memory_per_child"):
        if getattr(settings, label) is not None and not any(p.capabilities.recycle for p in pools):
            problems.append(f"worker.{label} is set, which pool {pools[0].spec.name} cannot keep")
    if problems:
        raise NotSupported("; ".join(problems) + ". Choose another pool with -P, or remove the option")
    codec = app.codec
    for content_type in app.settings.accept:
        codec.reader(content_type)


def _misfits(task: Task[..., Any], pool: PlannedPool) -> list[str]:
    caps, name = pool.capabilities, pool.spec.name
    problems = []
    for label, limit, support in (
        ("soft_time_limit", task.soft_time_limit, caps.soft_limit),
        ("time_limit", task.time_limit, caps.hard_limit),
    ):
        if limit is None:
            continue
        if support is Support.NO:
            problems.append(f"task {task.name} has {label}, which pool {name} cannot keep")
        elif not task.is_async and not caps.limits_sync:
            problems.append(f"task {task.name} has {label}, which pool {name} keeps for async def tasks only")
    if task.is_async and caps.async_tasks is Support.NO:
        problems.append(f"task {task.name} is async, which pool {name} cannot run")
    if not task.is_async and not caps.sync_tasks:
        problems.append(f"task {task.name} is not async def, which pool {name} cannot run")
    return problems


def cpu_count() -> int:
    """Return the CPUs that this process may use: its affinity, limited by the cgroup's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        if quota != "max":
            count = min(count, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return count
