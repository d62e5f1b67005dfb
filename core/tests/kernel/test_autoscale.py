"""What the worker tells its autoscaler, and what it shows of the answer."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import pytest  # noqa: TC002
from msgspec import structs

from taskq.spi.scheduling import LoadSample
from taskq.worker.autoscale import CpuMeter
from taskq_transport_memory.transport import MemoryTransport


class Recorder:
    """Wants a fixed number of slots."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.samples: list[LoadSample] = []

    def decide(self, sample: LoadSample, state: Any) -> tuple[int, Any]:
        self.samples.append(sample)
        return self.wanted, state


def test_what_is_wanted_is_shown_before_the_bounds(rig: Any, caplog: pytest.LogCaptureFixture) -> None:
    app = rig.app()
    app.task(name="noop")(lambda: None)
    with caplog.at_level(logging.INFO, "taskq.worker"):
        worker = app.worker(pool="threads", autoscale=(1, 3)).start()
        worker.autoscale._autoscaler = Recorder(50)
        worker.autoscale._next = 0.0
        rig.eventually(lambda: worker.slots == 3)
        assert worker.wanted_slots == 50
        worker.stop()
        worker.join()
    record = next(r for r in caplog.records if "autoscale" in r.getMessage())
    assert (record.slots, record.wanted_slots) == (3, 50)  # type: ignore[attr-defined]


def test_the_time_that_started_tasks_have_waited_is_told(rig: Any) -> None:
    app = rig.app()
    gate = threading.Event()
    app.task(name="wait")(lambda: gate.wait(10) and None)
    app.tasks["wait"].delay()
    time.sleep(0.3)
    worker = app.worker(pool="threads", concurrency=2, autoscale=(2, 2)).start()
    recorder = worker.autoscale._autoscaler = Recorder(2)
    worker.autoscale._next = 0.0
    try:
        rig.eventually(lambda: recorder.samples)
        sample = recorder.samples[0]
        assert sample.wait_p95 is None or 0.25 <= sample.wait_p95 < 10
        rig.eventually(lambda: worker.lanes[0].held)
        worker.autoscale._at = 0.0
        waited = worker.autoscale._waited(0.0)
        assert waited is not None
        assert 0.25 <= waited < 10
        assert worker.autoscale._waited(time.monotonic()) is None, "it was not started since then"
    finally:
        gate.set()
        worker.stop()
        worker.join()


def test_the_cpu_meter_sees_this_process_and_those_below() -> None:
    import subprocess
    import sys

    meter = CpuMeter()
    assert meter.share(time.monotonic()) is None
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        deadline = time.monotonic() + 20
        share = None
        while not share or share < 0.02:
            time.sleep(0.2)
            share = meter.share(time.monotonic())
            assert time.monotonic() < deadline, f"a busy child is not seen: {share}"
        assert share <= 1.0
    finally:
        busy.kill()
        busy.wait()


def test_what_may_be_held_suffices_for_all_slots_to_come(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that gives out few messages at a time must not keep a grown pool from filling its slots."""
    few = structs.replace(MemoryTransport.capabilities.fget(None), max_fetch_batch=1)  # type: ignore[attr-defined]
    monkeypatch.setattr(MemoryTransport, "capabilities", property(lambda self: few))
    app, gate = rig.app(), threading.Event()
    app.task(name="wait")(lambda: gate.wait(20) and None)
    results = [app.tasks["wait"].delay() for _ in range(8)]
    worker = app.worker(pool="threads", autoscale=(1, 8)).start()
    try:
        worker.autoscale._autoscaler = Recorder(8)
        worker.autoscale._next = 0.0
        rig.eventually(lambda: len(worker.running()) == 8)
    finally:
        gate.set()
        for result in results:
            result.get(timeout=10)
        worker.stop()
        worker.join()
