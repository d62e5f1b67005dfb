"""What is known of plugins, as plain data: nothing here imports a plugin."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

Kind = Literal["transport", "pool", "serializer", "compressor", "result_store", "scheduler", "autoscaler"]
KINDS: tuple[Kind, ...] = (
    "transport", "pool", "serializer", "compressor", "result_store", "scheduler", "autoscaler",
)  # fmt: skip
"""The kinds of which configuration selects one by name."""
GROUPS: dict[str, str] = {f"taskq.{kind}s": kind for kind in (*KINDS, "plugin", "command")}
"""Entry-point group → kind of record; ``plugin`` is a contribution, ``command`` a command of the command line."""
URL_KINDS = frozenset({"transport", "result_store"})
"""Kinds whose name is a URL scheme."""


class State(StrEnum):
    """How far a plugin has come, or why it went no further."""

    INSTALLED = "installed"
    LOADED = "loaded"
    BLOCKED = "blocked"
    CONFLICT = "conflict"
    BROKEN = "broken"
    INCOMPATIBLE = "incompatible"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """One entry point of one installed distribution.

    ``value`` is the entry point's ``module[:attribute]``, ``path`` the folder of the distribution's metadata;
    ``detail`` says why the state is what it is.
    """

    kind: str
    name: str
    value: str
    distribution: str
    version: str
    state: State = State.INSTALLED
    detail: str = ""
    path: str = ""

    @property
    def origin(self) -> str:
        """The distribution and its version, as errors name it."""
        return f"{self.distribution} {self.version}".rstrip()

    def as_dict(self) -> dict[str, str]:
        """Return the fields as plain data in declaration order, for ``--json``."""
        return {name: str(getattr(self, name)) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a name leads to a plugin, or to none.

    ``candidates`` pairs every record that was considered with what excluded it (empty for the chosen one), ``setting``
    names the setting that decided, ``error`` is the type of the error that ``select`` would raise.
    """

    kind: str
    name: str
    candidates: tuple[tuple[PluginRecord, str], ...]
    chosen: PluginRecord | None
    setting: str
    error: str
    lines: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the explanation as plain data, for ``--json``."""
        return {
            "kind": self.kind,
            "name": self.name,
            "chosen": self.chosen.as_dict() if self.chosen else None,
            "setting": self.setting,
            "error": self.error,
            "candidates": [{**record.as_dict(), "excluded": why} for record, why in self.candidates],
            "lines": list(self.lines),
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """The outcome of discovery and policy; picklable, so that a child process need not scan."""

    records: tuple[PluginRecord, ...]
    choose: tuple[tuple[str, str], ...] = ()
