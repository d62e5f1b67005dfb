"""Read which plugins are installed, from metadata alone: one pass over the distributions, no import, no cache."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from taskq._plugins.records import GROUPS, URL_KINDS, PluginRecord, State

if TYPE_CHECKING:
    from importlib.metadata import Distribution

_VALUE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*(:[^\W\d]\w*(\.[^\W\d]\w*)*)?\Z")
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ORDER = {kind: position for position, kind in enumerate(GROUPS.values())}


def canonical(name: str) -> str:
    """Return a distribution's name in the one form in which names compare equal."""
    return re.sub(r"[-_.]+", "-", name).lower()


def scan(distributions: Iterable[Distribution] | None = None) -> tuple[PluginRecord, ...]:
    """Return a record per entry point of a ``taskq.*`` group, sorted.

    Damaged metadata gives a record that says so. Of a distribution seen twice (``sys.path`` holds two copies) the first
    counts, as it does for imports.
    """
    if distributions is None:
        from importlib.metadata import distributions as installed

        distributions = installed()
    seen: set[str] = set()
    found: list[PluginRecord] = []
    for distribution in distributions:
        path = str(getattr(distribution, "_path", ""))
        name = _folder_name(path)
        # The folder's name identifies the distribution without parsing METADATA, which is slow.
        if name and name in seen:
            continue
        seen.add(name)
        try:
            text = distribution.read_text("entry_points.txt") or ""
            if "[taskq." not in text:
                continue
            record = _identify(distribution, path)
        except Exception as exc:
            if name.startswith("taskq"):  # a stranger's damage is not our business
                detail = f"its metadata cannot be read: {exc}"
                found.append(PluginRecord("?", "?", "?", name, "?", State.BROKEN, detail, path))
            continue
        if not name and canonical(record.distribution) in seen:
            continue
        seen.add(canonical(record.distribution))
        found += _entries(text, record)
    return tuple(sorted(found, key=lambda r: (_ORDER.get(r.kind, 99), r.name, r.distribution, r.value)))


def _folder_name(path: str) -> str:
    stem = path.replace("\\", "/").rstrip("/").rpartition("/")[2]
    if stem.lower() == "egg-info":  # inside an .egg every folder is called so
        return ""
    return canonical(re.split(r"-\d|\.(?:dist|egg)-info\Z", stem)[0])


def _identify(distribution: Distribution, path: str) -> PluginRecord:
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    header: dict[str, str] = {}
    for line in text.splitlines():  # a fraction of what the e-mail parser costs
        if not line.strip():
            break
        key, _, value = line.partition(":")
        header.setdefault(key.lower(), value.strip())
    missing = [key for key in ("name", "version") if not header.get(key)]
    return PluginRecord(
        kind="",
        name="",
        value="",
        distribution=header.get("name") or _folder_name(path) or "?",
        version=header.get("version") or "?",
        state=State.BROKEN if missing else State.INSTALLED,
        detail=f"its METADATA has no {' and no '.join(missing)}; reinstall it" if missing else "",
        path=path,
    )


def _entries(text: str, template: PluginRecord) -> Iterator[PluginRecord]:
    entries: dict[tuple[str, str], list[str]] = {}
    group = ""
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
        elif line and line[0] not in "#;" and group.startswith("taskq."):
            name, _, value = line.partition("=")
            values = entries.setdefault((group, name.strip()), [])
            value = value.partition("[")[0].strip()  # extras, which installers ignore
            if value not in values:
                values.append(value)
    for (group, name), values in entries.items():
        for value in values:
            fault = _fault(group, name, value, len(values))
            record = replace(template, kind=GROUPS.get(group, "?"), name=name, value=value)
            yield replace(record, state=State.INVALID, detail=fault) if fault else record


def _fault(group: str, name: str, value: str, values: int) -> str:
    if group not in GROUPS:
        return f"{group!r} is no entry-point group of taskq; there are {', '.join(GROUPS)}"
    if not _VALUE.match(value):
        return f"its entry point reads {f'{name} = {value}'!r}, not 'name = package.module'"
    if values > 1:
        return f"the distribution declares {GROUPS[group]} {name!r} {values} times with different values"
    if GROUPS[group] in URL_KINDS and name != name.lower():
        return f"{name!r} can never be selected: URL schemes are lower case"
    return ""


def missing_requirements(distribution: str) -> list[str]:
    """Return the requirements of an installed distribution of which nothing is installed.

    Requirements with a marker (extras, platforms) are left out, versions are not compared.
    """
    from importlib.metadata import PackageNotFoundError, requires
    from importlib.metadata import distribution as find

    missing = []
    try:
        required = requires(distribution) or []
    except PackageNotFoundError:
        return []
    for requirement in required:
        name = _REQUIREMENT.match(requirement)
        if name and ";" not in requirement:
            try:
                find(name.group())
            except PackageNotFoundError:
                missing.append(requirement)
    return missing
