"""Merging: each source is checked against the schema, later sources win, every problem is collected."""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from msgspec import NODEFAULT, json

from taskq.config.celery import celery_hint
from taskq.config.redact import redact
from taskq.config.schema import (
    IGNORED_VARIABLES,
    PLUGIN_SECTIONS,
    READ_ELSEWHERE,
    SHORT,
    RouteSettings,
    Section,
    Settings,
)
from taskq.config.sources import DEFAULT, Given, Origin, Path
from taskq.config.values import About, Field, Mismatch, convert, fields_of
from taskq.errors import ConfigError, UnknownSetting

SECTIONS = frozenset(PLUGIN_SECTIONS.values())
_NAMED = SECTIONS | {"brokers", "queues", "schedules"}
"""Tables of tables, whose names the user chooses."""
_BAD: Any = object()


def table_class(field: Field) -> type[Section] | None:
    """Return the class of a field that is a table of settings, or a table of such tables."""
    inner = typing.get_args(field.type)[1] if field.name in _NAMED else field.type
    return inner if isinstance(inner, type) and issubclass(inner, Section) else None


@cache
def leaves() -> Mapping[Path, Field]:
    """Return every setting by its place; ``*`` stands for a name that the user chooses."""
    found: dict[Path, Field] = {}
    for name, field in fields_of(Settings).items():
        table = table_class(field)
        prefix = (name, "*") if name in _NAMED else (name,)
        found |= {(*prefix, key): inner for key, inner in fields_of(table).items()} if table else {prefix: field}
    return found | {(section, "*", "*"): Field("*", Any, About(), None) for section in sorted(SECTIONS)}


def pattern_of(path: Path) -> Path:
    """Return the schema's place for a place."""
    if len(path) > 1 and path[0] in _NAMED:
        path = (path[0], "*", *path[2:])
    return (*path[:2], "*") if len(path) == 3 and path[0] in SECTIONS else path


def dotted(path: Path) -> str:
    """Return a place as it is written: parts with unusual characters in quotes."""
    return ".".join(part if re.fullmatch(r"[\w+*-]+", part) else f'"{part}"' for part in path)


def plain(name: str) -> str:
    """Return a plugin's or queue's name as its environment variables spell it, in lower case."""
    return re.sub(r"\W", "_", name).lower()


def variables() -> dict[str, Path]:
    """Return the environment variable of every setting; whole tables of names are given as JSON."""
    paths = [path for path in leaves() if "*" not in path] + [(name,) for name in _NAMED - SECTIONS]
    return {f"TASKQ_{joint.join(path)}".upper(): path for path in paths for joint in ("_", "__")}


def suggest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean …?" with the nearest known names, or an empty text."""
    from difflib import get_close_matches

    lower, known = name.lower().replace("-", "_"), list(known)
    last = {k: k.rpartition(".")[2] for k in known}
    near = [k for k in known if lower == k] or [k for k in known if lower == last[k]]
    near = near or get_close_matches(lower, known, 3, 0.65)
    near = near or [k for k in known if get_close_matches(lower, [last[k]], 1, 0.8)]
    return f"; did you mean {' or '.join(repr(k) for k in near[:3])}?" if near else ""


class Merge:
    """The sources so far."""

    def __init__(self) -> None:
        self.entries: dict[Path, Given] = {}
        self.problems: list[ConfigError] = []
        self.warnings: list[str] = []

    def mapping(self, mapping: Mapping[str, Any], origin: Origin) -> None:
        """Take a mapping from code or the command line: nested tables, or dotted keys ("worker.pool").

        In ``transports.NAME.OPTION`` and its like the name may hold dots itself.
        """
        for key, value in mapping.items():
            first, _, rest = str(key).partition(".")
            middle, _, last = rest.rpartition(".")
            for part in (last, middle):
                value = {part: value} if part else value
            self.put((first,), value, lambda _: origin)

    def environment(self, environ: Mapping[str, str]) -> None:
        """Take the ``TASKQ_*`` variables; an empty one is not set, an unknown one is a warning."""
        known = variables()
        unknown: list[str] = []
        for name in sorted(environ):
            read_elsewhere = name in READ_ELSEWHERE or name.startswith(IGNORED_VARIABLES)
            if read_elsewhere or not name.startswith("TASKQ_") or not environ[name]:
                continue
            path, origin = known.get(name), Origin("environment", name)
            section, _, rest = name.removeprefix("TASKQ_").lower().partition("__")
            if path is None and section in SHORT and rest and "__" not in rest:
                rest += f"__{SHORT[section]}"
            if path is None and section in _NAMED and "__" in rest:
                middle, _, key = rest.partition("__")
                middle = next((p[1] for p in self.entries if p[0] == section and plain(p[1]) == middle), middle)
                path = (section, middle, key) if pattern_of((section, middle, key)) in leaves() else None
            if path is None:
                unknown.append(name)
            elif path in self.entries and (old := self.entries[path].origin).kind == "environment":
                self.problems.append(ConfigError(f"{old.where} and {name} both set {dotted(path)}; remove one"))
            else:
                self.put(path, environ[name], lambda _, origin=origin: origin)  # type: ignore[misc]
        if unknown:
            self.warnings.append(_unknown_variables(unknown, known))

    def put(self, path: Path, value: Any, origin_of: Callable[[Path], Origin]) -> None:
        """Take a value at a place: a setting is converted, a table walked, anything else is a problem."""
        if isinstance(value, Given):
            given = value.origin
            self.put(path, value.value, lambda _: given)
            return
        if value is None:
            return
        pattern, origin = pattern_of(path), origin_of(path)
        if len(path) == 2 and path[0] in SHORT and not isinstance(_from_json(value), Mapping):
            path = (*path, SHORT[path[0]])
            pattern = pattern_of(path)
        if pattern in leaves():
            result = self.convert(path, leaves()[pattern], value, origin)
            if result is not _BAD:
                self.entries[path] = Given(result, origin)
        elif any(pattern == leaf[: len(pattern)] for leaf in leaves()):
            table = _from_json(value)
            if not isinstance(table, Mapping):
                self.refuse(path, "a table", value, origin)
                return
            if len(path) == 2:  # a name alone counts too: a queue with default properties
                self.entries.setdefault(path, Given({}, origin))
            for key, item in table.items():
                self.put((*path, str(key)), item, origin_of)
        else:
            siblings = [leaf[-1] for leaf in leaves() if leaf[:-1] == pattern[:-1]] if len(path) > 1 else []
            everything = [dotted(p).replace("*", "NAME") for p in leaves() if p[0] not in SECTIONS] + sorted(_NAMED)
            hint = celery_hint(path[-1])
            if path == ("tool",):
                hint = "in a file of its own the settings stand at the top level, without [tool.taskq]"
            advice = f"; {hint}" if hint else suggest(path[-1], siblings) or suggest(path[-1], everything)
            self.problems.append(UnknownSetting(f"unknown setting {dotted(path)!r} ({origin}){advice}"))

    def refuse(self, path: Path, expected: str, value: Any, origin: Origin, *, hide: bool = False) -> None:
        """Collect a wrong value, shown as far as it may be."""
        value = _from_json(value)
        hide = hide or (isinstance(value, str) and value.lstrip()[:1] in ("{", "["))  # a table that cannot be read
        found = repr(redact(value, path[-1]))
        found = "" if hide else f", found {found if len(found) <= 80 else found[:79] + '…'}"
        self.problems.append(ConfigError(f"{dotted(path)}: expected {expected}{found} ({origin})"))

    def convert(self, path: Path, field: Field, value: Any, origin: Origin) -> Any:
        """Return the converted value, ``_BAD`` after collecting what is wrong."""
        if field.type == tuple[RouteSettings, ...]:
            return self.routes(path, _from_json(value), origin)
        try:
            return convert(value, field.type, field.about)
        except Mismatch as error:
            # A malformed URL is not shown: nobody knows where its password is.
            self.refuse(path, str(error), value, origin, hide=field.about.secret or "Url" in str(field.type))
            return _BAD

    def routes(self, path: Path, value: Any, origin: Origin) -> Any:
        if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
            self.refuse(path, "a list of tables with match and queue", value, origin)
            return _BAD
        built, known = [], fields_of(RouteSettings)
        for index, item in enumerate(value):
            here = (f"{path[0]}[{index}]",)
            if not isinstance(item, Mapping) or not {"match", "queue"} <= set(item):
                self.refuse(here, "a table with match and queue", item, origin)
                continue
            for key in sorted(set(item) - set(known)):
                advice = suggest(key, known)
                self.problems.append(UnknownSetting(f"unknown setting {key!r} in {here[0]} ({origin}){advice}"))
            values = {key: self.convert((*here, key), known[key], item[key], origin) for key in known if key in item}
            if _BAD not in values.values():
                built.append(RouteSettings(**values))
        return tuple(built)

    def settings(self) -> Settings:
        """Build the settings from what was taken; what is wrong keeps its default."""
        values: dict[str, Any] = {}
        for name, field in fields_of(Settings).items():
            table = table_class(field)
            if table is None:
                values |= {name: self.entries[name,].value} if (name,) in self.entries else {}
            elif name in _NAMED:
                names = dict.fromkeys(path[1] for path in self.entries if path[0] == name)
                built = {key: self.build(table, (name, key)) for key in names}
                values[name] = {key: item for key, item in built.items() if item is not None}
            else:
                values[name] = self.build(table, (name,))
        settings = Settings(**values)
        for path, text in _contradictions(settings):
            origin = self.entries[path].origin if path in self.entries else DEFAULT
            self.problems.append(ConfigError(f"{dotted(path)}: {text} ({origin})"))
        return settings

    def build(self, cls: type, prefix: Path) -> Any:
        known = fields_of(cls)
        values = {key: self.entries[*prefix, key].value for key in known if (*prefix, key) in self.entries}
        missing = [key for key, field in known.items() if field.default is NODEFAULT and key not in values]
        if not missing:
            return cls(**values)
        origin = next(entry.origin for path, entry in self.entries.items() if path[: len(prefix)] == prefix)
        self.problems.append(ConfigError(f"{dotted(prefix)} lacks {' and '.join(missing)} ({origin})"))
        return None


def _from_json(value: Any) -> Any:
    """Return the table or list that a text holds; anything else as it is."""
    try:
        return json.decode(value) if isinstance(value, str) and value.lstrip()[:1] in ("{", "[") else value
    except ValueError:
        return value


def _contradictions(settings: Settings) -> Iterable[tuple[Path, str]]:
    """Yield values that contradict each other or cannot work."""
    low, high = settings.worker.autoscale or (1, 1)
    if low > high:
        yield ("worker", "autoscale"), f"the minimum {low} is above the maximum {high}"
    if settings.retry_backoff > settings.retry_backoff_max:
        yield ("retry_backoff",), "it is longer than retry_backoff_max"
    for name, queue in settings.queues.items():
        if queue.broker is not None and queue.broker not in settings.brokers:
            known = ", ".join(settings.brokers) or "none"
            advice = suggest(queue.broker, settings.brokers) or f"; under brokers there is {known}"
            yield ("queues", name, "broker"), f"there is no broker {queue.broker!r}{advice}"
    for route in settings.routes:
        try:
            re.compile(route.match[3:] if route.match.startswith("re:") else "")
        except re.error as error:
            yield ("routes",), f"{route.match!r} is not a regular expression: {error}"


def _unknown_variables(names: Sequence[str], known: Iterable[str]) -> str:
    """Return one warning for the variables that nobody reads."""
    short = [k.removeprefix("TASKQ_").lower() for k in known if "__" not in k]
    parts = []
    for name in names:
        bare = name.removeprefix("TASKQ_")
        near = re.sub(r"'(\w+)'", lambda found: "TASKQ_" + found[1].upper(), suggest(bare, short))
        advice = celery_hint(bare) or near.removeprefix("; ")
        parts.append(f"{name} ({advice})" if advice else name)
    text = "environment variables that are no settings have no effect: " + ", ".join(parts)
    if any(re.search(r"_(PORT|SERVICE_HOST|SERVICE_PORT)(_|$)", name) for name in names):
        text += "; Kubernetes sets …_PORT and …_SERVICE_* beside a service of that name (enableServiceLinks: false)"
    return text
