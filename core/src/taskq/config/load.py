"""Loading the configuration, and answering where each value came from."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from msgspec import NODEFAULT, Struct

from taskq.config.merge import SECTIONS, Merge, dotted, leaves, pattern_of, plain, suggest
from taskq.config.redact import HIDDEN, redact
from taskq.config.schema import PLUGIN_SECTIONS, Settings
from taskq.config.sources import DEFAULT, ConfigFile, Given, Origin, Path, find_file
from taskq.config.values import About, fields_of
from taskq.errors import ConfigError, UnknownSetting

T = TypeVar("T")


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
    plugin_defaults: dict[str, Mapping[str, Any]] | None = None,
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
        plugin_defaults: name of each contribution to what its ``taskq_config_defaults`` returned; the first one counts.
        environ: the environment; default: the process's.
        cwd: where the search for a file starts; default: the working directory.
        code_where: ``file:line`` of the code, for listings.
        problems: collects what is wrong instead of raising it; warnings are then not issued either.

    Raises:
        ConfigError: a value or file is wrong; UnknownSetting for a name, NotSupported for a seam. All problems at once.
    """
    inputs = {key: value for key, value in locals().items() if key != "problems"}
    inputs["environ"] = (
        None if environ is None else {name: value for name, value in environ.items() if name.startswith("TASKQ_")}
    )
    environ = os.environ if environ is None else environ
    merge, file = Merge(), None
    for contributor, defaults in reversed((plugin_defaults or {}).items()):
        if any(str(key).partition(".")[0] == "plugins" for key in defaults):
            text = f"{contributor} offers defaults for plugins.*, which no plugin may choose"
            merge.problems.append(ConfigError(text))
        merge.mapping(defaults, Origin("plugin", contributor.removeprefix("plugin ")))
    merge.mapping(code or {}, Origin("code", code_where))
    if isolated and config_file is not None:
        merge.problems.append(ConfigError(f"the application is isolated from files, but {config_file} was named"))
    elif not isolated:
        file = _read_file(merge, config_file or environ.get("TASKQ_CONFIG") or None, cwd)
        merge.environment(environ)
    merge.mapping(cli or {}, Origin("command line"))
    settings = merge.settings()
    if problems is not None:
        problems += merge.problems
    else:
        _raise(merge.problems)
        for text in merge.warnings:
            warnings.warn(text, ConfigWarning, stacklevel=2)
    return LoadedConfig(settings, merge, file.path if file else None, inputs)


def _read_file(merge: Merge, named: Any, cwd: Any) -> ConfigFile | None:
    try:
        file, merge.warnings = find_file(os.fspath(named) if named else None, os.fspath(cwd) if cwd else None)
    except ConfigError as error:
        merge.problems.append(error)
        return None
    if file is not None:
        for key, value in file.tables.items():
            merge.put((key,), value, file.origin)
    return file


def _raise(problems: Sequence[ConfigError]) -> None:
    if len(problems) == 1:
        raise problems[0]
    if problems:
        kinds = {type(problem) for problem in problems}
        text = f"{len(problems)} problems in the configuration:" + "".join(f"\n  {problem}" for problem in problems)
        raise (kinds.pop() if len(kinds) == 1 else ConfigError)(text)


class LoadedConfig:
    """The settings with their origins. ``file`` is the one that was read, ``warnings`` what has no effect."""

    def __init__(self, settings: Settings, merge: Merge, file: str | None, inputs: Mapping[str, Any]) -> None:
        self.settings = settings
        self.file = file
        self.warnings: tuple[str, ...] = tuple(merge.warnings)
        self.isolated: bool = inputs["isolated"]
        self._entries = merge.entries
        self._inputs = inputs
        self._plugins: dict[Path, Row] = {}
        self._checked: set[Path] = set()

    def __repr__(self) -> str:
        return f"LoadedConfig({self.settings!r}, file={self.file!r})"

    def reloaded(self, **changes: Any) -> LoadedConfig:
        """Load again with some arguments of ``load`` changed: ``cli`` once it is parsed, ``plugin_defaults`` …

        The same file is read, wherever the working directory is by now.
        """
        return load(**{**self._inputs, "config_file": self.file or self._inputs["config_file"], **changes})

    def origin(self, name: str) -> Origin:
        """Return where a setting's value came from; of a table, the strongest origin within.

        Raises:
            UnknownSetting: there is no such setting.
        """
        known = [name for leaf in leaves() for name in (dotted(leaf), leaf[0])]
        parts = tuple(name.split("."))
        if not {name, dotted(pattern_of((*parts[:1], ".".join(parts[1:-1]), parts[-1])))} & set(known):
            raise UnknownSetting(f"unknown setting {name!r}{suggest(name, known)}")
        origins = {path: entry.origin for path, entry in self._entries.items()}
        origins |= {path: row.origin for path, row in self._plugins.items()}
        inside = (origin for path, origin in origins.items() if f"{'.'.join(path)}.".startswith(f"{name}."))
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
        section, fields, merge = PLUGIN_SECTIONS.get(kind, kind), fields_of(options_type), Merge()
        wanted = {plain(n) for n in (name, *aliases)}
        given = {p: e for p, e in self._entries.items() if len(p) == 3 and p[0] == section and plain(p[1]) in wanted}
        self._checked |= set(given)
        setting = {"transports": "broker", "result_stores": "result_store"}.get(section, section)
        texts: dict[str, list[str]] = {}
        for key, text in query:
            texts.setdefault(key.replace("-", "_"), []).append(text)
        candidates = list(given.items()) + [
            ((section, name, key), Given(text[0] if len(text) == 1 else text, Origin("url", f"{setting}?{key}")))
            for key, text in texts.items()
        ]
        values: dict[str, Any] = {}
        origins: dict[str, Origin] = {}
        for path, entry in sorted(candidates, key=lambda item: item[1].origin.rank):
            key, origin = path[2], entry.origin
            if key in fields:
                before = len(merge.problems)
                value = merge.convert(path, fields[key], entry.value, origin)
                if len(merge.problems) == before:
                    values[key], origins[key] = value, origin
                continue
            text = f"{dotted(path)!r} ({origin}): {name} has no such option{suggest(key, fields)}"
            if origin.kind == "environment":
                warnings.warn(f"no effect: {text}", ConfigWarning, stacklevel=2)
            else:
                merge.problems.append(UnknownSetting(f"unknown setting {text}"))
        for key, field in fields.items():
            if field.default is NODEFAULT and key not in values and not merge.problems:
                variable = f"TASKQ_{section}__{plain(name)}__{key}".upper()
                text = f"{dotted((section, name, key))} is needed ({field.about.help}); set it there or as {variable}"
                merge.problems.append(ConfigError(text))
        _raise(merge.problems)
        try:
            options = options_type(**values)
        except (TypeError, ValueError) as error:  # from a check of the class's own, whose text may quote a secret
            reason = type(error).__name__ if any(field.about.secret for field in fields.values()) else str(error)
            raise ConfigError(f"the options of {dotted((section, name))} were refused: {reason}") from None
        for key, field in fields.items():
            value = redact(getattr(options, key), key, secret=field.about.secret)
            origin = origins.get(key, DEFAULT)
            self._plugins[section, name, key] = Row(dotted((section, name, key)), value, origin, field.about)
        return options

    def rows(self, *, every: bool = False) -> list[Row]:
        """Return what to show: values that were set, broker and result store; with ``every`` the defaults too."""
        rows: list[Row] = []
        given = dict(sorted(self._entries.items()))
        for leaf, field in leaves().items():
            always = {leaf: Given(field.default, DEFAULT)} if every or leaf in (("broker",), ("result_store",)) else {}
            found = {p: e for p, e in given.items() if pattern_of(p) == leaf and p not in self._checked}
            for path, entry in (found or ({} if "*" in leaf else always)).items():
                value, about = redact(entry.value, path[-1], secret=field.about.secret), field.about
                if path[0] in SECTIONS:  # which of its options are secret is not known, so texts are hidden
                    value = value if isinstance(value, bool | int | float) else HIDDEN
                    about = About(help="not checked: the plugin is not loaded")
                rows.append(Row(dotted(path), value, entry.origin, about))
        bare = {p for p in given if len(p) == 2 and p[0] not in SECTIONS and pattern_of(p) not in leaves()}
        bare -= {path[:2] for path in given if len(path) == 3}
        rows += [Row(dotted(path), {}, given[path].origin) for path in sorted(bare)]
        return rows + [row for row in self._plugins.values() if every or row.origin != DEFAULT]

    def unchecked(self) -> list[tuple[str, str]]:
        """Return (section, name) of the plugin sections that ``plugin_options`` has not looked at."""
        return sorted({path[:2] for path in self._entries if path[0] in SECTIONS} - {p[:2] for p in self._checked})  # type: ignore[arg-type]
