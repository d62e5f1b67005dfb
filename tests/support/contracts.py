"""Run import-linter on the contracts of pyproject.toml, expanded to what exists in the tree.

import-linter wants every package named; this tree gains one per plugin. So the lists in pyproject.toml hold patterns:
`taskq_*` is every package of plugins/ and contrib/, `taskq.*` every module directly in the kernel; `!pattern` takes
away.
"""

from __future__ import annotations

import configparser
import sys
import tempfile
import tomllib
from fnmatch import fnmatchcase
from typing import Any

from importlinter.cli import lint_imports

from tests.support.install import ROOT, distributions


def present() -> list[str]:
    """The tree's import packages, and the modules directly in the kernel."""
    packages = [f.parent.name for d in distributions() for f in sorted(d.glob("src/*/__init__.py"))]
    kernel = [f for f in sorted(ROOT.glob("core/src/taskq/*")) if f.suffix == ".py" or (f / "__init__.py").exists()]
    return packages + [f"taskq.{f.stem}" for f in kernel if f.stem != "__init__"]


def expand(patterns: list[str], names: list[str]) -> list[str]:
    """`a_*.**` expands its first part and keeps the rest, which import-linter reads itself."""
    found: list[str] = []
    for pattern in patterns:
        if pattern.startswith("!"):
            found = [n for n in found if not fnmatchcase(n.removesuffix(".**"), pattern[1:])]
        elif "*" not in pattern:
            found.append(pattern)
        else:
            stem, rest = pattern.removesuffix(".**"), ".**" if pattern.endswith(".**") else ""
            found += [n + rest for n in names if n.count(".") == stem.count(".") and fnmatchcase(n, stem)]
    return found


def as_ini(table: dict[str, Any], names: list[str]) -> configparser.ConfigParser:
    """The expanded contracts, in the format of import-linter's that the standard library can write."""
    ini = configparser.ConfigParser(delimiters=("=",))

    def section(name: str, options: dict[str, Any]) -> None:
        ini[name] = {
            # A leading empty line makes a list of one a list.
            key: "\n" + "\n".join(expand(value, names) if "modules" in key or "packages" in key else value)
            if isinstance(value, list)
            else str(value)
            for key, value in options.items()
        }

    section("importlinter", {k: v for k, v in table.items() if k != "contracts"})
    for contract in table["contracts"]:
        lists = [expand(v, names) for k, v in contract.items() if k.endswith("modules")]
        if all(lists):  # no plugin yet: nothing to hold
            section(f"importlinter:contract:{contract['id']}", {k: v for k, v in contract.items() if k != "id"})
    return ini


def main() -> int:
    names = present()
    if "taskq" not in names:
        print("contracts: core/src/taskq is not there yet, nothing to check")
        return 0
    sys.path[:0] = [str(folder / "src") for folder in distributions()]  # installed or not
    table = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    with tempfile.NamedTemporaryFile("w", suffix=".ini") as file:
        as_ini(table, names).write(file)
        file.flush()
        # The cache lies in the user's home by default.
        return lint_imports(config_filename=file.name, cache_dir=str(ROOT / ".import_linter_cache"), no_logo=True)


if __name__ == "__main__":
    sys.exit(main())
