"""The worker: takes messages, has their tasks run, and ends them."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from taskq.errors import ConfigError, NotSupported, StoreError, TaskQError, TransportError, WorkerError
from taskq.events import EventBus
from taskq.link import LinkServer
from taskq.message import Job, QueueSpec, Subscription
from taskq.runtime import TaskRuntime
from taskq.spi.pool import Finished
from taskq.spi.specs import PoolConfig
from taskq.spi.transport import Committer, Consumer, SupportsFuse
from taskq.worker.admission import Admission
from taskq.worker.autoscale import Autoscale
from taskq.worker.carrier import Carrier
from taskq.worker.engines import InlineEngine, PoolEngine
from taskq.worker.flag import Flag
from taskq.worker.keeper import Keeper
from taskq.worker.plan import PlannedPool, home, plan_pools
from taskq.worker.pools import PoolSet
from taskq.worker.settler import DEAD_SUFFIX, Settler, pump_until
from taskq.worker.shutdown import Signals, StartStopped
from taskq.worker.watch import Health, RunningTask, Watch

if TYPE_CHECKING:
    from taskq.app import TaskQ

T = TypeVar("T")
logger = logging.getLogger("taskq.worker")
_FLUSH_TIME = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0

EXIT_OK, EXIT_FATAL, EXIT_UNFINISHED = 0, 1, 3
"""Exit codes: everything ended; the worker could not go on; work was handed back or abandoned at the deadline."""


class Worker:
    """One worker of one application.

    ``run()`` blocks until a signal or ``stop()``; ``start()`` runs it on a thread, for tests and for applications that
    embed a worker. Options are the settings under ``worker`` (``pool``, ``concurrency``, ``queues``, ``grace`` in
    seconds, …).

    Raises:
        ConfigError, NotSupported: the chosen combination cannot honour a setting or a task's option.
        PluginError: a component is missing or broken.
    """

    def __init__(self, app: TaskQ, **options: Any) -> None:
        config = app.config
        if options:
            config = config.reloaded(cli={**app.cli_settings, **{f"worker.{k}": v for k, v in options.items()}})
        self.app = app
        settings = config.settings.worker
        self.settings = settings
        self.name = settings.name or f"{socket.gethostname()}-{os.getpid()}"
        self.starting = False
        """Whether it is being prepared by ``run``: nothing is held yet, and a signal ends it at once."""
        self.stopping = False
        self.interrupted = False
        self.gave_up = False
        self.progress = 0
        self.ready = threading.Event()
        self.held: dict[int, Job] = {}
        self.finished_orphans: dict[int, Finished] = {}
        self.exit_code = EXIT_OK
        self._stop_event = Flag()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self.broker_down = False
        self.has_process = False
        """Whether this worker is what its process is for, rather than a part of another program."""
        self.restart_wanted = False
        self.dump_wanted = False
        self.watch: Watch | None = None
        self.wanted_slots: int | None = None
        """What the autoscaler asked for last, before its bounds: for scalers of more workers than this one."""

    # -------------------------------------------------------------------------------------------------- starting

    def _prepare(self) -> None:
        """Resolve the plan and connect; every refusal happens here, before a message is taken."""
        app = self.app
        app.merge_defaults()
        app.import_tasks()
        app.freeze()
        self.pools = self._plan()
        self.pool_name = "+".join(pool.spec.name for pool in self.pools)
        self.inline = self.pools[0].capabilities.inline
        self.slots = sum(pool.slots for pool in self.pools)
        app.plugins.worker_starting(self)
        self.transport = self._patiently(lambda: app.transport)
        self.store = self._patiently(lambda: app.store)
        caps = self.transport.capabilities
        self.lease = app.settings.lease or caps.lease_default_s
        self.queues = self._queues()
        self.consumer: Consumer = self._patiently(self._subscribe)
        committer: Committer | None = None
        if self.store is not None and isinstance(self.consumer, SupportsFuse):
            committer = self.consumer.fuse(self.store)
        self.settler = Settler(
            transport=self.transport, consumer=self.consumer, store=self.store, committer=committer,
            events=EventBus(app.plugins.event_sinks(app)), result_ttl=app.settings.result_ttl, worker=self.name,
        )  # fmt: skip
        self.fused = committer is not None
        self.admission = Admission(app, self.settler, worker=self.name)
        self.carrier = Carrier(self)
        self.admission.may_run = self.carrier.may_run
        self.runtime = TaskRuntime(app, self.name)
        self.pool = self._make_pool()
        self.link = LinkServer(app)
        self.engine = InlineEngine(self, self.pool) if self.inline else PoolEngine(self, self.pool, self.slots)
        self.autoscale = Autoscale.of(self)
        self.watch = Watch(self, self.engine)

    def _subscribe(self) -> Any:
        app, names = self.app, [q.queue for q in self.queues]
        dead = [QueueSpec(name=name + DEAD_SUFFIX) for name in names]
        app.components.declare([*map(app.queue_spec, names), *dead])
        consumer = self.transport.consumer()
        try:
            consumer.subscribe(self.queues, order=self.settings.queue_order)
        except BaseException:
            consumer.close()
            raise
        return consumer

    def _patiently(self, step: Callable[[], T]) -> T:
        """Take a step that needs a server, waiting for one that is away, however long; say so once.

        Raises:
            TransportError, StoreError: trying again is pointless.
            StartStopped: the worker is told to stop.
        """
        pause = _FIRST_PAUSE
        while True:
            if self._stop_event.is_set():
                raise StartStopped
            try:
                found = step()
            except (TransportError, StoreError) as error:
                if not error.retryable:
                    raise
                if pause == _FIRST_PAUSE:
                    logger.error("worker %s cannot start yet: %s; waiting for the server", self.name, error)
                self.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
                continue
            if pause != _FIRST_PAUSE:
                logger.info("the server is there; the worker goes on with its start")
            return found

    def _plan(self) -> list[PlannedPool]:
        return plan_pools(self.app, self.settings, embedded=not self.has_process)

    def _make_pool(self) -> Any:
        """Make the one pool, or several that the engine sees as one."""
        app, settings = self.app, self.settings
        made = []
        for planned in self.pools:
            spec = planned.spec
            recycles = spec.capabilities.recycle
            config = PoolConfig(
                concurrency=planned.slots,
                options=app.config.plugin_options("pool", spec.name, spec.options),
                name=self.name,
                max_tasks_per_child=settings.max_tasks_per_child if recycles else None,
                max_memory_per_child=settings.max_memory_per_child if recycles else None,
            )
            made.append(app.plugins.create("pool", spec.name, config))
        if len(made) == 1:
            return made[0]
        return PoolSet(list(zip(self.pools, made, strict=True)), self._route(), self._overflow)

    def _overflow(self, jobs: Sequence[Job]) -> None:
        if isinstance(self.engine, PoolEngine):  # always, where there are several pools
            self.engine.overflow(jobs)

    def _route(self) -> Callable[[Job], int]:
        known: dict[tuple[str, str], int] = {}
        app, pools = self.app, self.pools

        def route(job: Job) -> int:
            key = job.task, job.queue
            index = known.get(key)
            if index is None:
                index = known[key] = pools.index(home(app, app.tasks[job.task], job.queue, pools))
            return index

        return route

    def _queues(self) -> list[Subscription]:
        names: Sequence[str] = self.settings.queues or self.app.queue_names()
        for name in names:
            if name.endswith(DEAD_SUFFIX):
                raise ConfigError(f"{name!r} is a dead-letter queue; a worker cannot serve it. Use `taskq dead replay`")
        configured = self.app.settings.queues
        return [Subscription(n, configured[n].weight if n in configured else 1) for n in dict.fromkeys(names)]

    # --------------------------------------------------------------------------------------------------- running

    def run(self, *, signals: bool = True) -> int:
        """Work until a signal or ``stop()``; return the exit code."""
        self.has_process = signals
        handlers = Signals(self) if signals else None
        try:
            if handlers is not None:
                handlers.install()
            if self._start_up():
                self._work()
        finally:
            if handlers is not None:
                handlers.restore()
        return self.exit_code

    def _start_up(self) -> bool:
        """Prepare; False when a signal or ``stop()`` came first, with nothing left to hand back."""
        try:
            self.starting = True
            try:
                self._prepare()
            finally:
                self.starting = False
        except StartStopped:
            consumer: Consumer | None = getattr(self, "consumer", None)
            if consumer is not None:
                self._quietly(consumer.close)
            logger.info("worker %s stops before it has started", self.name)
            return False
        return True

    def _work(self) -> None:
        app = self.app
        keeper = Keeper(self, self.engine)
        try:
            self.runtime.start()
            self.pool.start(self.runtime, self.engine if isinstance(self.engine, PoolEngine) else _NoSink(self))
            keeper.start()
            app.plugins.worker_ready(self)
            self.ready.set()
            logger.info(
                "worker %s ready: pool %s, concurrency %d, queues %s, broker %s, %s",
                self.name, self.pool_name, self.slots, ", ".join(q.queue for q in self.queues), app.broker_name,
                "no result store" if self.store is None else "results fused" if self.fused else "results stored",
            )  # fmt: skip
            self.engine.run()
        except TaskQError as error:
            self.exit_code = EXIT_FATAL
            logger.critical("worker %s stops: %s", self.name, error)
            raise
        finally:
            self._shut_down(keeper)
        if self.settler.fatal is not None:
            self.exit_code = EXIT_FATAL

    def _shut_down(self, keeper: Keeper) -> None:
        """Hand back what did not start, let the rest end within the grace, settle, close in reverse order."""
        self.stopping = True
        deadline = time.monotonic() + (0.0 if self.interrupted else self.settings.grace)
        plugins = self.app.plugins
        self._quietly(lambda: plugins.worker_stopping(self))
        self.engine.give_back(self.engine.unstarted())
        unfinished: Sequence[int] = ()
        if isinstance(self.engine, PoolEngine):
            self._quietly(self.settler.pump)
            unfinished = self._stop_pool(deadline)
            self.gave_up = True
            self.engine.end()
        rest = [self.held[k] for k in unfinished if k in self.held] or list(self.held.values())
        if rest or self.settler.released:
            self.exit_code = EXIT_UNFINISHED
            number = len(rest) + self.settler.released
            logger.warning("%d task(s) did not end in time; their messages go back to the queue", number)
            self.engine.give_back(rest, started=True)
        if not pump_until(self.settler, time.monotonic() + _FLUSH_TIME):
            self.exit_code = EXIT_UNFINISHED
            logger.error("not everything could be settled; the broker gives it out again")
            self._quietly(self.settler.abandon)
        keeper.stop()
        self._quietly(self.carrier.finish)
        self._quietly(lambda: self.consumer.flush(_FLUSH_TIME))
        self._quietly(self.link.close)
        self._quietly(self.runtime.stop)
        self._quietly(self.consumer.close)
        self._quietly(lambda: plugins.worker_stopped(self))
        self.ready.clear()
        logger.info(
            "worker %s stopped: %d ended, %d failed, %d retried, %d dead", self.name, self.settler.ended,
            self.settler.failed, self.settler.retried, self.settler.dead,
        )  # fmt: skip

    def _stop_pool(self, deadline: float) -> Sequence[int]:
        """Stop the pool; a second signal cuts the wait short."""
        if self.interrupted:
            return self.pool.stop(time.monotonic())  # type: ignore[no-any-return]
        while self.held and time.monotonic() < deadline and not self.interrupted:
            time.sleep(0.01)
        return self.pool.stop(time.monotonic() + (0.2 if not self.held else 0.0))  # type: ignore[no-any-return]

    @staticmethod
    def _quietly(step: Any) -> None:
        try:
            step()
        except Exception:
            logger.exception("a step of the shutdown failed; the shutdown goes on")

    def stop(self, *, interrupt: bool = False) -> None:
        """Take nothing more, finish what runs within the grace, and end; ``interrupt``: do not wait for what runs.

        Any thread or signal handler may call it.
        """
        self.interrupted = self.interrupted or interrupt
        self.stopping = True
        self._stop_event.set()
        consumer = getattr(self, "consumer", None)
        if consumer is not None:
            consumer.wake()
        engine = getattr(self, "engine", None)
        if isinstance(engine, PoolEngine):
            engine._space.set()

    # ----------------------------------------------------------------------------------------------- on a thread

    def start(self, timeout: float = 30.0) -> Worker:
        """Run on a thread of its own; return when messages are taken.

        Raises:
            what ``run`` raises on start; WorkerError when it is not ready within ``timeout`` seconds.
        """
        self._thread = threading.Thread(target=self._run_thread, name=f"taskq-{self.name}", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + timeout
        while not self.ready.wait(0.01):
            if self._failure is not None:
                raise self._failure
            if time.monotonic() > deadline or not self._thread.is_alive():
                self.stop()
                raise WorkerError(f"worker {self.name} was not ready within {timeout:g} s")
        return self

    def _run_thread(self) -> None:
        try:
            self.run(signals=False)
        except BaseException as error:
            self._failure = error

    def join(self, timeout: float | None = None) -> None:
        """Wait for a started worker to end."""
        if self._thread is not None:
            self._thread.join(timeout)

    def __enter__(self) -> Worker:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
        self.join(self.settings.grace + 10)

    # ------------------------------------------------------------------------------------------- for the engines

    def sleep(self, seconds: float) -> None:
        """Sleep, unless the worker is told to stop."""
        self._stop_event.wait(seconds)

    def tick(self, now: float) -> None:
        """Look whether the pool should grow or shrink, whether work goes on, and whether somebody wants a dump."""
        if self.autoscale is not None:
            self.autoscale.tick(now)
        if self.watch is not None:
            self.watch.tick(now)
        if self.dump_wanted:
            self.dump_wanted = False
            self._watched().dump()

    def health(self) -> Health:
        """Return how this worker is, for probes; any thread, once it has started.

        Raises:
            WorkerError: it was not started.
        """
        return self._watched().health()

    def running(self, *, stacks: bool = False) -> list[RunningTask]:
        """Return the tasks that run now, the oldest first, with their stacks if asked for. Raises as ``health``."""
        return self._watched().running(stacks=stacks)

    def _watched(self) -> Watch:
        if self.watch is None:
            raise WorkerError(f"worker {self.name} has not been started")
        return self.watch

    def fail(self, error: WorkerError) -> None:
        """End this worker because it cannot go on; any thread."""
        logger.critical("%s", error)
        self.settler.fatal = error
        self.stop()

    def broker_failed(self, error: TransportError) -> None:
        """Say once that the broker is away; raise when trying again is pointless."""
        if not error.retryable:
            raise error
        if not self.broker_down:
            logger.error("the broker is not available: %s; trying again until it is back", error)
            self.broker_down = True

    def broker_back(self) -> None:
        """Say that the broker is back."""
        if self.broker_down:
            logger.info("the broker is back")
            self.broker_down = False

    def store_failed(self, error: StoreError | TransportError) -> None:
        """Say that a careful start has to wait."""
        logger.error("a task waits to be started: %s; trying again", error)


class _NoSink:
    """The sink of an inline pool, which reports by return value; it only hears of a broken runtime."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def started(self, keys: Sequence[int]) -> None:
        """Nothing waits for it."""

    def finished(self, batch: Sequence[Finished]) -> None:
        """Queue ends that did not come by return value."""
        self._worker.engine.collect(batch)

    def returned(self, keys: Sequence[int]) -> None:
        """Hand jobs back."""
        held = self._worker.held
        self._worker.engine.give_back([held[k] for k in keys if k in held])

    def crashed(self, running: Sequence[int], unstarted: Sequence[int], reason: str) -> None:
        """Hand jobs back; running ones count as started."""
        logger.error("%s", reason)
        held = self._worker.held
        self._worker.engine.give_back([held[k] for k in running if k in held], counted=True, started=True)
        self._worker.engine.give_back([held[k] for k in unstarted if k in held])

    def aborted(self, keys: Sequence[int], error: TaskQError) -> None:
        """End jobs that the pool has ended."""
        self._worker.engine.abort(keys, error)

    def request(self, data: bytes, reply: Callable[[bytes], None]) -> None:
        """Nobody asks: there is no child process."""
        raise NotSupported("an inline pool has no child processes")
