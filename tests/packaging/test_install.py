"""Installing: every wheel alone with what it declares, all together, and nothing of ours ever from an index."""

from __future__ import annotations

import http.server
import importlib.metadata
import json
import os
import re
import shlex
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support import fresh, install
from tests.support.install import ROOT, is_ours, normalized

DISTRIBUTIONS = {install.project_name(folder): folder for folder in fresh.buildable()}
PLUGINS = sorted(name for name in DISTRIBUTIONS if name != "taskq-core")
slow = pytest.mark.slow
pytestmark = pytest.mark.timeout(240)  # for a machine that does much else


# -- wheels -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fresh.once(tmp_path_factory, "wheels", lambda folder: fresh.build(DISTRIBUTIONS.values(), folder))


def metadata(wheel: Path) -> importlib.metadata.PathDistribution:
    (folder,) = [p for p in zipfile.Path(wheel).iterdir() if p.name.endswith(".dist-info")]
    return importlib.metadata.PathDistribution(folder)


def entry_points(folder: Path) -> set[tuple[str, str]]:
    """(kind, name) of what a distribution offers."""
    groups = install.read(folder)["project"].get("entry-points", {})
    kinds = {group: group.removeprefix("taskq.").removesuffix("s") for group in groups if group.startswith("taskq.")}
    return {(kind, name) for group, kind in kinds.items() for name in groups[group]}


def loaded(output: str) -> set[tuple[str, str, str]]:
    return {(p["kind"], p["name"], p["state"]) for p in json.loads(output)["plugins"]}


@slow
def test_each_wheel_needs_only_what_is_here_or_third_party(wheels: Path) -> None:
    """What one of our wheels requires of ours is among them, in a version that satisfies it."""
    built = {normalized(d.metadata["Name"]): d for d in map(metadata, wheels.glob("*.whl"))}
    assert set(built) == set(DISTRIBUTIONS)
    for name, distribution in built.items():
        for requirement in map(Requirement, distribution.requires or ()):
            if is_ours(requirement.name):
                assert normalized(requirement.name) in built, f"{name} requires {requirement}, which nobody makes"
                assert requirement.specifier.contains(built[normalized(requirement.name)].version)


ALONE = """
import sys
sys.path[:0] = [sys.argv.pop(1)]
if sys.argv[1] != "import":
    sys.argv[0] = "taskq"
    from taskq.cli import main
    sys.exit(main())
import importlib, pkgutil
for package in sys.argv[2:]:
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""


@slow
@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugin_needs_nothing_but_what_it_declares(wheels: Path, tmp_path: Path, name: str) -> None:
    """Its wheel with the kernel's and those that it requires: listed, accepted, and every module of it imports.

    An import of something that another plugin happens to require shows here only.
    """
    ours, theirs, todo = set(), set(), {name, "taskq-core"}
    while todo:
        project = todo.pop()
        ours.add(project)
        (wheel,) = wheels.glob(f"{project.replace('-', '_')}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(tmp_path)
        for requirement in map(Requirement, metadata(wheel).requires or ()):
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            if is_ours(requirement.name):
                todo |= {normalized(requirement.name)} - ours
            else:
                theirs.add(str(requirement))
    fresh.link(theirs, tmp_path)

    def alone(*arguments: str) -> str:  # -S: this environment's own packages are not seen
        return fresh.run(sys.executable, "-S", "-c", ALONE, tmp_path, *arguments, cwd=tmp_path)

    offered = entry_points(DISTRIBUTIONS[name])
    assert loaded(alone("plugins", "list", "--json")) == {(kind, entry, "installed") for kind, entry in offered}
    if offered:
        checked = loaded(alone("plugins", "check", name, "--json"))
        assert checked == {(kind, entry, "loaded") for kind, entry in offered}
    alone("import", name.replace("-", "_"))


@slow
def test_all_plugins_install_together(wheels: Path, tmp_path: Path) -> None:
    """pip finds every requirement in the folder of wheels, and all plugins are listed and accepted side by side."""
    needs = {r for folder in DISTRIBUTIONS.values() for r in install.runtime_requirements(folder) if not is_ours(r)}
    environment = fresh.Environment(tmp_path / "venv", *needs)
    environment.install(*DISTRIBUTIONS, find_links=[wheels])
    assert "No broken requirements found" in environment.pip("check")
    offered = {entry for folder in DISTRIBUTIONS.values() for entry in entry_points(folder)}
    listed = loaded(environment.run("taskq", "plugins", "list", "--json"))
    assert listed == {(kind, name, "installed") for kind, name in offered}
    checked = loaded(environment.run("taskq", "plugins", "check", "--json"))
    assert checked == {(kind, name, "loaded") for kind, name in offered}


HELLO = """
from taskq import TaskQ
app = TaskQ("hello")
@app.task
def add(x: int, y: int) -> int:
    return x + y
if __name__ == "__main__":  # the pool's children import this file
    with app.worker():
        print(add.delay(2, 2).get(timeout=30))
    app.close()
"""


@slow
def test_the_standard_install_is_enough_to_work(wheels: Path, tmp_path: Path) -> None:
    """`taskq-core[standard]` alone brings a broker, results, a pool, a format: all that the hello world uses."""
    project = install.read(ROOT / "core")["project"]
    standard = {normalized(r) for r in project["optional-dependencies"]["standard"]}
    assert standard <= set(DISTRIBUTIONS), "the extra names what nobody makes"
    environment = fresh.Environment(tmp_path / "venv", *(r for r in project["dependencies"] if not is_ours(r)))
    environment.install("taskq-core[standard]", find_links=[wheels])
    offered = {entry for name in standard for entry in entry_points(DISTRIBUTIONS[name])}
    listed = loaded(environment.run("taskq", "plugins", "list", "--json"))
    assert listed == {(kind, name, "installed") for kind, name in offered}
    (tmp_path / "hello.py").write_text(HELLO)
    assert environment.run("python", "hello.py", cwd=tmp_path, XDG_STATE_HOME=str(tmp_path / "state")) == "4\n"


# -- never from an index ----------------------------------------------------------------------------------------------


class Index(http.server.ThreadingHTTPServer):
    """A package index that has nothing and remembers what it was asked for."""

    def __init__(self) -> None:
        asked: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_error(404)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = asked


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What pip asks the index for, in this test and its children."""
    with Index() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        for name in ("PIP_NO_INDEX", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {
            "INDEX_URL": f"http://127.0.0.1:{server.server_port}/simple",
            "CONFIG_FILE": "/dev/null",
        }.items():
            monkeypatch.setenv(f"PIP_{name}", value)
        for name, value in {"RETRIES": "0", "NO_CACHE_DIR": "1", "NO_INPUT": "1"}.items():
            monkeypatch.setenv(f"PIP_{name}", value)
        try:
            yield server.asked
        finally:
            server.shutdown()
            thread.join()


@slow
def test_make_dist_asks_an_index_for_third_party_names_only(
    index: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What pip really asks for. Our wheels are made before, and stay although this index has nothing."""
    few = [DISTRIBUTIONS[name] for name in ("taskq-core", "taskq-lib-memory", "taskq-transport-memory")]
    monkeypatch.setattr(install, "distributions", lambda: few)
    with pytest.raises(SystemExit, match="this failed"):
        install.make_wheels(Path(sys.prefix), tmp_path / "dist")
    assert len(list((tmp_path / "dist").glob("taskq_*.whl"))) == len(few)
    asked = {normalized(path.removeprefix("/simple/").strip("/")) for path in index}
    assert asked, "nothing was asked for, so this has tested nothing"
    assert not {name for name in asked if is_ours(name)}


@slow
@pytest.mark.parametrize("requirement", ["taskq-core[standard]", "taskq-store-nowhere"])
def test_the_documented_install_asks_no_index(index: list[str], wheels: Path, tmp_path: Path, requirement: str) -> None:
    """Neither when all is there nor when it is not: a name that no wheel has is an error, and nobody is asked."""
    core = install.read(ROOT / "core")["project"]["dependencies"]
    environment = fresh.Environment(tmp_path / "venv", *(r for r in core if not is_ours(r)))
    known = requirement.partition("[")[0] in DISTRIBUTIONS
    # What the line itself says must be enough: nothing else here forbids the index.
    settings = {name: value for name, value in os.environ.items() if name.startswith("PIP_")} | {"PIP_NO_INDEX": "0"}
    pip = (sys.executable, "-m", "pip", "--python", environment.python, "install", "-q", "--find-links", wheels)
    fresh.run(*pip, "--no-index", requirement, ok=0 if known else 1, **settings)
    assert index == []
    fresh.run(*pip, "taskq-no-such-plugin", ok=1, **settings)
    assert index == ["/simple/taskq-no-such-plugin/"], "without --no-index it is asked, or this test shows nothing"


INSTALLERS = re.compile(
    r"(?:\bpip[23]?|-m pip|\buv pip|\bpipx|\buvx?)\s+(?:install|wheel|download|add|run)\b(?P<rest>[^`\n;&|)]*)"
)
VALUE_FOLLOWS = {"-w", "--wheel-dir", "-f", "--find-links", "-c", "--constraint", "-t", "--target", "--python"}


def could_fetch_ours(command: str) -> bool:
    """Whether the arguments of an install command may make it look up a taskq-* name in an index."""
    try:
        words = shlex.split(command)
    except ValueError:  # the end of a Python string, or a quotation
        words = command.replace('"', " ").replace("'", " ").split()
    if "--no-index" in command:
        return False
    targets, skip = [], False
    for word in words:
        if not skip and not word.startswith("-"):
            targets.append(word)
        skip = word in VALUE_FOLLOWS
    # A path's or a file's requirements are looked up too; a placeholder may stand for anything.
    return (
        any(re.match(r"taskq(?![a-z0-9])|[./~<]|.*[{/$]", target, re.IGNORECASE) for target in targets) or "-r" in words
    )


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("taskq-core[standard]", True),
        ("'taskq-core[standard]' --find-links dist", True),
        ("taskq", True),
        ("--upgrade Taskq_Store_Redis", True),
        ("{distribution} --find-links dist", True),
        ("-e .", True),
        ("./core", True),
        ("dist/taskq_core-0.1.0-py3-none-any.whl", True),
        ("-r requirements.txt", True),
        ("--no-index --find-links dist taskq-core[standard]", False),
        ('--no-index --find-links dist "taskq-core[standard]"', False),
        ("--find-links dist pytest hypothesis", False),
        ("'msgspec>=1'", False),
    ],
)
def test_what_could_fetch_ours(command: str, expected: bool) -> None:
    assert could_fetch_ours(command) is expected


def documents() -> Iterator[Path]:
    """Whatever tells somebody what to type: documents, the template, configuration, and the messages in our code."""
    for pattern in ("*", "core/**/*", "plugins/**/*", "contrib/**/*", "plugin-template/**/*", "docs/**/*", ".ci/*"):
        for path in ROOT.glob(pattern):
            relative = path.relative_to(ROOT).as_posix()
            text = path.suffix in {".md", ".py", ".toml", ".jinja", ".yml", ".txt", ".sh", ""} and path.is_file()
            if text and "/tests/" not in relative and "__pycache__" not in relative:
                yield path


def test_no_documented_command_and_no_hint_could_fetch_ours() -> None:
    """Every line that installs something of ours says --no-index: whoever registers the name would have their code run.

    A hint that is put together at run time is written as `pip install --no-index --find-links dist {name}`.
    """
    bad, seen = {}, 0
    for path in documents():
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        for found in INSTALLERS.finditer(text.replace("\\\n", " ")):
            seen += 1
            if could_fetch_ours(found["rest"]):
                bad.setdefault(path.relative_to(ROOT).as_posix(), found[0].strip())
    assert seen > 10, "the search finds no install command at all, so it tests nothing"
    assert bad == {}
