"""`make demo`: start workers, fan one task per file out over real files, reduce the results to a table.

    python docs/examples/demo/run.py [FOLDER] [--workers N] [--keep]

The task and its application are in source_stats.py. Broker and results are one SQLite file in a temporary folder, which
is removed at the end unless --keep is given.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SKIPPED = {"__pycache__", "site-packages", "dist-packages", "node_modules"}
COLUMNS = ("files", "lines", "words", "functions", "classes")
ROWS = 12
SILENCE = 60.0
"""Seconds without a finished task after which the demo gives up."""


asked: list[int] = []
"""The signal that asked to stop. It is looked at where stopping is safe: nothing is struck in the middle of a step."""


class DemoError(Exception):
    """Something that the person at the terminal can do something about."""


class Stopped(Exception):
    """A signal asked to stop."""


def on_signal(number: int, frame: Any) -> None:
    if asked:  # somebody has no patience
        raise KeyboardInterrupt
    asked.append(number)


def go_on() -> None:
    if asked:
        raise Stopped


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure source files with a task queue.")
    parser.add_argument("folder", nargs="?", help="folder of files to measure; default: Python's standard library")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="worker processes (default 2)")
    parser.add_argument("--keep", action="store_true", help="keep the queue and the logs, to look at them afterwards")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore", SyntaxWarning)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    scratch = Path(tempfile.mkdtemp(prefix="taskq-demo-"))
    # No other configuration may leak in from the environment: this is the embedded default.
    for name in [name for name in os.environ if name.startswith("TASKQ_")]:
        del os.environ[name]
    os.environ["TASKQ_BROKER"] = f"sqlite:///{scratch}/queue.db"
    workers: list[subprocess.Popen[bytes]] = []
    try:
        folder = Path(options.folder or sysconfig.get_path("stdlib")).expanduser().absolute()
        files = find_files(folder)
        sys.path.insert(0, str(HERE))
        from source_stats import app  # the module that the workers import, too

        app.connect()  # makes the queue's file, before the workers come
        for i in range(max(1, options.workers)):
            go_on()
            workers.append(start_worker(scratch / f"worker-{i + 1}.log"))
        print(f"{len(files)} files below {folder}; {len(workers)} worker(s), embedded SQLite queue in {scratch}")
        measured, failures = fan_out(files, workers, scratch)
        print_table(measured, folder)
        print_failures(failures, folder)
        stop_workers(workers)
        look_around(scratch, keep=options.keep)
        return 0
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except (Stopped, KeyboardInterrupt):
        print("\ndemo: stopped", file=sys.stderr)
        return 128 + asked[0]
    finally:
        stop_workers(workers)
        if "source_stats" in sys.modules:
            sys.modules["source_stats"].app.close()
        if not options.keep:
            shutil.rmtree(scratch, ignore_errors=True)


def find_files(folder: Path) -> list[Path]:
    """Return the Python files below a folder, or all its files where there is no Python."""
    if not folder.exists():
        raise DemoError(f"there is no folder {folder}; give one with make demo FOLDER=…")
    if not folder.is_dir():
        raise DemoError(f"{folder} is a file; give a folder of files with make demo FOLDER=…")
    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=None):
        go_on()
        folders[:] = sorted(f for f in folders if f not in SKIPPED and not f.startswith("."))
        found += [Path(parent, name) for name in sorted(names) if not name.startswith(".")]
    files = [path for path in found if path.suffix == ".py"] or found
    if not files:
        raise DemoError(f"{folder} holds no files that could be measured; give another one with make demo FOLDER=…")
    return files


def start_worker(log: Path) -> subprocess.Popen[bytes]:
    """Start `taskq -A source_stats worker`, in a session of its own so that Ctrl-C reaches this program alone."""
    command = [sys.executable, "-m", "taskq", "-A", "source_stats", "worker"]
    with log.open("wb") as file:
        return subprocess.Popen(command, cwd=HERE, stdin=subprocess.DEVNULL, stderr=file, start_new_session=True)


def stop_workers(workers: list[subprocess.Popen[bytes]]) -> None:
    """Ask all to stop, and wait; a worker that does not is killed."""
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
    for worker in workers:
        try:
            worker.wait(timeout=10)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
    workers.clear()


def fan_out(
    files: list[Path], workers: list[subprocess.Popen[bytes]], scratch: Path
) -> tuple[dict[Path, dict[str, int]], dict[Path, BaseException]]:
    """Send one task per file, and collect the results as they come."""
    from source_stats import app, measure

    go_on()
    began = time.perf_counter()
    results = app.send_many([measure.s(str(path)) for path in files])
    sent = time.perf_counter() - began
    print(f"{len(results)} tasks sent in {sent:.2f} s: {len(results) / sent:,.0f} tasks/s")

    path_of = dict(zip((result.id for result in results), files, strict=True))
    measured: dict[Path, dict[str, int]] = {}
    failures: dict[Path, BaseException] = {}
    progress = Progress(len(results))
    for result in finished(results, workers, scratch):
        value: Any = result.get(propagate=False)
        if isinstance(value, BaseException):
            failures[path_of[result.id]] = value
        else:
            measured[path_of[result.id]] = value
        progress.step()
    seconds = time.perf_counter() - began
    progress.end()
    print(f"{len(results)} tasks done in {seconds:.2f} s: {len(results) / seconds:,.0f} tasks/s, results included")
    return measured, failures


def finished(results: list[Any], workers: list[subprocess.Popen[bytes]], scratch: Path) -> Iterator[Any]:
    """Yield results as their tasks end; notice when nothing will ever end because the workers did."""
    from taskq import TaskTimeout, as_completed

    pending = {result.id: result for result in results}
    last = time.monotonic()
    while pending:
        go_on()
        try:
            for result in as_completed(list(pending.values()), timeout=1):
                go_on()
                del pending[result.id]
                last = time.monotonic()
                yield result
        except TaskTimeout:
            pass  # not all within a second; what has ended was yielded
        if pending and all(worker.poll() is not None for worker in workers):
            raise DemoError(f"the workers have ended:\n{logs(scratch)}")
        if pending and time.monotonic() - last > SILENCE:
            raise DemoError(f"no task has ended for {SILENCE:.0f} s:\n{logs(scratch)}")


class Progress:
    """A bar on a terminal, a line for every tenth elsewhere."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.shown = total, 0, 0
        self.terminal = sys.stdout.isatty()
        self.began = time.perf_counter()

    def step(self) -> None:
        self.done += 1
        part = self.done / self.total
        steps = 200 if self.terminal else 10
        if int(part * steps) == self.shown:
            return
        self.shown = int(part * steps)
        rate = self.done / (time.perf_counter() - self.began)
        if self.terminal:
            bar = "#" * int(part * 40)
            print(f"\r[{bar:40}] {self.done}/{self.total}  {rate:,.0f} tasks/s ", end="", flush=True)
        else:
            print(f"{part:4.0%}  {self.done}/{self.total}", flush=True)

    def end(self) -> None:
        if self.terminal:
            print("\r" + " " * 78 + "\r", end="")


def print_table(measured: dict[Path, dict[str, int]], folder: Path) -> None:
    """Reduce to sums per top-level entry of the folder, the longest first."""
    sums: dict[str, Counter[str]] = {}
    for path, counts in measured.items():
        top = path.relative_to(folder).parts[0]
        sums.setdefault(top, Counter()).update(files=1, **counts)
    ordered = sorted(sums.items(), key=lambda item: -item[1]["lines"])
    rows = ordered[:ROWS]
    if len(ordered) > ROWS:
        rest: Counter[str] = sum((counts for _, counts in ordered[ROWS:]), Counter())
        rows.append((f"{len(ordered) - ROWS} others", rest))
    rows.append(("total", sum(sums.values(), Counter())))
    width = max(len(name) for name, _ in rows)
    print(f"\n{'':{width}}" + "".join(f"{column:>11}" for column in COLUMNS))
    for name, counts in rows:
        print(f"{name:{width}}" + "".join(f"{counts[column]:>11,}" for column in COLUMNS))


def print_failures(failures: dict[Path, BaseException], folder: Path) -> None:
    """Say what could not be measured: the tasks' exceptions, back in their original types."""
    if failures:
        print(f"\n{len(failures)} file(s) could not be measured, for example:")
    for path, error in list(failures.items())[:3]:
        text = (str(error).splitlines() or [""])[0]
        print(f"  {path.relative_to(folder)}: {type(error).__name__}: {text[:80]}")


def look_around(scratch: Path, *, keep: bool) -> None:
    """Show where a person would look next."""
    bin_folder = Path(sys.executable).parent
    taskq = shlex.quote(os.path.relpath(bin_folder / "taskq"))
    texts = [log.read_text() for log in sorted(scratch.glob("worker-*.log"))]
    print("\nThe end of a worker's log:")  # with few files, one of the workers may have come too late
    print("  " + "\n  ".join(max(texts, key=len).splitlines()[-4:]))
    for command in ("queues", "dead list"):
        print(f"\n$ taskq {command}", flush=True)
        subprocess.run([sys.executable, "-m", "taskq", *command.split()], cwd=scratch, check=False)
    print("\nWhere to look next")
    if keep:
        print(f"  export TASKQ_BROKER={shlex.quote(os.environ['TASKQ_BROKER'])}")
        print(f"  {taskq} queues; {taskq} dead list    the queue of this run, as it was left")
        print(f"  {scratch}/worker-*.log    the workers' logs")
    else:
        print("  make demo ARGS=--keep              the same, keeping the queue and the logs to look at")
    print("  make demo FOLDER=/path/to/sources  the same on your own files")
    print("  docs/examples/demo/                the task, and the program that sends it")
    print("  docs/tutorial.md                   from here to your own tasks")


def logs(scratch: Path) -> str:
    """Return the ends of the workers' logs."""
    return "\n".join(f"{log.name}: {log.read_text()[-2000:]}" for log in sorted(scratch.glob("worker-*.log")))


if __name__ == "__main__":
    sys.exit(main())
