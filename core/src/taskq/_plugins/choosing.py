"""Decide which record a name means: patterns, conflicts, choices. Pure functions on records; nothing is imported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from taskq._plugins.discovery import canonical
from taskq._plugins.hints import label, not_installed
from taskq._plugins.records import GROUPS, Explanation, PluginRecord, State
from taskq.errors import (
    ConfigError,
    PluginBlocked,
    PluginBroken,
    PluginConflict,
    PluginError,
    PluginInvalid,
    PluginNotInstalled,
)

_KINDS = tuple(GROUPS.values())


def parse_kind(text: str, *, where: str) -> str:
    """Return the kind that a setting or option names (``store`` is short for ``result_store``).

    Raises:
        ConfigError: there is no such kind.
    """
    kind = "result_store" if text == "store" else text.replace("-", "_")
    if kind not in _KINDS:
        raise ConfigError(f"{where}: there is no kind {text!r}; the kinds are {', '.join(_KINDS)}")
    return kind


def check_pattern(pattern: str, *, setting: str) -> str:
    """Return a pattern of a setting in its normal form: ``kind:name``, an entry's name or a distribution.

    Raises:
        ConfigError: it is empty or names no kind.
    """
    where = f"{setting} = {pattern!r}"
    kind, colon, name = pattern.strip().partition(":")
    if not kind or (colon and not name):
        raise ConfigError(f"{where}: write a plugin's name, 'kind:name' or a distribution")
    if not colon:
        head, dot, rest = kind.partition(".")
        if dot and head in _KINDS:
            raise ConfigError(f"{where}: write '{head}:{rest}'")
        return kind
    return f"{parse_kind(kind, where=where)}:{name}"


def matches(pattern: str, record: PluginRecord) -> bool:
    """Tell whether a pattern (see ``check_pattern``) means a record; ``*`` stands for anything."""
    if ":" in pattern:
        return fnmatchcase(f"{record.kind}:{record.name}", pattern)
    return fnmatchcase(record.name, pattern) or fnmatchcase(canonical(record.distribution), canonical(pattern))


def apply_policy(
    records: Iterable[PluginRecord], blocked: Sequence[str], only: Sequence[str] | None, choose: Mapping[str, str]
) -> tuple[PluginRecord, ...]:
    """Return the records with the states that the settings and each other's presence give them."""
    result: list[PluginRecord] = []
    for record in records:
        pattern = next((p for p in blocked if matches(p, record)), None)
        choice = choose.get(f"{record.kind}:{record.name}")
        if pattern is not None:
            detail = f"plugins.blocked names {pattern!r}"
        elif only is not None and not any(matches(p, record) for p in only):
            detail = "plugins.only does not name it"
        elif choice and canonical(choice) != canonical(record.distribution):
            detail = f"plugins.choose takes {choice}"
        else:
            result.append(record)
            continue
        result.append(replace(record, state=State.BLOCKED, detail=detail))
    offers: dict[tuple[str, str], set[str]] = {}  # not adjacency: two offers may stand anywhere
    for record in result:
        if record.state is not State.BLOCKED and record.kind not in ("plugin", "?"):
            offers.setdefault((record.kind, record.name), set()).add(record.origin)
    return tuple(
        replace(r, state=State.CONFLICT, detail=f"offered by {' and '.join(sorted(offers[r.kind, r.name]))}")
        if r.state is State.INSTALLED and len(offers.get((r.kind, r.name), ())) > 1
        else r
        for r in result
    )


def decide(
    records: Sequence[PluginRecord], kind: str, name: str, choose: Mapping[str, str]
) -> tuple[Explanation, PluginError | None]:
    """Explain which record a name means, and return the error to raise where it means none."""
    offers = [r for r in records if r.kind == kind and r.name == name]
    allowed = [r for r in offers if r.state is not State.BLOCKED]
    key = f"{kind}:{name}"
    choice = choose.get(key, "")
    chosen: PluginRecord | None = None
    error: PluginError | None = None
    setting = "plugins.choose" if choice else ""
    if choice and not any(canonical(r.distribution) == canonical(choice) for r in offers):
        others = f"; it is offered by {', '.join(r.origin for r in offers)}" if offers else ""
        error = PluginNotInstalled(
            f"plugins.choose takes {key} from {choice}, which is not installed or does not offer it{others}"
        )
    elif not offers:
        error = PluginNotInstalled(not_installed(kind, name, {r.name for r in records if r.kind == kind}))
    elif not allowed:
        setting = offers[0].detail.partition(" ")[0]
        reasons = "; ".join(f"{r.origin}: {r.detail}" for r in offers)
        error = PluginBlocked(f"{label(kind, name)} is installed but may not load ({reasons}); change that setting")
    elif any(r.state is State.CONFLICT for r in allowed):
        offered = " and by ".join(f"{r.origin} ({r.value})" for r in allowed)
        error = PluginConflict(
            f"{label(kind, name)} is offered by {offered}; choose one with the setting "
            f'plugins.choose = {{"{key}" = "{allowed[0].distribution}"}}, or uninstall or block the other'
        )
    elif allowed[0].state in (State.BROKEN, State.INVALID):
        wrong = PluginBroken if allowed[0].state is State.BROKEN else PluginInvalid
        error = wrong(f"{label(kind, name)} of {allowed[0].origin} cannot be used: {allowed[0].detail}")
    else:
        chosen = allowed[0]
        if not setting and len(offers) > 1:
            setting = next(r.detail.partition(" ")[0] for r in offers if r.state is State.BLOCKED)
    # Of a kind that is selected only the chosen one is still "installed"; contributions all are.
    candidates = tuple((r, "" if r.state is State.INSTALLED else r.detail or str(r.state)) for r in offers)
    lines = [f"asked for {label(kind, name)}; {len(offers) or 'no'} installed distribution(s) offer it"]
    taken = f"chosen by {setting}" if setting else "chosen, the only one"
    for record, excluded in candidates:
        lines.append(f"{record.origin} ({record.value}): {f'excluded: {excluded}' if excluded else taken}")
    if error:
        lines.append(str(error))
    raised = type(error).__name__ if error else ""
    return Explanation(kind, name, candidates, chosen, setting, raised, tuple(lines)), error
