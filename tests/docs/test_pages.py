"""The pages: links lead somewhere, examples run, settings and commands are real, what is generated is current."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import taskq
from taskq import errors, states
from taskq.cli.group import taskq as main_command
from taskq.config import load
from taskq.spi import hooks
from tests.docs.pages import DOCS, Block, blocks, markdown_files, python
from tests.support.install import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
OTHERS = {"write-a-transport.md", "benchmarks.md"}  # have tests of their own
READ = [page for page in PAGES if page.name not in OTHERS]
GUIDES = [page for page in READ if page.parent.name == "guides"]


def name(value: object) -> str:
    return value.relative_to(ROOT).as_posix() if isinstance(value, Path) else ""


# ---------------------------------------------------------------------------------------------------------- generated


def test_generated_pages_are_current(tmp_path: Path) -> None:
    done = python(DOCS / "generate.py", "--check", cwd=tmp_path, state=tmp_path)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nrun: .venv/bin/python docs/generate.py"


def test_every_exception_is_documented() -> None:
    text = (DOCS / "reference/exceptions.md").read_text("utf-8")
    public = [n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, BaseException)]
    assert len(public) > 30
    assert [n for n in public if f"| `{n}` |" not in text] == []


def test_every_hook_is_documented_with_its_exact_arguments() -> None:
    text = (DOCS / "reference/hooks.md").read_text("utf-8")
    wanted = []
    for owner in (hooks.KindHooks, hooks.ContributionHooks):
        for hook, function in vars(owner).items():
            if hook.startswith("taskq_"):
                code = function.__code__
                wanted.append(f"| `{hook}({', '.join(code.co_varnames[1 : code.co_argcount])})` |")
    assert len(wanted) == 20
    assert [line for line in wanted if line not in text] == []


def test_every_state_is_documented() -> None:
    text = (DOCS / "reference/states.md").read_text("utf-8")
    for state, value in vars(states).items():
        if state.isupper() and isinstance(value, str):
            terminal = "yes" if value in states.TERMINAL else "" if value == states.UNKNOWN else "no"
            assert re.search(rf"^\| `{value}` \| {terminal} ?\|", text, re.MULTILINE), value


def test_every_public_name_is_documented() -> None:
    text = (DOCS / "reference/python.md").read_text("utf-8")
    assert [n for n in taskq.__all__ if not re.search(rf"`{n}[`(]", text)] == []


def test_every_task_option_is_documented() -> None:
    from taskq.call_options import CALL_OPTIONS
    from taskq.task import TASK_OPTIONS

    for page, options in (("tasks.md", TASK_OPTIONS), ("sending.md", CALL_OPTIONS)):
        text = (DOCS / "guides" / page).read_text("utf-8")
        assert [option for option in options if f"`{option}`" not in text] == [], page


# -------------------------------------------------------------------------------------------------------------- links


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings make, as the usual Markdown renderers make them."""
    found, fenced = set(), False
    for line in page.read_text("utf-8").splitlines():
        fenced ^= line.startswith("```")
        if not fenced and (heading := re.match(r"#+ (.*)", line)):
            found.add(re.sub(r"[^\w\- ]", "", heading[1].lower()).replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    bad = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        to = (page.parent / path).resolve() if path else page
        if not to.exists() or (anchor and anchor not in anchors(to)):
            bad.append(target)
    assert bad == []


def test_the_index_leads_to_every_page() -> None:
    text = (DOCS / "index.md").read_text("utf-8")
    named = ("index.md", "benchmarks.md")  # the second is written by `make bench` where somebody asks for it
    missing = [p for p in sorted(DOCS.rglob("*.md")) if p.name not in named and f"({p.relative_to(DOCS)})" not in text]
    examples = DOCS / "examples"
    assert [p for p in missing if examples not in p.parents] == []


def test_paths_in_contributing_exist() -> None:
    """Each file of the map, also those named after the first one of a row."""
    for line in (ROOT / "CONTRIBUTING.md").read_text("utf-8").splitlines():
        if not line.startswith("| ") or "KIND" in line or "NAME" in line:
            continue
        folder = ROOT
        for path in re.findall(r"`([^`]+)`", line.split("|")[2]):
            found = ROOT / path if (ROOT / path).exists() else folder / path
            assert found.exists(), f"{path}: {line}"
            folder = found.parent if found.is_file() else found


# ---------------------------------------------------------------------------------------------- nothing from an index


def test_no_page_installs_a_package_of_ours_from_an_index() -> None:
    """The names taskq-* are not ours on the public index: whoever registers one would have their code run."""
    bad = []
    for page in markdown_files():
        text = re.sub(r"\\\n\s*", " ", page.read_text("utf-8"))  # commands over several lines
        for command in re.findall(r"[^\n`]*\b(?:install|add|download|wheel)\b[^\n`]*", text):
            installer = re.search(
                r"\b(?:pip3?|pipx|uv|poetry|pdm|conda)\b.*?\b(?:install|add|download|wheel)\b(.*)", command
            )
            if installer and re.search(r"\btaskq\b|\btaskq[-_\[]", installer[1]) and "--no-index" not in command:
                bad.append(f"{page.relative_to(ROOT)}: {command.strip()}")
    assert bad == []


# ----------------------------------------------------------------------------------------------------------- examples


@pytest.mark.parametrize("page", GUIDES, ids=name)
def test_python_blocks_run(page: Path, tmp_path: Path) -> None:
    done = python(Path(__file__).parent / "run_page.py", page, cwd=tmp_path, state=tmp_path / "state")
    assert done.returncode == 0, done.stdout + done.stderr


def of(language: str) -> list:
    """Every block of a language, with a readable id."""
    found = [(page, block) for page in READ for block in blocks(page) if block.language == language]
    return [pytest.param(page, block, id=f"{name(page)}:{block.line}") for page, block in found]


@pytest.mark.parametrize(("page", "block"), of("toml"))
def test_toml_blocks_are_settings(page: Path, block: Block, tmp_path: Path) -> None:
    """Of the kernel or of a plugin of this tree; what is an entry point belongs into another table."""
    if "entry-points" in block.text:
        assert re.search(r'"taskq\.(plugins|commands)"', block.text)
        return
    file = tmp_path / "pyproject.toml"
    file.write_text(block.text)
    loaded = load(config_file=file, environ={})
    assert loaded.rows()
    command = [sys.executable, "-m", "taskq", "--config", file, "config", "check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no effect" not in done.stderr or "redis" in block.text


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The application that the pages name: commands of contributions are looked up by its configuration."""
    (tmp_path / "shop.py").write_text("from taskq import TaskQ\napp = TaskQ('shop', isolated=True)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("shop", None)


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(("page", "block"), of("sh"))
def test_commands_exist_with_their_options(page: Path, block: Block) -> None:
    for line in block.text.splitlines():
        found = re.search(r"(?:^|[ /])taskq ((?:-|[a-z]).*)", line)
        if found and "pip install" not in line:
            parses([part.strip("'\"") for part in re.findall(r"'[^']*'|\"[^\"]*\"|\S+", found[1])])


def parses(arguments: list[str]) -> None:
    """Parse a command line as the command would, without running it."""
    context = main_command.make_context("taskq", list(arguments))
    command: click.Command = main_command
    while isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]  # what the group left for its command
        _, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command, context = found, found.make_context(found.name, rest, parent=context)


def test_a_command_that_does_not_exist_is_found() -> None:
    with pytest.raises(click.UsageError):
        parses(["-A", "shop", "quueues"])
    with pytest.raises(click.UsageError):
        parses(["-A", "shop", "queues", "--jsn"])
    parses(["-A", "shop", "dead", "list", "--limit", "5"])


def test_settings_named_in_the_pages_exist() -> None:
    """`worker.grace` and the like."""
    from taskq.config.merge import dotted, leaves

    known = {dotted(path) for path in leaves()}
    for page in READ:
        for setting in re.findall(r"`((?:worker|plugins)\.[a-z_]+)`", page.read_text("utf-8")):
            assert setting in known, f"{setting} in {page}"
