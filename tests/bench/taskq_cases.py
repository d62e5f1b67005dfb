"""What only taskq is asked: start-up, the memory transport, a growing backlog, the size of a message, idling."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from tests.bench.cases import drained
from tests.bench.contender import START_TIMEOUT, Contender, Failed, RunningWorker, box, how, run
from tests.bench.measure import Table, cpu_seconds, resident_mb, tree, wait_for

GOALS = {
    ("start", "import taskq"): "≤ 60",
    ("start", "taskq --version"): "≤ 150",
    ("start", "taskq plugins list"): "≤ 250",
    ("memory", "drain, one thread"): "≥ 200,000",
    ("memory", "cost of a task"): "≤ 5",
    ("idle", "resident memory"): "≤ 45",
    ("idle", "processor"): "< 1",
}
TITLES = {
    "start": "Start-up",
    "memory": "Memory transport, solo pool, one process",
    "idle": "An idle worker",
    "backlog": "Cost of a task as the backlog grows",
    "queues": "Cost of a task as a worker's queues become more",
    "size": "Size of a message",
}
_PROGRAM = str(Path(sys.executable).with_name("taskq"))
_IMPORT = "import time; t = time.perf_counter(); import taskq; print(1000 * (time.perf_counter() - t))"


def start(table: Table, rounds: int) -> None:
    """Time what a person waits for at a prompt, the bare interpreter beside it."""
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "taskq --version": [_PROGRAM, "--version"],
        "taskq plugins list": [_PROGRAM, "plugins", "list"],
        "taskq --help": [_PROGRAM, "--help"],
    }
    for number in range(rounds + 1):
        done = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True)
        if number:
            table.add("start", "import taskq", "taskq", "ms", float(done.stdout))
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, capture_output=True, check=True)
            if number:  # the first round fills the file cache
                table.add("start", name, "taskq", "ms", 1000 * (time.perf_counter() - began))


def memory(table: Table, rounds: int, count: int, work: Path) -> None:
    """Send and drain in one process, without a server or a disk."""
    for _ in range(rounds):
        with box(Contender("taskq", "tests.bench.taskq_app", url="memory://"), work, "") as made:
            done = run([sys.executable, "-m", __name__, str(count)], env=made.environment)
        if done.returncode:
            table.fail("memory", "drain", "taskq", how(done.returncode, done.stderr))
            return
        answer = json.loads(done.stdout)
        table.add("memory", "enqueue one by one", "taskq", "tasks/s", answer["single"])
        table.add("memory", "enqueue in bulk", "taskq", "tasks/s", answer["bulk"])
        table.add("memory", "drain, one thread", "taskq", "tasks/s", answer["rate"])
        table.add("memory", "cost of a task", "taskq", "µs", 1e6 / answer["rate"])
        table.add("size", "no-op, no result expected", "taskq", "bytes", answer["plain bytes"])
        table.add("size", "no-op, result expected", "taskq", "bytes", answer["kept bytes"])


def memory_side(count: int) -> None:
    """Run in a process of its own: one thread sends, then the same one drains."""
    from tests.bench.stopwatch import Counter
    from tests.bench.taskq_app import app, kept, plain, send

    sizes = {}
    transport = app.transport
    accept = transport.send
    for name, task in {"plain": plain, "kept": kept}.items():
        seen: list[int] = []
        transport.send = lambda batch, seen=seen: seen.extend(len(o.payload) for o in batch) or ()  # type: ignore[method-assign]
        task.delay()
        sizes[f"{name} bytes"] = max(seen)
    transport.send = accept  # type: ignore[method-assign]

    began = time.perf_counter()
    send(count // 4, bulk=False, results=False)
    single = count // 4 / (time.perf_counter() - began)
    began = time.perf_counter()
    send(count - count // 4, bulk=True, results=False)
    bulk = (count - count // 4) / (time.perf_counter() - began)

    counter = Counter(os.environ["BENCH_COUNT"])
    with app.worker(pool="solo"):
        wait_for(lambda: counter.read() > count // 20, 60)
        low, began = counter.read(), time.monotonic()
        wait_for(lambda: counter.read() >= count, 60)
        rate = (counter.read() - low) / (time.monotonic() - began)
    print(json.dumps({"single": single, "bulk": bulk, "rate": rate, **sizes}))


def backlog(table: Table, factor: float, *, full: bool, work: Path) -> None:
    """Drain a small and a large backlog, and look at the worker's memory on the way."""
    redis = os.environ.get("TASKQ_TEST_REDIS_URL", "")
    prefork = entry_points(group="taskq.pools", name="prefork")
    for name, url, server, large in (
        ("SQLite", "sqlite:///{folder}/taskq.db", "", 1_000_000 if full else 200_000),
        *([("Redis", "", redis, 1_000_000)] if redis else []),
        *([("Redis, prefork 2", "", redis, 1_000_000)] if redis and prefork and full else []),
    ):
        label = f"taskq, {name}"
        environment = {"BENCH_POOL": "-P prefork -c 2"} if "prefork" in name else {}
        contender = Contender(label, "tests.bench.taskq_app", url=url, environment=environment)
        for count in (int(10_000 * factor), int(large * factor)):
            case = f"drain of {count:,} queued"
            with noted(table, "backlog", case, label), box(contender, work, server) as made:
                for start in range(0, count, 100_000):
                    made.side("send", min(100_000, count - start), "bulk", "plain")
                made.close()
                with made.worker() as worker:
                    at = resident_while(worker, count)
                    _, rate, note = at.pop("rate")
                    table.add("backlog", case, label, "tasks/s", rate, note=note)
                    for share, megabytes in at.items() if count > 10_000 * factor else ():
                        table.add("backlog", f"memory after {share} of {count:,}", label, "MB", megabytes)


def delayed(table: Table, many: int, work: Path) -> None:
    """Look at a worker's memory beside tasks that wait for their time on the server."""
    server = os.environ.get("TASKQ_TEST_REDIS_URL", "")
    for count in (0, many) if server else ():
        case, label = f"memory beside {count:,} delayed tasks", "taskq, Redis"
        contender = Contender(label, "tests.bench.taskq_app", environment={"BENCH_COUNTDOWN": "3600"})
        with noted(table, "backlog", case, label), box(contender, work, server) as made:
            for start in range(0, count, 100_000):
                made.side("send", min(100_000, count - start), "bulk", "plain")
            made.side("send", 1, "single", "results")
            made.close()
            with made.worker() as worker:
                if not worker.wait(2, START_TIMEOUT):
                    raise Failed("it did not become ready")
                time.sleep(2.0)
                table.add("backlog", case, label, "MB", resident_mb(tree(worker.process.pid)))


def resident_while(worker: RunningWorker, count: int) -> dict[str, Any]:
    """Return the worker's memory after shares of a drain, and its rate."""
    found: dict[str, Any] = {}
    pids: list[int] = []

    def look() -> None:
        for share in (10, 50, 100):
            worker.wait(count * share // 100, 60)
            pids[:] = pids or tree(worker.process.pid)
            found[f"{share} %"] = resident_mb(pids)

    watching = threading.Thread(target=look)
    watching.start()
    rate = drained(worker, count, 60)
    watching.join()
    return {"rate": rate, **found}


def queues(table: Table, count: int, *, full: bool, work: Path) -> None:
    """Drain one queue and then a thousand of them with one worker; on Redis, count what the server is asked."""
    brokers = {
        "Redis": ("", os.environ.get("TASKQ_TEST_REDIS_URL", "")),
        "RabbitMQ, classic": ("{database}?queue_type=classic", os.environ.get("TASKQ_TEST_RABBITMQ_URL", "")),
        "ZeroMQ": ("zeromq://127.0.0.1:{port}", ""),
    }
    for name, (url, server) in brokers.items():
        if not (server or name == "ZeroMQ") or (name.startswith("Rabbit") and not full):
            continue
        for number in (1, 1000):
            case, label = f"drain of {number:,} queue{'s' * (number > 1)}", f"taskq, {name}"
            contender = Contender(label, "tests.bench.taskq_app", url, environment={"BENCH_QUEUES": str(number)})
            with noted(table, "queues", case, label), box(contender, work, server) as made:
                made.side("send", count, "bulk", "plain")
                made.close()
                before = reads(server)
                with made.worker() as worker:
                    _, rate, note = drained(worker, count)
                    asked = reads(server) - before
                table.add("queues", case, label, "tasks/s", rate, note=note)
                if asked:
                    table.add(
                        "queues", f"{case}: round trips per 1,000 tasks", label, "reads by the server",
                        1000 * asked / count,
                    )  # fmt: skip


def reads(server: str) -> int:
    """Return how many times a Redis server has read from its clients; 0 of another one."""
    if not server.startswith("redis"):
        return 0
    import redis

    with redis.Redis.from_url(server) as client:
        found: int = client.info("stats")["total_reads_processed"]  # type: ignore[index]
        return found


@contextlib.contextmanager
def noted(table: Table, group: str, case: str, label: str) -> Iterator[None]:
    """Note what fails, and go on."""
    try:
        yield
    except Failed as error:
        table.fail(group, case, label, str(error))
    except Exception as error:  # a server's surprise must not end the run
        table.fail(group, case, label, f"{type(error).__name__}: {error}"[:300])


def idle(table: Table, contenders: list[Contender], seconds: float, work: Path) -> None:
    """Let a worker of each contender idle, all at the same time, and add up what each uses."""
    with contextlib.ExitStack() as stack:
        idling: dict[str, list[int]] = {}
        for contender in contenders:
            with noted(table, "idle", "idle", contender.label):
                made = stack.enter_context(box(contender, work, ""))
                made.side("send", 1, "single", "plain")
                made.close()
                worker = stack.enter_context(made.worker())
                if not worker.wait(2, START_TIMEOUT):
                    raise Failed("it did not become ready")
                idling[contender.label] = tree(worker.process.pid)
        time.sleep(2.0)
        used = {label: cpu_seconds(pids) for label, pids in idling.items()}
        began = time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - began
        for label, pids in idling.items():
            note = f"{len(pids)} processes" if len(pids) > 1 else ""
            table.add("idle", "resident memory", label, "MB", resident_mb(pids), note=note)
            table.add("idle", "processor", label, "% of a core", 100 * (cpu_seconds(pids) - used[label]) / took)


if __name__ == "__main__":
    memory_side(int(sys.argv[1]))
