"""``taskq plugins``: what is installed, what it can do, whether it works, and why a name leads to it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import click

from taskq._plugins import KINDS, PluginManager, PluginRecord, State, choosing, hints
from taskq.errors import ConfigError, PluginError, PluginNotInstalled, TaskQError

_COLOURS = {
    State.LOADED: "green", State.BLOCKED: "yellow", State.CONFLICT: "yellow", State.BROKEN: "red",
    State.INCOMPATIBLE: "red", State.INVALID: "red",
}  # fmt: skip


def manager_from_context(ctx: click.Context) -> PluginManager:
    """Return the manager of the main command (``ctx.obj.plugins``), or one made from ``TASKQ_PLUGINS_*``.

    Raises:
        ConfigError: a pattern in the environment is malformed.
    """
    manager = getattr(ctx.obj, "plugins", None)
    if isinstance(manager, PluginManager):
        return manager
    lists = {
        key: [part.strip() for part in os.environ[variable].split(",") if part.strip()]
        for key in ("blocked", "only", "choose")
        if (variable := f"TASKQ_PLUGINS_{key.upper()}") in os.environ
    }
    choose = dict(part.partition("=")[::2] for part in lists.get("choose", ()))
    return PluginManager(blocked=lists.get("blocked", ()), only=lists.get("only"), choose=choose)


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TaskQError as exc:
            raise click.ClickException(str(exc)) from exc


def _kind(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    try:
        return value and choosing.parse_kind(value, where="--kind")
    except ConfigError as exc:
        raise click.BadParameter(str(exc)) from None


_kind_option = click.option("--kind", metavar="KIND", callback=_kind, help="Only this kind: transport, store, pool, …")
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(cls=_Group)
def plugins() -> None:
    """Inspect the installed plugins."""


@plugins.command("list")
@_kind_option
@_json_option
@click.pass_context
def list_(ctx: click.Context, kind: str | None, as_json: bool) -> None:
    """List what is installed, from metadata alone: no plugin is imported."""
    records = manager_from_context(ctx).records(kind)
    if as_json:
        _json({"plugins": [r.as_dict() for r in records]})
    elif records:
        _table(records)
    else:
        click.echo(f"no plugin{f' of kind {kind}' if kind else ''} is installed")


@plugins.command()
@click.argument("name")
@_kind_option
@_json_option
@click.pass_context
def show(ctx: click.Context, name: str, kind: str | None, as_json: bool) -> None:
    """Show capabilities, limits and options of the plugins called NAME (or KIND:NAME); imports no other."""
    manager = manager_from_context(ctx)
    shown, failed = [], []
    for of_kind, wanted in _meant(manager, name, kind):
        try:
            shown.append(_describe(manager, of_kind, wanted))
        except PluginError as exc:
            failed.append(str(exc))
    if as_json:
        _json({"plugins": shown, "errors": failed})
    else:
        for description in shown:
            _print_description(description)
        for error in failed:
            click.echo(f"Error: {error}", err=True)
    ctx.exit(1 if failed else 0)


@plugins.command()
@click.argument("name", required=False)
@_json_option
@click.pass_context
def check(ctx: click.Context, name: str | None, as_json: bool) -> None:
    """Import and validate all plugins, or those called NAME (KIND:NAME, or a distribution).

    The exit code is 1 if one is broken, incompatible, invalid or in conflict, or if the named one is blocked.
    """
    manager = manager_from_context(ctx)
    pattern = choosing.check_pattern(name, setting="NAME") if name else "*"
    meant = [r for r in manager.records() if choosing.matches(pattern, r)]
    if name and not meant:
        _meant(manager, name, None)  # says what is missing
        raise click.ClickException(f"nothing that is installed is called {name!r}")
    checked = [manager.check(record) for record in meant]
    fine = {State.LOADED} if name else {State.LOADED, State.BLOCKED}
    bad = [r for r in checked if r.state not in fine]
    if as_json:
        _json({"ok": not bad, "plugins": [r.as_dict() for r in checked]})
    else:
        _table(checked)
        click.echo(f"{len(checked)} checked, {len(bad)} with a fault")
    ctx.exit(1 if bad else 0)


@plugins.command()
@click.argument("name", metavar="URL|NAME")
@_kind_option
@_json_option
@click.pass_context
def why(ctx: click.Context, name: str, kind: str | None, as_json: bool) -> None:
    """Explain how a URL or name leads to a plugin, or why it leads to none; imports nothing."""
    manager = manager_from_context(ctx)
    remark = ""
    if "://" in name:
        from taskq.spi.url import parse_urls, redact_text

        scheme = parse_urls(name)[0].scheme
        name = redact_text(name)
        asked = [(kind or "transport", scheme)]
        store_only = not _knows(manager, "transport", scheme) and _knows(manager, "result_store", scheme)
        if kind is None and store_only:
            asked = [("result_store", scheme)]
        elif kind is None and scheme in hints.SAME_SERVER_STORES:
            asked.append(("result_store", scheme))
            remark = "with no result_store set, results go to the broker's server, by the kernel's fixed table"
        elif kind is None:
            remark = f"with no result_store set, results are off: {scheme} is not in the kernel's fixed table of " + (
                ", ".join(sorted(hints.SAME_SERVER_STORES))
            )
    else:
        asked = list(_meant(manager, name, kind))
    explanations = [manager.why(of_kind, wanted) for of_kind, wanted in asked]
    if as_json:
        _json({"asked": name, "explanations": [e.as_dict() for e in explanations], "remark": remark})
    else:
        for explanation in explanations:
            first, *rest = explanation.lines
            click.echo("\n  ".join([first, *rest]))
        if remark:
            click.echo(remark)
    ctx.exit(1 if any(e.error for e in explanations) else 0)


# ----------------------------------------------------------------------------------------------------------- names


def _knows(manager: PluginManager, kind: str, name: str) -> bool:
    installed = any(r.name == name for r in manager.records(kind))
    return installed or bool(hints.provider(kind, name) or hints.alias(kind, name))


def _meant(manager: PluginManager, name: str, kind: str | None) -> Sequence[tuple[str, str]]:
    """Return the (kind, name) pairs that a name on the command line may mean: what is installed, else what is known."""
    if ":" in name and kind is None:
        kind, _, name = choosing.check_pattern(name, setting="NAME").partition(":")
    if kind is not None:
        return [(kind, name)]
    records = manager.records()
    kinds = list(dict.fromkeys(r.kind for r in records if r.name == name and r.kind != "?"))
    kinds = kinds or [k for k in KINDS if hints.provider(k, name)] or [k for k in KINDS if hints.alias(k, name)]
    if not kinds:
        everything = {r.name for r in records}.union(*hints.KNOWN.values())
        raise click.ClickException(hints.not_installed("plugin", name, everything))
    return [(k, name) for k in kinds]


# ---------------------------------------------------------------------------------------------------------- output


def _json(data: Mapping[str, Any]) -> None:
    click.echo(json.dumps(data, indent=2, default=str))


def _echo(text: str) -> None:
    click.echo(text, color=False if os.environ.get("NO_COLOR") else None)


def _columns(rows: Iterable[Sequence[str]], indent: str = "", last_style: Sequence[str | None] = ()) -> None:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        if number < len(last_style):
            cells[-1] = click.style(row[-1], fg=last_style[number])
        _echo((indent + "  ".join(cells)).rstrip())


def _table(records: Sequence[PluginRecord]) -> None:
    rows = [("KIND", "NAME", "DISTRIBUTION", "VERSION", "STATE")]
    rows += [(r.kind, r.name, r.distribution, r.version, str(r.state)) for r in records]
    _columns(rows, last_style=[None, *(_COLOURS.get(r.state) for r in records)])
    for record in records:
        if record.detail:
            where = f" [{record.path}]" if record.state in (State.BROKEN, State.INVALID) and record.path else ""
            _echo(f"{record.kind}:{record.name}: {record.detail}{where}")


def _describe(manager: PluginManager, kind: str, name: str) -> dict[str, Any]:
    if kind not in KINDS:
        found_record = next((r for r in manager.records(kind) if r.name == name), None)
        if found_record is None:
            raise PluginNotInstalled(manager.why(kind, name).lines[-1])
        return {**manager.check(found_record).as_dict(), "abilities": {}, "limits": {}, "notes": [], "options": []}
    spec: Any = manager.select(kind, name)
    record = next(r for r in manager.records(kind) if r.name == name and r.state is State.LOADED)
    found = {f: getattr(spec, f) for f in ("trusted", "rules", "shared", "needs") if hasattr(spec, f)}
    notes: list[str] = []
    capabilities = getattr(spec, "capabilities", None)
    if callable(capabilities):
        try:
            capabilities = capabilities(spec.options())
        except Exception as exc:
            capabilities = None
            notes.append(f"capabilities depend on options without a default: {exc}")
    if capabilities is not None:
        from taskq.spi.capabilities import as_dict

        found |= as_dict(capabilities)
        notes += found.pop("notes")
    limits = [f for f in found if f.startswith("max_") or f.endswith(("_s", "_bytes", "_levels"))]
    return {
        **record.as_dict(),
        "summary": spec.summary,
        "spi": spec.spi,
        "schemes": list(getattr(spec, "schemes", ())),
        "abilities": {k: v for k, v in found.items() if k not in limits},
        "limits": {k: found[k] for k in limits},
        "notes": notes,
        "options": _options(spec.options),
    }


def _options(options: type) -> list[dict[str, Any]]:
    import dataclasses

    described = []
    for field in dataclasses.fields(cast("Any", options)) if dataclasses.is_dataclass(options) else ():
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        required = default is dataclasses.MISSING
        secret = bool(field.metadata.get("secret"))
        described.append(
            {
                "name": field.name,
                "type": field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type)),
                "required": required,
                "default": None if required else "***" if secret and default else default,
                "help": field.metadata.get("help", ""),
                "secret": secret,
                "unit": field.metadata.get("unit", ""),
                "choices": field.metadata.get("choices"),
                "minimum": field.metadata.get("minimum"),
            }
        )
    return described


def _print_description(plugin: Mapping[str, Any]) -> None:
    _echo(
        click.style(f"{plugin['kind']} {plugin['name']}", bold=True) + f"  {plugin['distribution']} {plugin['version']}"
    )
    if plugin.get("summary"):
        _echo(f"  {plugin['summary']}")
    facts = [("interface", plugin.get("spi", "")), ("schemes", ", ".join(plugin.get("schemes", ())))]
    facts += [("module", plugin["value"]), ("state", plugin["state"]), ("because", plugin["detail"])]
    _columns([fact for fact in facts if fact[1]], "  ")
    for title in ("abilities", "limits"):
        if plugin[title]:
            _echo(f"  {title}")
            _columns([(key, _plain(value)) for key, value in plugin[title].items()], "    ")
    for note in plugin["notes"]:
        _echo(f"  note: {note}")
    if plugin["options"]:
        _echo("  options")
        _columns([(o["name"], o["type"], _default(o), _help(o)) for o in plugin["options"]], "    ")


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none known" if value is None else str(value)


def _default(option: Mapping[str, Any]) -> str:
    return "required" if option["required"] else f"= {option['default']!r}"


def _help(option: Mapping[str, Any]) -> str:
    extra = [f"in {option['unit']}"] if option["unit"] else []
    extra += [f"one of {', '.join(map(str, option['choices']))}"] if option["choices"] else []
    extra += [f"at least {option['minimum']}"] if option["minimum"] is not None else []
    extra += ["secret"] if option["secret"] else []
    return str(option["help"]) + (f" ({', '.join(extra)})" if extra else "")
