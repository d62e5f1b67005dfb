"""The main command: finds sub-commands by name, and what they share: the application, its settings, errors."""

from __future__ import annotations

import difflib
import functools
import importlib
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from taskq import __version__
from taskq.errors import ConfigError, TaskQError

if TYPE_CHECKING:
    from taskq._plugins import PluginManager
    from taskq.app import TaskQ
    from taskq.config import LoadedConfig

F = TypeVar("F", bound=Callable[..., Any])

COMMANDS = {
    "worker": ("worker:worker", "Run tasks."),
    "beat": ("beat:beat", "Send tasks by the clock."),
    "call": ("tasks:call", "Send a task by name."),
    "result": ("tasks:result", "Show a task's state and result."),
    "queues": ("queues:queues", "Count the messages of queues."),
    "purge": ("queues:purge", "Throw away the messages of queues."),
    "maintain": ("queues:maintain", "Do the broker's and result store's chores once."),
    "dead": ("dead:dead", "Look at, replay or purge dead letters."),
    "plugins": ("plugins:plugins", "Inspect the installed plugins."),
    "config": ("config:config", "Show and check the configuration."),
    "doctor": ("doctor:doctor", "Check that a worker could run here."),
}


class Context:
    """What sub-commands find in ``ctx.obj``. The application is made when first asked for."""

    def __init__(self) -> None:
        self.app_path: str | None = None
        self.settings: dict[str, Any] = {}
        self.config_file: str | None = None
        self._app: TaskQ | None = None

    @property
    def app(self) -> TaskQ:
        """The application named by -A, or one made of the settings alone.

        Raises:
            ConfigError: it cannot be found, imported or configured.
        """
        if self._app is None:
            if self.app_path:
                app = load_app(self.app_path)
                app.configure(self.settings, self.config_file)
            else:
                from taskq.app import TaskQ

                app = TaskQ("taskq", config=self.config_file)
                app.configure(self.settings)
            self._app = app
        return self._app

    @property
    def named_app(self) -> TaskQ:
        """The application named by -A; commands that run or know tasks need one.

        Raises:
            ConfigError: none was named.
        """
        if not self.app_path:
            raise ConfigError(
                "which application? Name it with -A module[:attribute], for example: taskq -A hello worker"
            )
        return self.app

    @property
    def config(self) -> LoadedConfig:
        """The configuration in force."""
        return self.app.config

    @property
    def plugins(self) -> PluginManager:
        """The plugin system under that configuration."""
        return self.app.plugins


class TaskQGroup(click.Group):
    """Imports sub-commands lazily, suggests near names, and turns taskq's errors into messages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *(r.name for r in _plugin_commands(ctx) if r.name not in COMMANDS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            module, _, attribute = COMMANDS[cmd_name][0].partition(":")
            command: click.Command = getattr(importlib.import_module(f"taskq.cli.{module}"), attribute)
            return command
        if any(r.name == cmd_name for r in _plugin_commands(ctx)):
            try:
                loaded: click.Command = _context(ctx).plugins.load_command(cmd_name)
            except TaskQError as error:
                raise click.ClickException(str(error)) from error
            return loaded
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), 1)
            hint = f" Did you mean {near[0]!r}?" if near else " See taskq --help."
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, text) for name, (_, text) in COMMANDS.items()]
        rows += [(r.name, f"(from {r.distribution})") for r in _plugin_commands(ctx) if r.name not in COMMANDS]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TaskQError as error:
            raise click.ClickException(str(error)) from error


def _context(ctx: click.Context) -> Context:
    found = ctx.find_object(Context)
    if found is None:
        found = ctx.obj = Context()
    return found


def _plugin_commands(ctx: click.Context) -> Any:
    from taskq._plugins import PluginManager

    manager = getattr(ctx.obj, "_app", None)
    return (manager.plugins if manager is not None else PluginManager()).commands()


def _take(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Note a shared option, wherever on the command line it stands."""
    if value is None:
        return value
    context = _context(ctx)
    if param.name == "app_path":
        context.app_path = value
    elif param.name == "config_file":
        context.config_file = value
    else:
        from taskq.config import Given, Origin

        assert param.name is not None
        context.settings[param.name] = Given(value, Origin("command line", param.opts[-1]))
    return value


_SHARED = (
    click.option("-A", "--app", "app_path", metavar="MODULE[:ATTR]", expose_value=False, callback=_take, is_eager=True,
                 envvar="TASKQ_APP", help="The application, as hello or package.module:app."),
    click.option("-b", "--broker", metavar="URL", expose_value=False, callback=_take, help="Broker URL."),
    click.option("--result-store", metavar="URL", expose_value=False, callback=_take, help="Result store URL."),
    click.option("--config", "config_file", metavar="FILE", expose_value=False, callback=_take,
                 help="Configuration file."),
)  # fmt: skip


def shared_options(command: F) -> F:
    """Add -A, --broker, --result-store and --config to a command."""
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(_SHARED), command)


def load_app(path: str) -> TaskQ:
    """Import ``module[:attribute]`` and return its application.

    Raises:
        ConfigError: no such module or attribute, an error while importing (chained), or no or several applications.
    """
    from taskq.app import TaskQ

    module_name, _, attribute = path.partition(":")
    if module_name.endswith(".py") or "/" in module_name:
        better = module_name.removesuffix(".py").removeprefix("./").replace("/", ".")
        raise ConfigError(f"-A takes a module's import name, not a file: try -A {better}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise ConfigError(
                f"-A {path}: there is no module {error.name!r} in {os.getcwd()} or on sys.path; "
                "run taskq from the folder that holds it, or install it"
            ) from None
        raise ConfigError(f"-A {path}: importing it failed: {error}") from error
    except Exception as error:
        raise ConfigError(f"-A {path}: importing it failed: {type(error).__name__}: {error}") from error
    if attribute:
        found: Any = module
        for part in attribute.split("."):
            found = getattr(found, part, None)
        if not isinstance(found, TaskQ):
            raise ConfigError(f"-A {path}: {module_name} has no application named {attribute!r}")
        return found
    named = getattr(module, "app", None)
    if isinstance(named, TaskQ):
        return named
    apps = {name: value for name, value in vars(module).items() if isinstance(value, TaskQ)}
    if len(set(map(id, apps.values()))) == 1:
        return next(iter(apps.values()))
    if apps:
        raise ConfigError(f"-A {path}: several applications there: {', '.join(apps)}; choose one with -A {path}:NAME")
    raise ConfigError(
        f"-A {path}: no TaskQ application in that module; make one: app = TaskQ({module_name.split('.')[-1]!r})"
    )


@click.group(cls=TaskQGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", message="taskq %(version)s")
@shared_options
@click.pass_context
def taskq(ctx: click.Context) -> None:
    """A distributed task queue whose every capability is a plugin."""
    _context(ctx)
