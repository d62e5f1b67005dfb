"""The tree itself: what may stand at its top, what every distribution looks like, and what must not be committed."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.support import install
from tests.support.install import ROOT

TOP = {
    *("pyproject.toml", "Makefile", "constraints.txt", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"),
    *("core", "plugins", "contrib", "tests", "plugin-template", "docs"),
}
KINDS = ("transport", "pool", "serializer", "compressor", "store", "scheduler", "autoscaler")
GROUPS = {
    *("transports", "pools", "serializers", "compressors", "result_stores", "schedulers", "autoscalers"),
    *("plugins", "commands"),
}
# Written so that this file does not contain them.
HOSTS = [
    *("pypi\\.org", "python" + "hosted\\.org", "registry\\.npmjs", "crates\\.io", "proxy\\.golang", "repo1?\\.maven"),
    *("deb\\.debian", "archive\\.ubuntu", "index-" + "url"),
]
DISTRIBUTIONS = [pytest.param(f, id=f.relative_to(ROOT).as_posix()) for f in install.distributions()]
PLUGINS = [p for p in DISTRIBUTIONS if str(p.id).partition("/")[2].startswith(tuple(f"{kind}-" for kind in KINDS))]


def files() -> list[Path]:
    """What is committed or would be."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git work tree")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))


def package(folder: Path) -> str:
    return project(folder)["project"]["name"].replace("-", "_").removesuffix("_core")


def test_only_known_entries_at_the_top() -> None:
    found = {file.relative_to(ROOT).parts[0] for file in files()}
    assert {name for name in found if not name.startswith(".")} <= TOP
    assert ".github" not in found


def test_no_lock_file_and_no_registry_host() -> None:
    """A lock file records addresses of the registry it was made with; so may a pip option or a URL in a document."""
    pattern = re.compile("|".join(HOSTS).encode())
    bad = [f.name for f in files() if f.name in {"uv.lock", "poetry.lock", "Pipfile.lock", "pdm.lock"}]
    bad += [f"{f.relative_to(ROOT)}: {m[0].decode()}" for f in files() if (m := pattern.search(f.read_bytes()))]
    assert not bad


def test_constraints_pin_everything_exactly_and_nothing_of_ours() -> None:
    lines = [x for x in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if x and not x.startswith("#")]
    assert [x for x in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", x)] == []
    assert [x for x in lines if install.is_ours(x)] == []
    assert [r for r in install.third_party(dev=True) if install.normalized(r) not in install.pinned()] == []


def test_pip_never_asks_an_index_for_a_name_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The names are not ours on the public index. If this fails: whoever registers one gets their code run here."""
    calls: list[list[str]] = []
    monkeypatch.setattr(install, "pip", lambda _, *arguments: calls.append([str(a) for a in arguments]))
    monkeypatch.setattr(install, "installed", lambda _: set())
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").touch()
    install.make_environment(tmp_path)
    install.make_wheels(tmp_path, tmp_path / "dist")
    offline = [call for call in calls if "--no-index" in call and "--no-deps" in call]
    online = [call for call in calls if call not in offline]
    assert len(offline) == len(online) == 2
    assert not [argument for call in online for argument in call if re.match(r"taskq\b", argument, re.IGNORECASE)]
    # Nor through a path, whose dependencies pip would look up.
    assert not [argument for call in online for argument in call if argument.startswith(str(ROOT))]
    assert {str(folder) for folder in install.distributions()} <= set(offline[-1])
    assert [install.is_ours(r) for r in ("TaskQ_Core>=1", "taskq[standard]", "taskqueue")] == [True, True, False]


@pytest.mark.parametrize("folder", DISTRIBUTIONS)
def test_every_distribution_is_laid_out_alike(folder: Path) -> None:
    data, name = project(folder), package(folder)
    where = folder.relative_to(ROOT).as_posix()
    wanted = {
        "core": ["taskq-core"],
        "plugins": [f"taskq-{folder.name}"],
        "contrib": [f"taskq-contrib-{folder.name}", f"taskq-{folder.name}"],
    }[where.partition("/")[0]]
    assert data["project"]["name"] in wanted
    assert data["build-system"] == {"requires": ["hatchling"], "build-backend": "hatchling.build"}
    assert data["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == [f"src/{name}"]
    assert data["project"]["version"] == project(ROOT / "core")["project"]["version"]
    assert data["project"]["license"] == "BSD-3-Clause"
    assert data["project"]["requires-python"] == ">=3.11"
    assert data["project"]["readme"] == "README.md"
    assert (folder / "README.md").is_file()
    assert [p.name for p in (folder / "src").iterdir() if not p.name.startswith(".")] == [name]
    assert (folder / "src" / name / "py.typed").is_file()
    assert (folder / "src" / name / "__init__.py").is_file()
    # It would be the package `tests`, which is the one at the top.
    assert not (folder / "tests/__init__.py").exists()


@pytest.mark.parametrize("folder", DISTRIBUTIONS)
def test_entry_points_are_in_known_groups_and_in_the_package(folder: Path) -> None:
    groups = project(folder)["project"].get("entry-points", {})
    assert set(groups) <= {f"taskq.{group}" for group in GROUPS} | {"pytest11"}
    if folder.name.startswith("lib-"):
        assert not groups, "a taskq-lib-* is a library, not a plugin"
    for entries in groups.values():
        assert all(re.match(rf"{package(folder)}[.:]|{package(folder)}$", value) for value in entries.values())


@pytest.mark.parametrize("folder", PLUGINS)
def test_every_plugin_has_the_same_files(folder: Path) -> None:
    kind, _, name = folder.name.partition("-")
    source = folder / "src" / package(folder)
    assert {"__init__.py", "plugin.py", f"{kind}.py"} <= {p.name for p in source.iterdir()}
    assert {p.name for p in source.glob("*.py") if re.search(r"= option\(", p.read_text("utf-8"))} <= {"options.py"}
    tests = {p.name for p in folder.glob("tests/*")}
    assert "test_conformance.py" in tests
    own = name.replace("-", "_")
    assert tests & {f"test_{own}.py", f"test_{kind}_{own}.py", f"test_{own}_{kind}.py"}
