"""What only taskq is asked: start-up, the memory transport, a growing backlog, the size of a message, idling."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.cases import drained
from tests.bench.contender import START_TIMEOUT, Contender, Failed, box, how, run
from tests.bench.measure import Table, cpu_seconds, resident_mb, tree

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
    "backlog": "SQLite file: cost of a task as the backlog grows",
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
            environment = {**made.environment, "BENCH_MARKS": f"{count // 20},{count}"}
            done = run([sys.executable, "-m", __name__, str(count)], env=environment)
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
    from tests.bench import taskq_app
    from tests.bench.taskq_app import app, kept, noop, send

    sizes = {}
    transport = app.transport
    accept = transport.send
    for name, task in {"plain": noop, "kept": kept}.items():
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

    worker = app.worker(pool="solo")
    marks = Path(taskq_app.__dict__["os"].environ["BENCH_MARKS_FILE"])
    with worker:
        while not marks.exists() or marks.read_text().count("\n") < 2:
            time.sleep(0.05)
    (low, began), (high, ended) = (map(float, line.split()) for line in marks.read_text().splitlines())
    print(json.dumps({"single": single, "bulk": bulk, "rate": (high - low) / (ended - began), **sizes}))


def backlog(table: Table, rounds: int, large: int, work: Path) -> None:
    """Drain a small and a large backlog in turns."""
    contender = Contender("taskq", "tests.bench.taskq_app", url="sqlite:///{folder}/taskq.db")
    for _ in range(rounds):
        for count in (10_000, large):
            case = f"drain of {count:,} queued"
            try:
                with box(contender, work, "") as made:
                    made.side("send", count, "bulk", "plain")
                    table.add("backlog", case, "taskq", "tasks/s", drained(made, count + 1)[1])
            except Failed as error:
                table.fail("backlog", case, "taskq", str(error))


def idle(table: Table, contenders: list[Contender], seconds: float, work: Path) -> None:
    """Let a worker of each contender idle, all at the same time, and add up what each uses."""
    with contextlib.ExitStack() as stack:
        idling: dict[str, list[int]] = {}
        for contender in contenders:
            try:
                made = stack.enter_context(box(contender, work, ""))
                made.side("send", 1, "single", "plain")
                worker = stack.enter_context(made.worker([1, 2]))
                if not worker.wait(2, START_TIMEOUT):
                    raise Failed("it did not become ready")
                idling[contender.label] = tree(worker.process.pid)
            except Failed as error:
                table.fail("idle", "idle", contender.label, str(error))
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
