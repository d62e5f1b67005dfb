"""The README: what it tells people to type is typed here, as printed."""

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, blocks, environment
from tests.support.install import ROOT

README = ROOT / "README.md"


def section(heading: str, language: str) -> list[str]:
    return [block.text for block in blocks(README) if block.heading == heading and block.language == language]


def shell(text: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["sh", "-e", "-c", text], cwd=folder, env=environment(folder / "state"), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_hello_world_by_hand_in_two_terminals_as_printed(tmp_path: Path) -> None:
    (program,) = section("Hello, world", "python")
    once, first, second = section("Hello, world", "sh")
    assert once == "make env\n"  # what made the environment that these tests run in
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "hello.py").write_text(program)
    worker = shell(first, tmp_path)
    try:
        client = shell(second, tmp_path)
        output, _ = client.communicate(timeout=50)
        assert (client.returncode, output) == (0, "4\n")
    finally:
        os.killpg(worker.pid, signal.SIGINT)  # Ctrl-C
        log, _ = worker.communicate(timeout=30)
    assert "stopped: 1 ended" in log, log
    assert (tmp_path / "state/taskq/hello.db").is_file()  # where the README says that it is


def test_hello_world_is_the_example_and_five_lines() -> None:
    (program,) = section("Hello, world", "python")
    assert program == (DOCS / "examples/hello.py").read_text("utf-8")
    assert len([line for line in program.splitlines() if line.strip()]) == 5


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for page in (README, ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")):
        named = set(re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)", page.read_text("utf-8"), re.MULTILINE))
        assert {a or b for a, b in named} <= targets, page


def test_what_exists_is_what_the_tree_holds() -> None:
    """The table's column "today" names every transport, store, pool … of this tree, and nothing else."""
    generate = runpy.run_path(str(DOCS / "generate.py"))
    held = {kind.replace("_", " "): {name for name, *_ in generate["records"](kind)} for kind in generate["KINDS"]}
    printed: dict[str, set[str]] = {}
    for line in README.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[0].partition(" (")[0] in held:
            printed[cells[0].partition(" (")[0]] = set(re.findall(r"`([^`]+)`", cells[1]))
    assert printed == held


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_install_from_a_clone_asks_no_index_and_says_hello(tmp_path: Path) -> None:
    """The section "Install" in an environment of its own. `make dist` fetches third-party wheels, from an index."""
    (build, *installs) = section("Install", "sh")
    assert build == "make dist\n"
    made = subprocess.run(
        [sys.executable, "tests/support/install.py", "--wheels", tmp_path / "dist"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    activate = ". venv/bin/activate\nexport PIP_DISABLE_PIP_VERSION_CHECK=1\n"
    for text in installs:
        assert "--no-index" in text
        process = shell(activate + text, tmp_path)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    assert "taskq-transport-sqlalchemy" in output  # of `taskq plugins list`
    (program,) = section("Hello, world", "python")
    (tmp_path / "hello.py").write_text(program)
    worker = shell(activate + "exec taskq -A hello worker", tmp_path)
    try:
        client = shell(activate + section("Hello, world", "sh")[2].splitlines()[1], tmp_path)
        assert client.communicate(timeout=60)[0] == "4\n"
    finally:
        os.killpg(worker.pid, signal.SIGTERM)
        worker.communicate(timeout=30)
