"""The worker: takes messages, has their tasks run, and ends them."""

from __future__ import annotations

import itertools
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from taskq.errors import ConfigError, NotSupported, StoreError, TaskQError, TransportError, WorkerError
from taskq.link import LinkServer
from taskq.message import Job, Subscription
from taskq.routing import DEAD_SUFFIX
from taskq.runtime import TaskRuntime
from taskq.spi.specs import PoolConfig
from taskq.spi.store import ResultStore
from taskq.worker.autoscale import Autoscale
from taskq.worker.flag import Flag
from taskq.worker.inline import InlineSink
from taskq.worker.lane import Lane
from taskq.worker.plan import PlannedPool, home, plan_pools
from taskq.worker.pooled import PoolEngine
from taskq.worker.pools import PoolSet
from taskq.worker.settler import pump_until
from taskq.worker.sharing import SharedPool
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
        self.ready = threading.Event()
        self.lanes: list[Lane] = []
        """What it has once per broker."""
        self.job_keys = itertools.count(1)
        self.inline = False
        self.exit_code = EXIT_OK
        self._stop_event = Flag()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._lane_error: BaseException | None = None
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
        self.lanes = self._make_lanes()
        app.plugins.worker_starting(self)
        only = self.lanes[0] if len(self.lanes) == 1 else None
        if only is not None:
            self._patiently(only.open)
        self.store: ResultStore | None = self._patiently(lambda: app.store)
        if only is not None:
            self._patiently(only.subscribe)
        self.runtime = TaskRuntime(app, self.name)
        self.pool = self._make_pool()
        self.link = LinkServer(app)
        if only is not None:
            only.build(self.pool)
        else:
            self._shared = SharedPool(self.pool)
            for lane in self.lanes:
                self._bring_up(lane)
        self.autoscale = Autoscale.of(self)
        self.watch = Watch(self)

    def _make_lanes(self) -> list[Lane]:
        subscriptions = {subscription.queue: subscription for subscription in self._queues()}
        brokers = self.app.components.by_broker(list(subscriptions))
        if len(brokers) > 1 and self.inline:
            raise NotSupported(
                f"pool {self.pool_name} takes and runs on one thread and serves one broker; this worker's queues are "
                f"on {', '.join(map(self.app.components.label, brokers))}. "
                "Choose -P threads, or a worker per broker (-Q)"
            )
        if self.settings.prefetch is not None and self.settings.prefetch < len(brokers):
            raise ConfigError(
                f"worker.prefetch is {self.settings.prefetch}, but this worker takes messages from {len(brokers)} "
                "brokers"
            )
        return [Lane(self, broker, [subscriptions[name] for name in names]) for broker, names in brokers.items()]

    def _bring_up(self, lane: Lane, *, patient: bool = False) -> None:
        """Make one of several lanes ready to run; one whose broker is away is left for its thread, if not patient."""
        try:
            if patient:
                self._patiently(lane.open, quietly=True)
                self._patiently(lane.subscribe, quietly=True)
            else:
                lane.open()
                lane.subscribe()
        except TransportError as error:
            if patient or not error.retryable:
                raise
            logger.error("broker %s is not available: %s; the worker starts without it, and waits for it", lane.label,
                         error)  # fmt: skip
            return
        lane.build(self._shared.share())

    def _patiently(self, step: Callable[[], T], *, quietly: bool = False) -> T:
        """Take a step that needs a server, waiting for one that is away, however long; say so once, if not quietly.

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
                if pause == _FIRST_PAUSE and not quietly:
                    logger.error("worker %s cannot start yet: %s; waiting for the server", self.name, error)
                self.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
                continue
            if pause != _FIRST_PAUSE and not quietly:
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
        if len(self.lanes) > 1:
            self._shared.overflow(jobs)
        elif isinstance(engine := self.lanes[0].engine, PoolEngine):  # always, where there are several pools
            engine.overflow(jobs)

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
            for lane in self.lanes:
                self._quietly(lane.leave)
            logger.info("worker %s stops before it has started", self.name)
            return False
        return True

    def _work(self) -> None:
        app = self.app
        threads = [
            threading.Thread(target=self._run_lane, args=(lane,), name=f"taskq-lane-{lane.broker}", daemon=True)
            for lane in self.lanes[1:]
        ]
        try:
            self.runtime.start()
            self.pool.start(self.runtime, self._sink())
            for lane in self.lanes_up:
                lane.keeper.start()
            self._watched().start()
            app.plugins.worker_ready(self)
            self.ready.set()
            queues = [q.queue for lane in self.lanes for q in lane.queues]
            fused = all(lane.fused for lane in self.lanes)
            logger.info(
                "worker %s ready: pool %s, concurrency %d, queues %s, broker %s, %s", self.name, self.pool_name,
                self.slots, ", ".join(queues), ", ".join(lane.label for lane in self.lanes),
                "no result store" if self.store is None else "results fused" if fused else "results stored",
            )  # fmt: skip
            for thread in threads:
                thread.start()
            self.lanes[0].run()
            if self._lane_error is not None:
                raise self._lane_error
        except TaskQError as error:
            self.exit_code = EXIT_FATAL
            logger.critical("worker %s stops: %s", self.name, error)
            raise
        finally:
            self._shut_down(threads)
        if any(lane.settler.fatal is not None for lane in self.lanes_up):
            self.exit_code = EXIT_FATAL

    def _sink(self) -> Any:
        """Return what the pool reports to."""
        if len(self.lanes) > 1:
            return self._shared
        engine = self.lanes[0].engine
        return engine if isinstance(engine, PoolEngine) else InlineSink(self.lanes[0])

    def bring_up(self, lane: Lane) -> None:
        """Wait for the broker of a lane that could not be brought up at the start, and bring it up."""
        self._bring_up(lane, patient=True)
        lane.keeper.start()
        logger.info("broker %s is there; its queues are served from now on", lane.label)

    def _run_lane(self, lane: Lane) -> None:
        """Run one of several lanes on a thread of its own; where it cannot go on, the whole worker ends."""
        try:
            lane.run()
        except BaseException as error:
            self._lane_error = error
            if not isinstance(error, TaskQError):
                logger.exception("broker %s: an unexpected error; the worker ends", lane.label)
        if not self.stopping:
            self.stop()

    def _shut_down(self, threads: Sequence[threading.Thread]) -> None:
        """Hand back what did not start, let the rest end within the grace, settle, close in reverse order."""
        self.stopping = True
        deadline = time.monotonic() + (0.0 if self.interrupted else self.settings.grace)
        plugins = self.app.plugins
        self._quietly(lambda: plugins.worker_stopping(self))
        if threads:
            self._stop_event.set()
        for lane in self.lanes[1:]:
            lane.wake()
        for thread in threads:
            if thread.ident is not None:
                thread.join(timeout=_FLUSH_TIME)
        # those whose broker is away last: what waits for it must not keep the others
        lanes = sorted(self.lanes_up, key=lambda lane: lane.broker_down or lane.settler.blocked)
        for lane in lanes:
            lane.engine.give_back(lane.engine.unstarted())
        unfinished: Sequence[int] = ()
        if not self.inline:
            for lane in lanes:
                self._quietly(lane.settler.pump)
            unfinished = self._stop_pool(deadline)
            self.gave_up = True
            for lane in lanes:
                lane.engine.end()
        for lane in lanes:
            self._hand_back(lane, unfinished)
        for lane in lanes:
            if not pump_until(lane.settler, time.monotonic() + _FLUSH_TIME):
                self.exit_code = EXIT_UNFINISHED
                logger.error("not everything could be settled; the broker gives it out again")
                self._quietly(lane.settler.abandon)
        self._quietly(self._watched().stop)
        for lane in lanes:
            lane.keeper.stop()
            self._quietly(lane.carrier.finish)
            self._quietly(lambda lane=lane: lane.consumer.flush(_FLUSH_TIME))
        self._quietly(self.link.close)
        self._quietly(self.runtime.stop)
        for lane in self.lanes:
            self._quietly(lane.leave)
        self._quietly(lambda: plugins.worker_stopped(self))
        self.ready.clear()
        ended, failed, retried, dead = (
            sum(getattr(lane.settler, count) for lane in lanes) for count in ("ended", "failed", "retried", "dead")
        )
        logger.info(
            "worker %s stopped: %d ended, %d failed, %d retried, %d dead", self.name, ended, failed, retried, dead
        )

    def _hand_back(self, lane: Lane, unfinished: Sequence[int]) -> None:
        """Give back what did not end in time."""
        rest = [lane.held[k] for k in unfinished if k in lane.held] or list(lane.held.values())
        if rest or lane.settler.released:
            self.exit_code = EXIT_UNFINISHED
            number = len(rest) + lane.settler.released
            logger.warning("%d task(s) did not end in time; their messages go back to the queue", number)
            lane.engine.give_back(rest, started=True)

    def _stop_pool(self, deadline: float) -> Sequence[int]:
        """Stop the pool; a second signal cuts the wait short."""
        if self.interrupted:
            return self.pool.stop(time.monotonic())  # type: ignore[no-any-return]
        while self.held_count() and time.monotonic() < deadline and not self.interrupted:
            time.sleep(0.01)
        return self.pool.stop(time.monotonic() + (0.2 if not self.held_count() else 0.0))  # type: ignore[no-any-return]

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
        for lane in self.lanes:
            lane.wake()

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
        for lane in self.lanes_up:
            lane.settler.fatal = error
        self.stop()

    # ------------------------------------------------------------------------------------------------ all lanes

    @property
    def lanes_up(self) -> list[Lane]:
        """The lanes that take messages, or did: those whose broker was there."""
        return [lane for lane in self.lanes if lane.up]

    def held_count(self) -> int:
        """Return how many messages are held."""
        return sum(len(lane.held) for lane in self.lanes)

    def find_held(self, key: int) -> Job | None:
        """Return a job that is held, by its key."""
        return next((job for lane in self.lanes if (job := lane.held.get(key)) is not None), None)
