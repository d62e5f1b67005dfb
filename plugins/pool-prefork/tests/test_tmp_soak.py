"""Children are killed and stopped at random while messages go through them: nothing is lost, nothing gets stuck."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import pytest

PATIENCE_S = 60.0
SOAK = bool(os.environ.get("TASKQ_SOAK"))
SECONDS = 60.0

MIXED = """
    @app.task
    def sends(x):
        return echo.delay(x).id

    @app.task
    def naps(x):
        time.sleep(x / 1000)
        return x

    @app.task
    def big(x):
        return "x" * (x * 10_000)

    @app.task(ignore_result=True)
    def counted(x):
        note("counted", x)
"""


def mischief(site, chance, over, deeds):
    """Kill and stop children, and now and then the fork server, at random moments."""
    while not over.is_set():
        time.sleep(chance.choice([0.0005, 0.005, 0.05]) * chance.random() * 2)
        try:
            victim = site.server if chance.random() < 0.03 else chance.choice(site.children)
            what = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP])
            os.kill(victim, what)
        except (IndexError, ProcessLookupError, AttributeError):
            continue  # there is none just now
        deeds.append(what)
        if what == signal.SIGSTOP and chance.random() < 0.7:
            time.sleep(chance.random() * 0.1)
            try:
                os.kill(victim, signal.SIGCONT)
            except ProcessLookupError:
                pass
        time.sleep(0.03 + chance.random() * 0.1)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("site", ["sqlite", pytest.param("redis", marks=pytest.mark.server)], indirect=True)
def test_nothing_is_lost_or_stuck_when_children_are_killed_and_stopped(site, monkeypatch, caplog, fault_seed):
    seed = fault_seed
    chance = random.Random(seed)
    caplog.set_level("CRITICAL", "taskq")
    monkeypatch.setattr("taskq_pool_prefork.supervisor.SERVER_PATIENCE_S", 0.5)
    monkeypatch.setattr("taskq_pool_prefork.supervisor.LONGEST_PAUSE", 0.2)
    monkeypatch.setattr("taskq_pool_prefork.limits.LEAVE_S", 0.5)
    site.start(
        MIXED, concurrency=3, max_deliveries=10_000, max_tasks_per_child=200,
        options={"child_unresponsive": 0.3},
    )  # fmt: skip
    site.pool._supervisor._watch.start_timeout = 2.0  # from now on: a child may be stopped while it starts
    tasks = site.app.tasks
    over, deeds = threading.Event(), []
    thief = threading.Thread(target=mischief, args=(site, random.Random(seed + 1), over, deeds))
    thief.start()
    total = 0
    try:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            picks = [(chance.choice(["echo", "echo", "sends", "naps", "big", "counted"]), chance.randrange(12))
                     for _ in range(chance.choice([1, 20, 150]))]  # fmt: skip
            results = site.app.send_many([tasks[f"{site.module}.{name}"].s(x) for name, x in picks])
            total += len(picks)
            for (name, x), result in zip(picks, results, strict=True):
                if name == "counted":
                    continue
                value = result.get(timeout=PATIENCE_S)
                if name == "sends":
                    assert site.app.AsyncResult(value).get(timeout=PATIENCE_S) == x
                else:
                    assert value == ("x" * (x * 10_000) if name == "big" else x)
    finally:
        over.set()
        thief.join()
    site.eventually(lambda: site.pool.free() == 3, "nothing is held any more", 20)
    counts = site.app.transport.stats(["default"])["default"]
    assert (counts.ready, counts.in_flight) == (0, 0)
    assert len(deeds) > 10
    print(f"{total} tasks, {len(deeds)} faults")


if SOAK:
    test_nothing_is_lost_or_stuck_when_children_are_killed_and_stopped = pytest.mark.soak(
        test_nothing_is_lost_or_stuck_when_children_are_killed_and_stopped
    )
