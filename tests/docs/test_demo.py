"""`make demo`: the table is right, what goes wrong is said, and nothing stays behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, environment
from tests.support.install import ROOT

RUN = DOCS / "examples/demo/run.py"


class Demo:
    """The demo in a temporary folder of its own, so that what it leaves behind can be seen."""

    def __init__(self, tmp_path: Path) -> None:
        self.temporary = tmp_path / "tmp"
        self.temporary.mkdir()
        self.environment = {
            **environment(tmp_path / "state"),
            "TMPDIR": str(self.temporary),
            "TASKQ_BROKER": "nonsense",
        }
        self.sources = tmp_path / "sources"
        (self.sources / "package").mkdir(parents=True)
        (self.sources / "package/a.py").write_text("class A:\n    def f(self): pass\n    async def g(self): pass\n")
        (self.sources / "package/b.py").write_text("if True:\n    def h(): pass\n")
        (self.sources / "top.py").write_text("x = 1\n")
        (self.sources / "notes.txt").write_text("not measured\n")

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, RUN, *map(str, arguments)],
            cwd=ROOT, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip

    def run(self, *arguments: str | Path) -> tuple[int, str]:
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=50)
        return process.returncode, output

    def left(self) -> list[Path]:
        return sorted(self.temporary.iterdir())

    def workers(self) -> Sequence[str]:
        """Worker processes on this demo's queue that still run."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                here = str(self.temporary).encode() in (process / "environ").read_bytes()
                ended = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except OSError:
                continue
            if here and not ended and int(process.name) != os.getpid():
                found.append((process / "cmdline").read_text())
        return found


@pytest.fixture
def demo(tmp_path: Path) -> Demo:
    return Demo(tmp_path)


def row(output: str, name: str) -> list[str]:
    line = next((line for line in output.splitlines() if line.split()[:1] == [name]), "")
    return line.split()[1:]


def test_the_table_is_right_and_nothing_stays_behind(demo: Demo) -> None:
    code, output = demo.run(demo.sources)
    assert code == 0, output
    assert row(output, "package") == ["2", "5", "14", "3", "1"], output  # files, lines, words, functions, classes
    assert row(output, "top.py") == ["1", "1", "3", "0", "0"]
    assert row(output, "total") == ["3", "6", "17", "3", "1"]
    assert re.search(r"^3 tasks done in \d+\.\d+ s: [\d,]+ tasks/s", output, re.MULTILINE)
    assert "100%  3/3" in output
    assert "\r" not in output  # plain lines where there is no terminal
    assert "stopped: " in output  # the end of a worker's log
    assert "no dead letters in default" in output
    for place in ("make demo ARGS=--keep", "docs/tutorial.md"):
        assert place in output
    assert demo.left() == []
    assert demo.workers() == []


@pytest.mark.slow
def test_what_cannot_be_measured_is_said_and_an_unexpected_failure_is_a_dead_letter(demo: Demo) -> None:
    (demo.sources / "old.py").write_text("print 'Python 2'\n")
    (demo.sources / "gone.py").symlink_to(demo.sources / "nowhere.py")
    code, output = demo.run(demo.sources)
    assert code == 0, output
    assert "2 file(s) could not be measured" in output
    assert re.search(r"old\.py: SyntaxError: ", output)
    assert re.search(r"gone\.py: FileNotFoundError: ", output)
    assert row(output, "default")[3] == "1", output  # the table of `taskq queues`: ready, running, delayed, dead
    assert row(output, "total")[0] == "3"


@pytest.mark.slow
def test_a_folder_without_python_is_measured_too(demo: Demo, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("three short words\n")
    code, output = demo.run(texts)
    assert code == 0, output
    assert row(output, "total") == ["1", "1", "3", "0", "0"]


@pytest.mark.slow
def test_keep_leaves_the_queue_and_the_logs_and_says_how_to_look(demo: Demo) -> None:
    code, output = demo.run("--keep", "--workers", "1", demo.sources)
    assert code == 0, output
    (kept,) = demo.left()
    assert (kept / "queue.db").is_file()
    assert "stopped: 3 ended" in (kept / "worker-1.log").read_text()
    assert f"export TASKQ_BROKER=sqlite:///{kept}/queue.db" in output


@pytest.mark.parametrize("folder", ["nowhere", "empty", "a file"])
def test_a_bad_folder_is_said_in_one_line(demo: Demo, tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a file").touch()
    code, output = demo.run(tmp_path / folder)
    assert code == 2
    assert output.startswith("demo: ")
    assert len(output.splitlines()) == 1
    assert "make demo FOLDER=" in output
    assert demo.left() == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle_ends_it_cleanly(demo: Demo, number: signal.Signals, expected: int) -> None:
    long = demo.sources / "long.py"
    long.write_text("def f(): pass\n" * 5000)
    for i in range(300):  # much more work than anything here takes: there is a middle
        (demo.sources / f"m{i}.py").hardlink_to(long)
    process = demo.start(demo.sources)
    deadline = time.monotonic() + 30
    while len(demo.workers()) < 3:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate(timeout=40)
    assert process.returncode == expected, output
    assert "Traceback" not in output
    assert demo.left() == []
    assert demo.workers() == []


def test_the_makefile_hands_over_folder_and_arguments() -> None:
    command = ["make", "-n", "-o", ".venv/.up-to-date", "-o", "env", "demo", "FOLDER=/a b", "ARGS=--keep"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "docs/examples/demo/run.py --keep '/a b'" in done.stdout, done.stdout + done.stderr


def test_a_terminal_sees_one_line_that_moves(demo: Demo) -> None:
    mine, its = os.openpty()
    process = subprocess.Popen([sys.executable, RUN, demo.sources], cwd=ROOT, env=demo.environment, stdout=its)
    os.close(its)
    seen = b""
    try:
        while part := os.read(mine, 4096):
            seen += part
    except OSError:  # Linux's way of saying that the other side is closed
        pass
    os.close(mine)
    assert process.wait(timeout=30) == 0
    assert re.search(rb"\r\[#+ *\] 3/3 ", seen), seen
    assert b"100%" not in seen
