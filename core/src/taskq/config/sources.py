"""Where values come from: files with their line numbers, places in code, variables, options."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct

from taskq.errors import ConfigError

Path = tuple[str, ...]
"""A setting's place: ("worker", "pool"), ("queues", NAME, "priority"), ("transports", NAME, OPTION)."""

RANKS = ("default", "plugin", "code", "file", "environment", "url", "command line")
SourceKind = Literal["default", "plugin", "code", "file", "environment", "url", "command line"]


class Origin(Struct, frozen=True):
    """Where a value came from. ``where``: ``file:line``, the variable, the option, the distribution or the URL."""

    kind: SourceKind
    where: str = ""

    @property
    def rank(self) -> int:
        """A higher rank wins."""
        return RANKS.index(self.kind)

    def __str__(self) -> str:
        if self.kind == "file":
            return self.where
        return f"{self.kind} {self.where}".rstrip()


DEFAULT = Origin("default")


class Given(Struct, frozen=True):
    """A value with its origin; also taken in mappings from code or the command line, to say exactly where it stands.

    The repr hides the value: it may be a secret.
    """

    value: Any
    origin: Origin

    def __repr__(self) -> str:
        return f"Given(***, {self.origin})"


class ConfigFile(Struct, frozen=True):
    """A file that was read: its settings as nested tables, and the line of each table and key."""

    path: str
    tables: Mapping[str, Any]
    lines: Mapping[Path, int]

    def origin(self, path: Path) -> Origin:
        """Return ``file:line`` of a setting, of the nearest enclosing table where it has no line of its own."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return Origin("file", f"{self.path}:{self.lines[path[:end]]}")
        return Origin("file", self.path)


def find_file(named: str | None, cwd: str | None) -> tuple[ConfigFile | None, list[str]]:
    """Read the named file, or the nearest one upward from ``cwd``; return it with warnings.

    The search ends at the root of a repository, at the home directory, and at the root of the file system.

    Raises:
        ConfigError: a named file is missing, or a file cannot be read.
    """
    if named is not None:
        path = os.path.abspath(os.path.expanduser(named))
        found = read_file(path)
        if found is None:
            raise ConfigError(f"{path} has no [tool.taskq] section, but it was named as the configuration file")
        return found, []
    try:
        directory = os.path.abspath(cwd or os.getcwd())
    except FileNotFoundError:  # the working directory was deleted
        return None, []
    home = os.path.expanduser("~")
    while True:
        own, project = os.path.join(directory, "taskq.toml"), os.path.join(directory, "pyproject.toml")
        if os.path.isfile(own):
            both = os.path.isfile(project) and read_file(project) is not None
            return read_file(own), [f"[tool.taskq] in {project} is not read, because {own} is there"] if both else []
        if os.path.isfile(project) and (found := read_file(project)) is not None:
            return found, []
        parent = os.path.dirname(directory)
        if directory in (home, parent) or any(os.path.exists(os.path.join(directory, m)) for m in (".git", ".hg")):
            return None, []
        directory = parent


def read_file(path: str) -> ConfigFile | None:
    """Read a TOML file; None where it is a ``pyproject.toml`` without ``[tool.taskq]``.

    Raises:
        ConfigError: it cannot be opened, or it is not TOML.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error.strerror}") from None
    root: Path = ("tool", "taskq") if os.path.basename(path) == "pyproject.toml" else ()
    if root and b"taskq" not in data:
        return None
    import tomllib  # only where there is a file to read

    try:
        text = data.decode()
        tables: Any = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        where = re.search(r" \(at [^()]*\)\Z", str(error))  # the rest of the text may quote a password
        reason = f"syntax error{where[0]}" if where else type(error).__name__
        raise ConfigError(f"the configuration file {path} is not TOML: {reason}") from None
    for part in root:
        tables = tables.get(part)
        if not isinstance(tables, Mapping):
            return None
    lines = {key[len(root) :]: line for key, line in _lines(text).items() if key[: len(root)] == root}
    return ConfigFile(path, tables, lines)


_KEY = r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[A-Za-z0-9_-]+)"""
_DOTTED = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_LINE = rf"\s*(?:\[\[?\s*(?P<table>{_DOTTED})\s*\]\]?|(?P<key>{_DOTTED})\s*=)"


def _lines(text: str) -> dict[Path, int]:
    """Return the first line of each table and key of a well-formed TOML text, as far as a look at its lines tells."""
    found: dict[Path, int] = {}
    table: Path = ()
    quote = ""  # the delimiter of the multi-line string that we are in
    for number, line in enumerate(text.split("\n"), 1):
        if not quote and (match := re.match(_LINE, line)):
            parts = tuple(part.strip("\"'") for part in re.findall(_KEY, match["table"] or match["key"]))
            path = parts if match["table"] else table + parts
            table = path if match["table"] else table
            for end in range(1, len(path) + 1):
                found.setdefault(path[:end], number)
        for mark in ('"""', "'''"):
            if quote in ("", mark) and line.count(mark) % 2:
                quote = "" if quote else mark
    return found
