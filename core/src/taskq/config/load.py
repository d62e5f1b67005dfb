"""Merging the sources into settings, and remembering where each value came from."""

from __future__ import annotations

import os
import re
import typing
import warnings as python_warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from msgspec import NODEFAULT, Struct, json

from taskq.config.celery import celery_hint
from taskq.config.redact import HIDDEN, redact
from taskq.config.schema import (
    EXTERNAL_VARIABLES,
    IGNORED_VARIABLES,
    PLUGIN_SECTIONS,
    RESERVED,
    RouteSettings,
    Settings,
)
from taskq.config.sources import DEFAULT, ConfigFile, Entry, Given, Origin, Path, find_file, nest, suggest
from taskq.config.values import About, Field, Mismatch, convert, fields_of, shown
from taskq.errors import ConfigError, NotSupported, UnknownSetting
from taskq.spi.url import Url

T = TypeVar("T")
OriginOf = Callable[[Path], Origin]
_SECTIONS = frozenset(PLUGIN_SECTIONS.values())
_BAD: Any = object()


class ConfigWarning(UserWarning):
    """Something in the configuration has no effect, and may be a mistake."""


class Row(Struct, frozen=True):
    """One line of ``config show``: ``value`` is plain data without secrets; ``about`` has the help and the unit."""

    name: str
    value: Any
    origin: Origin
    about: About = About()


def load(
    code: Mapping[str, Any] | None = None,
    *,
    isolated: bool = False,
    config_file: str | os.PathLike[str] | None = None,
    cli: Mapping[str, Any] | None = None,
    plugin_defaults: Mapping[str, Mapping[str, Any]] | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    code_where: str = "",
    problems: list[ConfigError] | None = None,
) -> LoadedConfig:
    """Read and merge every source.

    Args:
        code: settings given in code: nested, or with dotted keys ("worker.pool"); None is "not given", also in ``cli``.
        isolated: ignore files and the environment.
        config_file: the file to read, before ``TASKQ_CONFIG`` and the search.
        cli: settings given on the command line; ``Given(value, Origin("command line", "--pool"))`` names the option.
        plugin_defaults: distribution to the mapping that its ``taskq_config_defaults`` returned.
        environ: the environment; default: the process's.
        cwd: where the search for a file starts; default: the working directory.
        code_where: ``file:line`` of the code, for listings.
        problems: collects what is wrong instead of raising it; warnings are then not issued either.

    Raises:
        ConfigError: a value or file is wrong; UnknownSetting for a name, NotSupported for a seam. All problems at once.
    """
    environ = os.environ if environ is None else environ
    inputs = {"code": code, "isolated": isolated, "config_file": config_file, "cli": cli, "cwd": cwd,
              "plugin_defaults": plugin_defaults, "code_where": code_where}  # fmt: skip
    merge = _Merge()
    file: ConfigFile | None = None
    for distribution, defaults in (plugin_defaults or {}).items():
        if any(str(key).partition(".")[0] == "plugins" for key in defaults):
            merge.problems.append(
                ConfigError(f"{distribution} offers defaults for plugins.*, which no plugin may choose")
            )
        merge.mapping(defaults, Origin("plugin", distribution))
    merge.mapping(code or {}, Origin("code", code_where))
    if isolated and config_file is not None:
        merge.problems.append(ConfigError(f"the application is isolated from files, but {config_file} was named"))
    elif not isolated:
        named = os.fspath(config_file) if config_file is not None else environ.get("TASKQ_CONFIG") or None
        try:
            file, merge.warnings = find_file(named, os.fspath(cwd) if cwd is not None else None)
        except ConfigError as error:
            merge.problems.append(error)
        if file is not None:
            for key, value in file.tables.items():
                merge.put((key,), value, file.origin)
        merge.environment({name: value for name, value in environ.items() if name.startswith("TASKQ_") and value})
    merge.mapping(cli or {}, Origin("command line"))
    settings = merge.settings()
    if problems is not None:
        problems += merge.problems
    else:
        _raise(merge.problems)
        for text in merge.warnings:
            python_warnings.warn(text, ConfigWarning, stacklevel=2)
    return LoadedConfig(settings, merge, file.path if file else None, inputs)


def _raise(problems: Sequence[ConfigError]) -> None:
    if len(problems) == 1:
        raise problems[0]
    if problems:
        kinds = {type(problem) for problem in problems}
        text = f"{len(problems)} problems in the configuration:" + "".join(f"\n  {problem}" for problem in problems)
        raise (kinds.pop() if len(kinds) == 1 else ConfigError)(text)


def dotted(path: Path) -> str:
    """Return a place as it is written: parts with unusual characters in quotes."""
    return ".".join(part if re.fullmatch(r"[\w+-]+", part) else f'"{part}"' for part in path)


def _table_of(field: Field) -> tuple[type | None, bool]:
    """Return the class of a field that is a table of settings, and whether it holds one table per name."""
    named = typing.get_origin(field.type) is not None and len(typing.get_args(field.type)) == 2
    inner = typing.get_args(field.type)[1] if named else field.type
    if isinstance(inner, type) and issubclass(inner, Struct) and inner is not Url:
        return inner, named
    return None, False


def schema_paths() -> Iterator[tuple[Path, Field]]:
    """Return the place and field of every setting; ``*`` stands for the names that the user chooses."""
    for name, field in fields_of(Settings).items():
        table, named = _table_of(field)
        if table is None:
            yield (name,), field
        else:
            for key, inner in fields_of(table).items():
                yield ((name, "*", key) if named else (name, key)), inner


def variables() -> dict[str, Path]:
    """Return the environment variable of every setting; whole tables are given as JSON."""
    found: dict[str, Path] = {}
    for path, _ in schema_paths():
        if "*" in path:
            found["TASKQ_" + path[0].upper()] = path[:1]
        else:
            found["TASKQ_" + "_".join(path).upper()] = found["TASKQ_" + "__".join(path).upper()] = path
    return found


def _plain(name: str) -> str:
    return re.sub(r"\W", "_", name).lower()


class _Merge:
    """The sources so far: later calls win."""

    def __init__(self) -> None:
        self.entries: dict[Path, Entry] = {}
        self.problems: list[ConfigError] = []
        self.warnings: list[str] = []

    def mapping(self, mapping: Mapping[str, Any], origin: Origin) -> None:
        for key, value in mapping.items():
            name, nested = nest(str(key), value)
            self.put((name,), nested, lambda _: origin)

    def environment(self, environ: Mapping[str, str]) -> None:
        known, unknown = variables(), []
        for name in sorted(environ):
            if name in EXTERNAL_VARIABLES or any(name == i or name.startswith(i + "_") for i in IGNORED_VARIABLES):
                continue
            path = known.get(name)
            section, _, rest = name.removeprefix("TASKQ_").lower().partition("__")
            if path is None and "__" in rest and section in _SECTIONS | {"queues", "schedules"}:
                plain, _, key = rest.partition("__")
                same = (p[1] for p in self.entries if p[0] == section and _plain(p[1]) == plain)
                path = (section, next(same, plain), key)
            origin = Origin("environment", name)
            if path is None or (section not in _SECTIONS and len(path) == 3 and self.field(path) is None):
                unknown.append(name)
            elif path in self.entries and (old := self.entries[path].origin).kind == "environment":
                self.problems.append(ConfigError(f"{old.where} and {name} both set {dotted(path)}; remove one"))
            else:
                self.put(path, environ[name], lambda _, origin=origin: origin)  # type: ignore[misc]
        if unknown:
            self.warnings.append(unknown_variables(unknown, list(known)))

    def field(self, path: Path) -> Field | None:
        """Return the field at a place; None where there is none or the place is a table."""
        field = fields_of(Settings).get(path[0])
        table, named = _table_of(field) if field else (None, False)
        if table is None:
            return field if len(path) == 1 else None
        return fields_of(table).get(path[-1]) if len(path) == 2 + named else None

    def put(self, path: Path, value: Any, origin_of: OriginOf) -> None:
        """Take a value at a place: a leaf is converted, a table is walked."""
        if isinstance(value, Given):
            given = value.origin
            return self.put(path, value.value, lambda _: given)
        if value is None:
            return None
        origin = origin_of(path)
        for pattern, reason in RESERVED.items():
            if len(pattern) == len(path) and all(a in ("*", b) for a, b in zip(pattern, path, strict=True)):
                return self.problems.append(NotSupported(f"{dotted(path)} ({origin}): {reason}"))
        if path[0] in _SECTIONS and len(path) == 3:
            self.entries[path] = Entry(value, origin)
        elif (field := self.field(path)) is not None and _table_of(field)[0] is None:
            result = self.leaf(path, field, value, origin)
            if result is not _BAD:
                self.entries[path] = Entry(result, origin)
        elif path[0] in _SECTIONS or (path[0] in fields_of(Settings) and self.is_table(path)):
            self.table(path, value, origin_of)
        else:
            self.unknown(path, origin)
        return None

    def is_table(self, path: Path) -> bool:
        table, named = _table_of(fields_of(Settings)[path[0]])
        return table is not None and len(path) <= 1 + named

    def table(self, path: Path, value: Any, origin_of: OriginOf) -> None:
        if isinstance(value, str) and value.lstrip()[:1] == "{":
            try:
                value = json.decode(value)
            except ValueError:
                pass
        if not isinstance(value, Mapping):
            found = f"{dotted(path)}: expected a table, found {type(value).__name__} ({origin_of(path)})"
            return self.problems.append(ConfigError(found))
        if len(path) == 2:  # a name alone counts too: a queue with default properties
            self.entries.setdefault(path, Entry(None, origin_of(path)))
        for key, item in value.items():
            self.put((*path, str(key)), item, origin_of)
        return None

    def leaf(self, path: Path, field: Field, value: Any, origin: Origin) -> Any:
        name = dotted(path)
        if field.type == tuple[RouteSettings, ...]:
            return self.routes(name, value, origin)
        if path == ("plugins", "choose") and isinstance(value, Mapping):  # transports.redis = … nests in TOML
            pairs = ((k, v if isinstance(v, Mapping) else {"": v}) for k, v in value.items())
            value = {f"{k}.{n}".rstrip("."): v for k, inner in pairs for n, v in inner.items()}
        try:
            return convert(value, field.type, field.about)
        except Mismatch as error:
            urls = "Url" in str(field.type)  # a malformed URL is not shown: nobody knows where its password is
            found = "" if urls or field.about.secret else f", found {shown(value, path[-1])}"
            self.problems.append(ConfigError(f"{name}: expected {error}{found} ({origin})"))
            return _BAD

    def routes(self, name: str, value: Any, origin: Origin) -> Any:
        if isinstance(value, str):
            try:
                value = json.decode(value)
            except ValueError:
                pass
        if isinstance(value, str) or not isinstance(value, Sequence):
            self.problems.append(ConfigError(f"{name}: expected a list of tables, found {shown(value)} ({origin})"))
            return _BAD
        built, known = [], fields_of(RouteSettings)
        for index, item in enumerate(value):
            label = f"{name}[{index}]"
            if not isinstance(item, Mapping) or not {"match", "queue"} <= set(item):
                text = f"{label}: expected a table with match and queue, found {shown(item)} ({origin})"
                self.problems.append(ConfigError(text))
                continue
            for key in set(item) - set(known):
                self.problems.append(
                    UnknownSetting(f"unknown key {key!r} in {label} ({origin}){suggest(key, [*known])}")
                )
            values = {k: self.leaf((label, k), known[k], v, origin) for k, v in item.items() if k in known}
            if _BAD not in values.values():
                built.append(RouteSettings(**values))
        return tuple(built)

    def unknown(self, path: Path, origin: Origin) -> None:
        names = [dotted(p) for p, _ in schema_paths()] + sorted(_SECTIONS)
        parent = path[:-1]
        siblings = [n.rpartition(".")[2] for n in names if n.startswith(f"{parent[0]}.")] if parent else names
        hint = celery_hint(path[-1])
        if path == ("tool",):
            hint = "in a file of its own the settings stand at the top level, without [tool.taskq]"
        advice = f"; {hint}" if hint else suggest(path[-1], siblings) or suggest(path[-1], names)
        self.problems.append(UnknownSetting(f"unknown setting {dotted(path)!r} ({origin}){advice}"))

    def settings(self) -> Settings:
        values: dict[str, Any] = {}
        for name, field in fields_of(Settings).items():
            table, named = _table_of(field)
            if table is None:
                if (name,) in self.entries:
                    values[name] = self.entries[name,].value
            elif named:
                names = dict.fromkeys(path[1] for path in self.entries if path[0] == name)
                built = {key: self.build(table, (name, key)) for key in names}
                values[name] = {key: item for key, item in built.items() if item is not None}
            else:
                values[name] = self.build(table, (name,))
        settings = Settings(**values)
        self.check(settings)
        return settings

    def build(self, cls: type, prefix: Path) -> Any:
        known = fields_of(cls)
        values = {key: self.entries[*prefix, key].value for key in known if (*prefix, key) in self.entries}
        missing = [key for key, field in known.items() if field.default is NODEFAULT and key not in values]
        if missing:
            where = self.entries[prefix].origin if prefix in self.entries else DEFAULT
            self.problems.append(ConfigError(f"{dotted(prefix)} lacks {' and '.join(missing)} ({where})"))
            return None
        return cls(**values)

    def check(self, settings: Settings) -> None:
        """Collect values that contradict each other or cannot work."""
        found: list[tuple[Path, str]] = []
        low, high = settings.worker.autoscale or (1, 1)
        if low > high:
            found.append((("worker", "autoscale"), f"the minimum {low} is above the maximum {high}"))
        if settings.retry_backoff > settings.retry_backoff_max:
            found.append((("retry_backoff",), "it is longer than retry_backoff_max"))
        for route in settings.routes:
            if route.match.startswith("re:"):
                try:
                    re.compile(route.match[3:])
                except re.error as error:
                    found.append((("routes",), f"{route.match!r} is not a regular expression: {error}"))
        if settings.timezone != "UTC":
            import zoneinfo

            try:
                zoneinfo.ZoneInfo(settings.timezone)
            except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
                found.append((("timezone",), f"there is no time zone {settings.timezone!r}; as Europe/Paris"))
        for path, text in found:
            origin = self.entries[path].origin if path in self.entries else DEFAULT
            self.problems.append(ConfigError(f"{dotted(path)}: {text} ({origin})"))


def unknown_variables(names: Sequence[str], known: list[str]) -> str:
    """Return one warning for the variables that nobody reads."""
    parts = []
    for name in names:
        hint = celery_hint(name.removeprefix("TASKQ_"))
        near = suggest(name.removeprefix("TASKQ_"), [k.removeprefix("TASKQ_").lower() for k in known]).replace("; ", "")
        near = re.sub(r"'(\w+)'", lambda match: "TASKQ_" + match[1].upper(), near)
        parts.append(name + (f" ({hint or near})" if hint or near else ""))
    text = "environment variables that are no settings have no effect: " + ", ".join(parts)
    if any(re.search(r"_(PORT|SERVICE_HOST|SERVICE_PORT)(_|$)", name) for name in names):
        text += "; Kubernetes sets …_PORT and …_SERVICE_* beside a service of that name (enableServiceLinks: false)"
    return text


class LoadedConfig:
    """The settings with their origins. ``file`` is the one that was read, ``warnings`` what has no effect."""

    settings: Settings
    file: str | None
    warnings: tuple[str, ...]

    def __init__(self, settings: Settings, merge: _Merge, file: str | None, inputs: Mapping[str, Any]) -> None:
        self.settings = settings
        self.file = file
        self.warnings = tuple(merge.warnings)
        self._entries = merge.entries
        self._inputs = inputs
        self._plugins: dict[Path, Row] = {}
        self._checked: set[Path] = set()

    def __repr__(self) -> str:
        return f"LoadedConfig({self.settings!r}, file={self.file!r})"

    @property
    def isolated(self) -> bool:
        """Whether files and environment were ignored."""
        return bool(self._inputs["isolated"])

    def reloaded(self, **changes: Any) -> LoadedConfig:
        """Load again with some arguments of ``load`` changed: ``cli`` once it is parsed, ``plugin_defaults`` …"""
        return load(**{**self._inputs, **changes})

    def origin(self, name: str) -> Origin:
        """Return where a setting's value came from; of a table, the strongest origin within.

        Raises:
            UnknownSetting: there is no such setting.
        """
        inside = [e.origin for p, e in self._entries.items() if name in (dotted(p), ".".join(p), *_parents(p))]
        inside += [row.origin for path, row in self._plugins.items() if name == ".".join(path)]
        known = [dotted(path) for path, _ in schema_paths()]
        parts = name.split(".")
        wildcard = f"{parts[0]}.*.{parts[-1]}"
        there = any(k in (name, wildcard) or k.startswith(f"{name}.") for k in known) or parts[0] in _SECTIONS
        if not inside and not there:
            raise UnknownSetting(f"unknown setting {name!r}{suggest(name, known)}")
        return max(inside, key=lambda origin: origin.rank, default=DEFAULT)

    def plugin_options(self, kind: str, name: str, options_type: type[T], query: Sequence[tuple[str, str]] = (), *,
                       aliases: Sequence[str] = ()) -> T:  # fmt: skip
        """Build and check the options of a selected plugin.

        Args:
            kind: "transport", "result_store" … or the section's name.
            name: the plugin's; its section is ``transports.NAME``, its variables ``TASKQ_TRANSPORTS__NAME__OPTION``.
            options_type: the dataclass or struct to fill.
            query: the URL's; stronger than everything but the command line.
            aliases: further names whose sections count, as the URL's scheme.

        Raises:
            UnknownSetting: an option that the plugin does not have (a variable only warns).
            ConfigError: a value is wrong or a required option is missing. All problems at once.
        """
        section = PLUGIN_SECTIONS.get(kind, kind)
        fields, merge = fields_of(options_type), _Merge()
        wanted = {_plain(n) for n in (name, *aliases)}
        given = [(path, entry) for path, entry in self._entries.items()
                 if path[0] == section and len(path) == 3 and _plain(path[1]) in wanted]  # fmt: skip
        self._checked |= {path for path, _ in given}
        setting = {"transports": "broker", "result_stores": "result_store"}.get(section, section)
        collected: dict[str, Any] = {}
        for key, text in query:
            key = key.replace("-", "_")
            several = key in fields and _is_list(fields[key])
            if key in collected and not several:
                merge.problems.append(ConfigError(f"the URL of {setting} gives {key!r} twice"))
            collected[key] = [*collected.get(key, []), text] if several else text
        for key, value in collected.items():
            given.append(((section, name, key), Entry(value, Origin("url", f"{setting}?{key}"))))
        values: dict[str, Any] = {}
        origins: dict[str, Origin] = {}
        for path, entry in sorted(given, key=lambda pair: pair[1].origin.rank):
            key, origin = path[2], entry.origin
            if key not in fields:
                advice = f"{dotted(path)!r} ({origin}): {name} has no option {key!r}{suggest(key, [*fields])}"
                if origin.kind == "environment":
                    python_warnings.warn(f"no effect: {advice}", ConfigWarning, stacklevel=2)
                else:
                    merge.problems.append(UnknownSetting(f"unknown setting {advice}"))
                continue
            result = merge.leaf(path, fields[key], entry.value, origin)
            if result is not _BAD:
                values[key], origins[key] = result, origin
        for key, field in fields.items():
            if field.default is NODEFAULT and key not in values and not merge.problems:
                variable = f"TASKQ_{section}__{_plain(name)}__{key}".upper()
                text = f"{section}.{name} needs {key!r} ({field.about.help}); set it there or as {variable}"
                merge.problems.append(ConfigError(text))
        _raise(merge.problems)
        try:
            options = options_type(**values)
        except (TypeError, ValueError) as error:
            _refuse(f"{section}.{name}", error, secrets=any(f.about.secret for f in fields.values()))
        for key, field in fields.items():
            value = redact(getattr(options, key), key, secret=field.about.secret)
            self._plugins[section, name, key] = Row(
                dotted((section, name, key)), value, origins.get(key, DEFAULT), field.about
            )
        return options

    def rows(self, *, every: bool = False) -> list[Row]:
        """Return what to show: values that were set, broker and result store; with ``every`` the defaults too."""
        rows: list[Row] = []
        for pattern, field in schema_paths():
            if "*" not in pattern:
                entry = self._entries.get(pattern)
                if entry is not None or every or pattern in (("broker",), ("result_store",)):
                    value = entry.value if entry is not None else field.default
                    rows.append(_row(pattern, value, entry.origin if entry is not None else DEFAULT, field.about))
        for path, entry in self._entries.items():
            if path[0] not in _SECTIONS and len(path) == 3:
                about = next(f.about for p, f in schema_paths() if (p[0], p[-1]) == (path[0], path[-1]))
                rows.append(_row(path, entry.value, entry.origin, about))
            elif len(path) == 2 and path[0] in ("queues", "schedules") and not self._children(path):
                rows.append(_row(path, {}, entry.origin, About()))
            elif path[0] in _SECTIONS and len(path) == 3 and path not in self._checked:
                # Which of its options are secret is not known, so texts are hidden.
                value = entry.value if isinstance(entry.value, bool | int | float) else HIDDEN
                rows.append(_row(path, value, entry.origin, About(help="not checked: the plugin is not loaded")))
        rows += [row for row in self._plugins.values() if every or row.origin != DEFAULT]
        return rows

    def _children(self, path: Path) -> bool:
        return any(other[:2] == path and len(other) == 3 for other in self._entries)

    def unchecked(self) -> list[tuple[str, str]]:
        """Return (section, name) of the plugin sections that ``plugin_options`` has not looked at."""
        return sorted(
            {(p[0], p[1]) for p in self._entries if p[0] in _SECTIONS and len(p) == 3 and p not in self._checked}
        )


def _parents(path: Path) -> Iterator[str]:
    return (".".join(path[:end]) for end in range(1, len(path)))


def _is_list(field: Field) -> bool:
    return any(t in (list, tuple, set, frozenset) for k in (field.type, *typing.get_args(field.type))
               for t in (k, typing.get_origin(k)))  # fmt: skip


def _row(path: Path, value: Any, origin: Origin, about: About) -> Row:
    return Row(dotted(path), redact(value, path[-1], secret=about.secret), origin, about)


def _refuse(name: str, error: Exception, *, secrets: bool) -> NoReturn:
    reason = type(error).__name__ if secrets else str(error)  # the text may quote a secret
    raise ConfigError(f"the options of {name} were refused: {reason}") from None
