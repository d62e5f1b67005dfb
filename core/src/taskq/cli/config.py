"""``taskq config``: which values are in force and where each came from, and whether they are right."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import click

from taskq.cli.group import shared_options
from taskq.config import PLUGIN_SECTIONS, ConfigWarning, LoadedConfig, Row, load
from taskq.errors import ConfigError, PluginError

if TYPE_CHECKING:
    from taskq._plugins import PluginManager


@click.group()
def config() -> None:
    """Show and check the configuration."""


@config.command()
@click.option("--all", "every", is_flag=True, help="Show the defaults too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@shared_options
@click.pass_context
def show(ctx: click.Context, every: bool, as_json: bool) -> None:
    """Show what differs from the defaults, each value with its origin; secrets are hidden."""
    problems: list[ConfigError] = []
    loaded = _loaded(ctx, problems)
    if problems:
        raise click.ClickException("\n".join(map(str, problems)))
    _check_sections(ctx, loaded)  # what is wrong there is for `check`; what is secret is known now
    rows = loaded.rows(every=every)
    if as_json:
        settings = [{"name": r.name, "value": r.value, "source": r.origin.kind, "where": r.origin.where} for r in rows]
        click.echo(json.dumps({"file": loaded.file, "settings": settings, "warnings": loaded.warnings}, indent=2))
        return
    # None is "none", but where that has a meaning of its own.
    values = ("auto" if row.value is None and row.about.none is not None else row.value for row in rows)
    texts = [(f"{row.name} = {_toml(value)}", row) for row, value in zip(rows, values, strict=True)]
    width = min(max((len(text) for text, _ in texts), default=0), 60)
    for text, row in texts:
        click.echo(f"{text:{width}}  # {_comment(row, every=every)}")
    for text in loaded.warnings:
        click.echo(f"warning: {text}", err=True)


@config.command()
@shared_options
@click.pass_context
def check(ctx: click.Context) -> None:
    """List everything that is wrong with the configuration; the exit code is 1 if anything is."""
    problems: list[ConfigError] = []
    loaded = _loaded(ctx, problems)
    if not problems:  # an application's own may have been made with its problems collected elsewhere
        loaded = loaded.reloaded(problems=problems)
    errors, notes = _check_sections(ctx, loaded)
    for text in [*loaded.warnings, *notes]:
        click.echo(f"warning: {text}", err=True)
    for text in [*map(str, problems), *errors]:
        click.echo(f"error: {text}")
    if problems or errors:
        ctx.exit(1)
    click.echo(f"the configuration is right ({loaded.file or 'no file'})")


def _loaded(ctx: click.Context, problems: list[ConfigError]) -> LoadedConfig:
    """Return the configuration of the application or main command (``ctx.obj.config``), or load it."""
    inputs: dict[str, Any] = {"config_file": getattr(ctx.obj, "config_file", None), "problems": problems}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)  # they are printed with the rest
        try:
            loaded = getattr(ctx.obj, "config", None)
            getattr(ctx.obj, "plugins", None)  # loads the contributions, whose defaults are then in force
            loaded = getattr(ctx.obj, "config", None)
        except PluginError as error:
            click.echo(f"warning: {error}", err=True)
        except ConfigError as error:  # the application cannot be made: look for all that is wrong
            loaded = load(cli=getattr(ctx.obj, "settings", None), **inputs)
            problems += [] if problems else [error]
    return loaded if isinstance(loaded, LoadedConfig) else load(**inputs)


def _check_sections(ctx: click.Context, loaded: LoadedConfig) -> tuple[list[str], list[str]]:
    """Validate the sections of plugins that nobody has selected so far; return errors and notes."""
    errors: list[str] = []
    notes: list[str] = []
    kinds = {section: kind for kind, section in PLUGIN_SECTIONS.items()}
    for section, name in loaded.unchecked():
        if kinds[section] == "extension" and name in {r.name for r in _manager(ctx, loaded).records("plugin")}:
            continue  # a contribution reads and checks its own options
        try:
            loaded.plugin_options(section, name, _options_of(_manager(ctx, loaded), kinds[section], name))
        except PluginError as error:
            notes.append(f"the section {section}.{name} has no effect: {error}")
        except ConfigError as error:
            errors.append(str(error))
    return errors, notes


def _options_of(manager: PluginManager, kind: Any, name: str) -> Any:
    """Return the options of the plugin whose section this is: named as an entry, or as the plugin names itself.

    Raises:
        PluginError: there is none.
    """
    entries = [record.name for record in manager.records(kind)]
    if name not in entries:
        for entry in entries:
            spec = manager.select(kind, entry)
            if spec.name == name:
                return spec.options
    return manager.select(kind, name).options


def _manager(ctx: click.Context, loaded: LoadedConfig) -> PluginManager:
    from taskq._plugins import PluginManager

    chosen = loaded.settings.plugins
    manager = getattr(ctx.obj, "plugins", None)
    if isinstance(manager, PluginManager):
        return manager
    return PluginManager(blocked=chosen.blocked, only=chosen.only, choose=chosen.choose)


def _comment(row: Row, *, every: bool) -> str:
    words = [str(row.origin)]
    if every and row.about.help:
        words.append(row.about.help + (f" [{row.about.unit}]" if row.about.unit else ""))
    return "; ".join(words)


def _toml(value: Any) -> str:
    """Return a value as it would stand in a file."""
    if value is None:
        return '"none"'
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
