"""The tutorial, typed from top to bottom."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, Block, blocks, environment

PAGE = DOCS / "tutorial.md"
STEPS = list(blocks(PAGE))


class Reader:
    """Somebody with a folder, a terminal for the worker and one for the rest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / ".venv").symlink_to(sys.prefix)
        self.activate = ". .venv/bin/activate\n"
        self.worker: subprocess.Popen[bytes] | None = None

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def start_worker(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.worker = subprocess.Popen(
                ["sh", "-e", "-c", self.activate + f"exec {self.worker_command()}"], cwd=self.folder, stderr=log,
                env=environment(self.folder / "state"), start_new_session=True,
            )  # fmt: skip
        self.until("ready")

    @staticmethod
    def worker_command() -> str:
        return one("sh", r"^taskq -A shop worker$").text.strip()

    def until(self, text: str, count: int = 1) -> None:
        deadline = time.monotonic() + 20
        while self.log().count(text) < count:
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def stop_worker(self) -> None:
        if self.worker is not None:
            os.killpg(self.worker.pid, signal.SIGINT)
            self.worker.wait(timeout=30)
            self.worker = None

    def type(self, text: str) -> str:
        command = ["sh", "-e", "-c", self.activate + text]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment(self.folder / "state"),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def python(self, text: str) -> str:
        (self.folder / "typed.py").write_text(text)
        return self.type("python typed.py")


def one(language: str, pattern: str) -> Block:
    found = [block for block in STEPS if block.language == language and re.search(pattern, block.text, re.MULTILINE)]
    assert len(found) == 1, f"{pattern}: {found}"
    return found[0]


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    reader.stop_worker()


@pytest.mark.slow
def test_the_tutorial_works_as_it_stands(reader: Reader) -> None:
    shop = one("python", r"^app = TaskQ").text
    (reader.folder / "shop.py").write_text(shop)

    # 1. A task, a worker, a call
    reader.start_worker()
    assert "broker sqlite://" in reader.log()
    assert reader.type(one("sh", "shop.price").text) == "SUCCESS: 40.0\n"
    assert reader.python(one("python", r"amount=2\)").text).endswith(" 40.0\n")

    # 2. Many
    assert reader.python(one("python", "send_many").text) == "7575.0\n"

    # 3. Failures
    assert reader.python(one("python", r'delay\("car"\)').text) == "no price: 'car'\n"
    assert "it is kept in default.dead" in reader.log()
    listed = reader.type(one("sh", "dead list").text)
    assert re.search(r"^\w{32}  default  .*shop\.price  KeyError: 'car'$", listed, re.MULTILINE)
    assert re.search(r"^default +0 +0 +0 +1 ", listed, re.MULTILINE)
    assert '"car": 9000.0' in PAGE.read_text("utf-8")
    (reader.folder / "shop.py").write_text(shop.replace('"pen": 1.5', '"pen": 1.5, "car": 9000.0'))
    reader.stop_worker()
    reader.start_worker()
    assert reader.type(one("sh", "dead replay").text) == "default: 1 replayed\n"

    # 4. Retries
    assert reader.type(one("sh", "shop.order").text) == "SUCCESS: 'ordered a book at try 3'\n"
    assert reader.log().count("ConnectionError: the warehouse does not answer") == 2

    # 5. Later
    assert reader.type(one("sh", "countdown").text) == "SUCCESS: 'packed'\n"

    # 6. What if a worker dies
    reader.type(one("sh", r"'\[3\]'").text)
    time.sleep(0.3)
    reader.stop_worker()  # Ctrl-C: it waits for the task to end
    assert re.search(r"stopped: \d+ ended, 0 failed, 2 retried, 0 dead\n$", reader.log()), reader.log()

    # 7. Settings
    shown = reader.type(one("sh", "config show").text)
    assert re.search(r"^worker\.concurrency = 8 +# environment TASKQ_WORKER_CONCURRENCY$", shown, re.MULTILINE)


def test_every_block_is_typed() -> None:
    """The blocks above, `. .venv/bin/activate`, and nothing else."""
    assert [block.language for block in STEPS] == [
        "sh", "python", "sh", "sh", "python", "python", "python", "sh", "sh", "sh", "sh", "sh", "sh",
    ]  # fmt: skip
