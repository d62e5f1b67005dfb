"""What the tests of this folder share: Markdown pages taken apart, and programs run as a reader would run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.support.install import ROOT

DOCS = ROOT / "docs"


class Block(NamedTuple):
    """A fenced block: its language, its text, the line it starts on, and the heading above it."""

    language: str
    text: str
    line: int
    heading: str


def blocks(page: Path) -> Iterator[Block]:
    heading, language, text, start = "", None, [], 0
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        fence = re.match(r"```(\S*)", line)
        if fence and language is None:
            language, text, start = fence[1], [], number + 1
        elif fence and language is not None:
            yield Block(language, "\n".join(text) + "\n", start, heading)
            language = None
        elif language is not None:
            text.append(line)
        elif line.startswith("#"):
            heading = line.lstrip("#").strip()


def markdown_files() -> list[Path]:
    """Every page of the tree that is or would be committed."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md", "*.md.jinja"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:  # an unpacked archive
        return sorted([*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/**/*.md")])
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def environment(state: Path) -> dict[str, str]:
    """A reader's environment: nothing of taskq set, and a state folder of the test's own."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("TASKQ_", "PYTEST_", "COVERAGE", "PYTHON"))}
    return {**mine, "XDG_STATE_HOME": str(state), "PATH": f"{Path(sys.executable).parent}:{mine.get('PATH', '')}"}


def python(
    *arguments: str | Path, cwd: Path, state: Path, timeout: float = 50, extra: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, with warnings as errors."""
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    env = {**environment(state), **(extra or {})}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False)
