"""Every kind is rendered, linted, typed, built, installed beside the kernel's wheel, and passes its own tests."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import copier
import pytest

from tests.support import fresh
from tests.support.install import ROOT, is_ours, runtime_requirements

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]  # for a machine that does much else

TEMPLATE = ROOT / "plugin-template"
KINDS = ("transport", "store", "pool", "serializer", "compressor", "scheduler", "autoscaler")
NAME = "mini-q"
# What a name or sentence may hold that TOML, Python and YAML read differently.
AUTHOR = 'Ada "L" O\'Lövelace \\ Söhne: #1'
DESCRIPTION = "Does 'it' \"fast\" \\ with {{ braces }}, ünïcode and 😀"


def render(target: Path, **answers: str) -> Path:
    answers = {"kind": "transport", "name": NAME, "author": AUTHOR, "description": DESCRIPTION} | answers
    copier.run_copy(str(TEMPLATE), target, data=answers, defaults=True, quiet=True)
    return target


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All seven in one tree laid out like ours, so that the root's tool configuration holds for them."""

    def make(folder: Path) -> None:
        shutil.copy(ROOT / "pyproject.toml", folder)
        (folder / "core").symlink_to(ROOT / "core")
        for kind in KINDS:
            render(folder / "plugins" / f"{kind}-{NAME}", kind=kind)

    return fresh.once(tmp_path_factory, "rendered", make)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, rendered: Path) -> fresh.Environment:
    """One environment with the kernel's wheel and the seven, installed as the README says, dependencies looked up."""

    def make(folder: Path) -> None:
        wheels = folder / "wheels"
        fresh.build([ROOT / "core", *(rendered / "plugins" / f"{kind}-{NAME}" for kind in KINDS)], wheels)
        needs = [r for r in runtime_requirements(ROOT / "core") if not is_ours(r)]
        environment = fresh.Environment(folder / "venv", *needs, "pytest", "pytest-timeout", "hypothesis")
        environment.install(*(f"taskq-{kind}-{NAME}" for kind in KINDS), find_links=[wheels])

    return fresh.Environment(fresh.once(tmp_path_factory, "installed", make) / "venv")


# -- questions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "answer", "says"),
    [
        ("name", "", "a letter first"),
        ("name", "Mini", "Lowercase"),
        ("name", "mini_q", "Lowercase"),
        ("name", "mini q", "Lowercase"),
        ("name", "9mini", "a letter first"),
        ("name", "mini-", "single hyphens"),
        ("name", "mini--q", "single hyphens"),
        ("name", "mini\n", "Lowercase"),
        ("name", "../mini", "Lowercase"),
        ("name", "transport-mini", "put before it"),
        ("name", "taskq-mini", "put before it"),
        ("name", "m" * 41, "40 characters"),
        ("author", " ", "has an author"),
        ("author", "Ada\nLovelace", "One line"),
        ("description", "", "One sentence"),
        ("description", "x" * 91, "this has 91"),
        ("description", "two\nlines", "One line"),
        ("kind", "broker", "Invalid choice"),
        ("licence", "My own", "Invalid choice"),
    ],
)
def test_answers_that_would_not_work_are_refused(tmp_path: Path, question: str, answer: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        render(tmp_path / "new", **{question: answer})
    assert not (tmp_path / "new").exists()


def test_every_question_is_explained_and_checked() -> None:
    """What users are asked has a help text; free text has a validator, and what is computed is never asked."""
    import yaml

    config = yaml.safe_load((TEMPLATE / "copier.yml").read_text("utf-8"))
    questions = {k: v for k, v in config.items() if not k.startswith("_") and v.get("when") is not False}
    assert list(questions) == ["kind", "name", "author", "description", "licence"]
    assert all(q["help"].endswith("?") or ")" in q["help"] for q in questions.values())
    assert all("choices" in q or "validator" in q for q in questions.values())


def test_the_answers_are_kept(rendered: Path) -> None:
    import yaml

    kept = yaml.safe_load((rendered / f"plugins/pool-{NAME}/.copier-answers.yml").read_text("utf-8"))
    answers = {"kind": "pool", "name": NAME, "author": AUTHOR, "description": DESCRIPTION, "licence": "BSD-3-Clause"}
    assert answers.items() <= kept.items()
    assert set(kept) - set(answers) == {"_src_path"}, "computed values are no answers"


# -- what is rendered -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_layout_is_that_of_the_house(rendered: Path, kind: str) -> None:
    folder = rendered / f"plugins/{kind}-{NAME}"
    package = f"src/taskq_{kind}_mini_q"
    # another test may have run in there already
    files = [f for f in folder.rglob("*") if f.is_file() and f.parent.name != "__pycache__"]
    assert {f.relative_to(folder).as_posix() for f in files} == {
        *("pyproject.toml", "README.md", "CHANGELOG.md", ".copier-answers.yml"),
        *(f"{package}/{name}" for name in ("__init__.py", "py.typed", "plugin.py", "options.py", f"{kind}.py")),
        *("tests/test_conformance.py", "tests/test_mini_q.py"),
    }
    data = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))
    ours = tomllib.loads((ROOT / "plugins/compressor-zlib/pyproject.toml").read_text("utf-8"))
    project = data["project"]
    group = "result_stores" if kind == "store" else f"{kind}s"
    assert project["entry-points"] == {f"taskq.{group}": {NAME: f"taskq_{kind}_mini_q.plugin"}}
    assert (project["name"], project["description"]) == (f"taskq-{kind}-{NAME}", DESCRIPTION)
    assert project["authors"] == [{"name": AUTHOR}]
    assert data["build-system"] == ours["build-system"]
    assert data["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == [package]
    for key in ("version", "readme", "license", "requires-python", "keywords"):
        assert project[key] == ours["project"][key]
    for file in files:
        text = file.read_text("utf-8")
        assert not re.search(r"\{%|%\}|\{\{(?! braces \}\})", text), f"{file}: not rendered"
        assert not text or (text.endswith("\n") and not text.endswith("\n\n")), f"{file}: ends badly"
    assert "REPLACE" in (folder / package / f"{kind}.py").read_text("utf-8"), "says nowhere what to replace"


def test_the_code_passes_our_linter_and_formatter(rendered: Path) -> None:
    for command in (["check"], ["format", "--diff"]):
        fresh.run(sys.executable, "-m", "ruff", *command, "--no-cache", "plugins", cwd=rendered)


def test_the_code_is_strictly_typed(rendered: Path, tmp_path: Path) -> None:
    packages = sorted(rendered.glob("plugins/*/src/*"))
    assert len(packages) == len(KINDS)
    fresh.run(sys.executable, "-m", "mypy", "--cache-dir", tmp_path, *packages, cwd=rendered)


# -- what is installed ------------------------------------------------------------------------------------------------


def test_list_shows_all_seven_and_nothing_else(installed: fresh.Environment) -> None:
    found = json.loads(installed.run("taskq", "plugins", "list", "--json"))["plugins"]
    assert sorted((p["kind"], p["name"], p["distribution"], p["state"]) for p in found) == sorted(
        ("result_store" if kind == "store" else kind, NAME, f"taskq-{kind}-{NAME}", "installed") for kind in KINDS
    )


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_accepted_and_passes_its_tests(installed: fresh.Environment, rendered: Path, kind: str) -> None:
    checked = json.loads(installed.run("taskq", "plugins", "check", f"taskq-{kind}-{NAME}", "--json"))
    assert [(p["distribution"], p["state"]) for p in checked["plugins"]] == [(f"taskq-{kind}-{NAME}", "loaded")]
    assert DESCRIPTION in installed.run("taskq", "plugins", "show", f"{kind.replace('store', 'result_store')}:{NAME}")
    command = ("python", "-m", "pytest", "-c", "/dev/null", "--rootdir", ".", "-p", "no:cacheprovider")
    options = ("-q", "-W", "error", "--timeout", "60", "-o", "xfail_strict=true", "tests")
    output = installed.run(*command, *options, cwd=rendered / f"plugins/{kind}-{NAME}")
    passed = re.search(r"(\d+) passed", output)
    assert passed, output
    assert int(passed[1]) >= 15, output
    assert "xfailed" not in output, output


def test_a_wheel_holds_the_package_and_nothing_else(installed: fresh.Environment) -> None:
    wheels = sorted(installed.folder.parent.glob(f"wheels/taskq_*_{NAME.replace('-', '_')}-*.whl"))
    assert len(wheels) == len(KINDS)
    for wheel in wheels:
        package, version = wheel.name.split("-")[:2]
        with zipfile.ZipFile(wheel) as archive:
            assert {name.partition("/")[0] for name in archive.namelist()} == {
                package,
                f"{package}-{version}.dist-info",
            }


def test_the_kernels_wheel_must_be_there(installed: fresh.Environment, tmp_path: Path) -> None:
    """Without it pip has nowhere to get it from, and says so: taskq-core is never fetched."""
    empty = fresh.Environment(tmp_path / "venv")
    wheels = tmp_path / "wheels"
    fresh.build([render(tmp_path / "new", kind="compressor")], wheels)
    output = empty.install(f"taskq-compressor-{NAME}", find_links=[wheels], ok=1)
    assert "No matching distribution found for taskq-core>=0.1" in output
    assert installed.folder.exists()


# -- later ------------------------------------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    who = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    for role in ("AUTHOR", "COMMITTER"):
        who |= {f"GIT_{role}_NAME": "t", f"GIT_{role}_EMAIL": "t@example.com"}
    return fresh.run("git", *arguments, cwd=folder, **who)


def test_update_brings_changes_of_the_template_to_what_was_made_with_it(tmp_path: Path) -> None:
    """As the README says: by a branch that holds the template alone. The author's own changes stay."""
    clone, project = tmp_path / "clone", tmp_path / "mine"
    shutil.copytree(TEMPLATE, clone / "plugin-template", ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
    (clone / "README.md").write_text("the clone's, not the template's\n")
    git(clone.parent, "init", "-q", "-b", "main", str(clone))
    split = ("subtree", "split", "--prefix", "plugin-template", "--branch", "plugin-template")
    if subprocess.run(["git", "subtree", "--help"], cwd=clone, capture_output=True, check=False).returncode:
        pytest.skip("git has no subtree command here")

    def commit(folder: Path) -> None:
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", "work")

    def run_copier(command: str, *arguments: str | Path) -> None:
        # Trusting the file protocol is git's own question about clones of clones.
        options = ("--defaults", "--quiet", "--vcs-ref", "plugin-template")
        fresh.run(sys.executable, "-m", "copier", command, *options, *arguments, cwd=clone)

    commit(clone)
    git(clone, *split)
    data = [part for pair in ("kind=pool", f"name={NAME}", "author=Ada") for part in ("--data", pair)]
    run_copier("copy", *data, clone, project)
    git(project, "init", "-q", "-b", "main")
    commit(project)
    driver = project / "src/taskq_pool_mini_q/pool.py"
    driver.write_text(driver.read_text("utf-8") + "# the author's own line\n")
    commit(project)

    source = clone / "plugin-template/kinds/pool/driver.py.jinja"
    source.write_text("# a line that is new in the template\n" + source.read_text("utf-8"))
    commit(clone)
    git(clone, *split)
    run_copier("update", project)
    text = driver.read_text("utf-8")
    assert text.startswith("# a line that is new in the template\n")
    assert text.endswith("# the author's own line\n")
    assert not list(project.rglob("*.rej"))


def test_recopy_renders_again_with_the_answers_given_before(tmp_path: Path) -> None:
    project = render(tmp_path / "mine", kind="store", licence="MIT")
    (project / "pyproject.toml").write_text("spoilt")
    copier.run_recopy(project, defaults=True, overwrite=True, quiet=True)
    data = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))
    assert (data["project"]["name"], data["project"]["license"]) == (f"taskq-store-{NAME}", "MIT")
