"""The guide "Write a transport in 15 minutes" is done as it says: its commands are typed, its files are saved."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import fresh
from tests.support.install import ROOT, is_ours, runtime_requirements

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

PAGE = ROOT / "docs/guides/write-a-transport.md"
PACKAGE = "taskq-transport-folder"


class Step(NamedTuple):
    """A command to type, or a part of a file to save (several parts of one name follow each other)."""

    file: str | None
    text: str


def steps() -> list[Step]:
    pattern = r"^```(\w*)(?: title=\"(.+?)\")?\n(.*?)^```$"
    found = re.findall(pattern, PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert {language for language, _, _ in found} <= {"sh", "python"}
    assert all((language == "sh") != bool(file) for language, file, _ in found), "Python without a file name"
    return [Step(file or None, text) for _, file, text in found]


class Reader:
    """Somebody with a clone and its environment, who follows the page."""

    def __init__(self, folder: Path) -> None:
        self.clone = folder / "clone"
        self.project = folder / PACKAGE
        self.here = self.clone
        (self.clone / ".venv/bin").mkdir(parents=True)
        (self.clone / "plugin-template").symlink_to(ROOT / "plugin-template")
        needs = {r for r in runtime_requirements(ROOT / "core") if not is_ours(r)}
        tools = ("pytest", "hypothesis", "hatchling", "editables")
        self.environment = fresh.Environment(folder / "venv", *needs, *tools)
        wheels = folder / "wheels"
        fresh.build(fresh.buildable(), wheels)
        self.environment.install("taskq-core[standard]", find_links=[wheels])
        # What the page calls the clone's environment: these commands, on the fresh one.
        bin_folder = self.clone / ".venv/bin"
        python, ours = self.environment.python, sys.executable
        for name, command in {
            "python": f'"{python}" "$@"',
            "pytest": f'"{python}" -m pytest -p no:cacheprovider "$@"',
            "taskq": f'"{python.parent}/taskq" "$@"',
            "pip": f'"{ours}" -m pip --python "{python}" "$@"',
            "copier": f'"{ours}" -m copier "$@"',
        }.items():
            (bin_folder / name).write_text(f"#!/bin/sh\nexec {command}\n")
            (bin_folder / name).chmod(0o755)
        (bin_folder / "activate").write_text(f'PATH="{bin_folder}:$PATH"\n')
        self.settings = {"TMPDIR": str(folder), "XDG_STATE_HOME": str(folder / "state")}

    def type(self, text: str) -> str:
        """Run commands in a shell where the last one left off, and return what they print."""
        activate = f". {self.clone}/.venv/bin/activate\ncd {self.here}\n"
        output = fresh.run("sh", "-e", "-c", f"{activate}{text}echo; pwd", cwd=self.clone, **self.settings)
        *lines, where = output.rstrip("\n").split("\n")
        self.here = Path(where)
        return "\n".join(lines)

    def save(self, name: str, text: str, *, first: bool) -> None:
        path = self.project / name
        assert path.parent.is_dir(), f"the page saves {name}, whose folder does not exist"
        path.write_text(text if first else f"{path.read_text('utf-8')}\n\n{text}", "utf-8")

    def start(self, text: str) -> subprocess.Popen[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("TASKQ_", "PYTEST_", "PYTHON"))}
        return subprocess.Popen(
            ["sh", "-c", f". {self.clone}/.venv/bin/activate\nexec {text}"],
            cwd=self.here,
            env=clean | self.settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def test_the_page_works_as_it_stands(tmp_path: Path) -> None:
    """All in order: the template green, then the folder transport green, then two programs that talk through it."""
    reader = Reader(tmp_path)
    outputs: list[str] = []
    saved: set[str] = set()
    worker: subprocess.Popen[str] | None = None
    try:
        for file, text in steps():
            text = text.replace("/tmp/hello", f"{tmp_path}/hello")  # the page's folder is not ours to use
            if file is not None:
                reader.save(file, text, first=file not in saved)
                saved.add(file)
            elif text.startswith("taskq -A"):
                worker = reader.start(text)
            else:
                outputs.append(reader.type(text))
        assert worker is not None
    finally:
        if worker is not None:
            worker.send_signal(signal.SIGTERM)
            log, _ = worker.communicate(timeout=30)
    assert worker.returncode == 0, log
    template, folder, sent, answer = outputs
    assert "loaded" in template
    for output in (template, folder):
        assert re.search(r"\d\d+ passed", output), output
        assert not re.search(r"failed|error|warning", output), output
    assert re.search(rf"^{tmp_path}/hello-broker/q-default/ready/\d{{20}}\.\w{{32}}\.0$", sent, re.MULTILINE), sent
    assert answer.strip() == "42"
    assert not [path for path in (tmp_path / "hello-broker").rglob("*") if path.is_file()], "the folder is not empty"

    # "To see it bite": the two mistakes that the page names.
    kit_catches(reader, "options", "cross_process=True,", "cross_process=True, stats=True,", "fit_together")
    kit_catches(reader, "transport", "held.unlink()", "pass", "settled_messages_do_not_come_back_with_the_lease")


def kit_catches(reader: Reader, module: str, right: str, wrong: str, test: str) -> None:
    path = reader.project / f"src/taskq_transport_folder/{module}.py"
    before = path.read_text("utf-8")
    assert before.count(right) == 1
    path.write_text(before.replace(right, wrong), "utf-8")
    command = ("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", test)
    output = reader.environment.run(*command, cwd=reader.project, ok=1)
    assert re.search(rf"^FAILED .*{test}", output, re.MULTILINE), output
    path.write_text(before, "utf-8")


def test_the_page_shows_what_users_should_copy(tmp_path: Path) -> None:
    """The files are formatted, linted and typed as ours are, and no longer than one reads in a quarter of an hour."""
    files: dict[str, str] = {}
    for file, text in steps():
        if file is not None:
            files[file] = f"{files[file]}\n\n{text}" if file in files else text
    assert set(files) == {
        *(f"src/taskq_transport_folder/{name}.py" for name in ("options", "transport")),
        *("tests/test_conformance.py", "tests/test_folder.py", "hello.py"),
    }
    assert len(files["src/taskq_transport_folder/transport.py"].splitlines()) <= 250
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    (tmp_path / "core").symlink_to(ROOT / "core")
    for name, text in files.items():
        path = tmp_path / "plugins/transport-folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    source = tmp_path / "plugins/transport-folder/src/taskq_transport_folder"
    for name in ("__init__.py", "plugin.py"):  # the template's, not on the page
        (source / name).touch()
    for command in (["ruff", "check", "--no-cache"], ["ruff", "format", "--diff"]):
        fresh.run(sys.executable, "-m", *command, "plugins/transport-folder/src", cwd=tmp_path)
        fresh.run(sys.executable, "-m", *command, "plugins/transport-folder/tests", cwd=tmp_path)
    fresh.run(sys.executable, "-m", "mypy", "--cache-dir", tmp_path / "cache", source, cwd=tmp_path)
