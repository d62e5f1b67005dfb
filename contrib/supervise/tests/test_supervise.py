"""Several workers from one command, and a worker that follows the code."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq import TaskQ
from taskq.errors import ConfigError
from taskq_contrib_supervise.command import parse_nodes
from tests.support.processes import environment, eventually

TASKS = """
import os
from taskq import TaskQ

app = TaskQ("site", broker="sqlite:///{folder}/q.db?synchronous=NORMAL", isolated=True, lease=1.0)

@app.task
def who():
    return {answer!r}

@app.task(queue="mail")
def mail():
    return os.getpid()
"""


class Command:
    """A running ``taskq`` command, its output in a file."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.log = folder / "command.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "taskq", *arguments], cwd=folder, env=environment(folder), stdout=log,
                stderr=subprocess.STDOUT,
            )  # fmt: skip

    @property
    def output(self) -> str:
        return self.log.read_text()

    def ready(self, count: int) -> None:
        eventually(lambda: self.output.count(" ready: pool ") >= count or self.process.poll() is not None, self)
        assert self.process.poll() is None, self.output

    def pids(self) -> list[int]:
        return [int(pid) for pid in re.findall(r"started, process (\d+)", self.output)]

    def end(self) -> None:
        for pid in (*self.pids(), self.process.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(10)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "site_tasks.py").write_text(TASKS.format(folder=tmp_path, answer="old"))
    return tmp_path


@pytest.fixture
def client(folder: Path) -> Iterator[TaskQ]:
    broker = f"sqlite:///{folder}/q.db?synchronous=NORMAL"
    with TaskQ("site", broker=broker, isolated=True) as app:
        yield app


def test_nodes_from_one_command_start_again_and_stop_together(folder: Path, client: TaskQ) -> None:
    command = Command(folder, "-A", "site_tasks", "multi", "mail*2: -Q mail -P solo", "rest: -Q default -P solo")
    try:
        command.ready(3)
        assert {"worker mail-1 ready", "worker mail-2 ready", "worker rest ready"} <= set(
            re.findall(r"worker \S+ ready", command.output)
        )
        first = client.send_task("site_tasks.mail", queue="mail").get(timeout=20)
        assert client.send_task("site_tasks.who").get(timeout=20) == "old"
        os.kill(first, signal.SIGKILL)
        eventually(lambda: "ended by SIGKILL; starting it again" in command.output, command)
        command.ready(4)
        command.process.send_signal(signal.SIGTERM)
        assert command.process.wait(20) == 0, command.output
        assert command.output.count(" stopped: ") == 3
        for pid in command.pids():
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
    finally:
        command.end()


def test_a_worker_follows_the_code(folder: Path, client: TaskQ) -> None:
    command = Command(folder, "-A", "site_tasks", "reload", "-P", "solo")
    source = folder / "site_tasks.py"
    try:
        command.ready(1)
        assert client.send_task("site_tasks.who").get(timeout=20) == "old"
        source.write_text(TASKS.format(folder=folder, answer="new"))
        command.ready(2)
        assert client.send_task("site_tasks.who").get(timeout=20) == "new"
        source.write_text("this is no Python")
        eventually(lambda: "waiting for a change" in command.output, command)
        source.write_text(TASKS.format(folder=folder, answer="mended"))
        command.ready(3)
        assert client.send_task("site_tasks.who").get(timeout=20) == "mended"
        command.process.send_signal(signal.SIGINT)
        assert command.process.wait(20) == 0, command.output
    finally:
        command.end()


def test_the_worker_s_own_option_hands_over(folder: Path, client: TaskQ) -> None:
    command = Command(folder, "-A", "site_tasks", "worker", "-P", "solo", "--reload")
    try:
        command.ready(1)
        (folder / "site_tasks.py").write_text(TASKS.format(folder=folder, answer="new"))
        command.ready(2)
        assert client.send_task("site_tasks.who").get(timeout=20) == "new"
        command.process.send_signal(signal.SIGTERM)
        assert command.process.wait(20) == 0, command.output
    finally:
        command.end()


def test_an_application_that_is_not_there_is_said_once(folder: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "taskq", "-A", "nothing", "multi", "a*3"], cwd=folder, env=environment(folder),
        check=False, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert answer.returncode == 1
    assert answer.stderr.count("no module") == 1


def test_nodes() -> None:
    nodes = parse_nodes(["a", "b*2: -Q x -c 3", "c-1 : --name-like 'two words'"], ["-A", "shop"])
    assert [node.name for node in nodes] == ["a", "b-1", "b-2", "c-1"]
    assert list(nodes[0].command[1:]) == ["-m", "taskq", "-A", "shop", "worker", "-n", "a"]
    assert list(nodes[2].command[-4:]) == ["-Q", "x", "-c", "3"]
    assert nodes[3].command[-1] == "two words"


@pytest.mark.parametrize("texts", [["a b"], ["a*0"], ["a", "a"], ["a-1", "a*2"], ["a: 'open"], [": -Q x"]])
def test_malformed_nodes_are_refused(texts: list[str]) -> None:
    with pytest.raises(ConfigError):
        parse_nodes(texts, [])
