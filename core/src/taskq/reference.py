"""Where an application is found by another process: its module and its name there."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from taskq.errors import WorkerError
from taskq.logs import set_up_logging

if TYPE_CHECKING:
    from taskq.app import TaskQ


class AppReference(Struct, frozen=True):
    """An application as another process finds it, with what the command line has set."""

    module: str
    attribute: str
    settings: Mapping[str, Any]
    config_file: str | None
    logs: bool
    tasks: tuple[str, ...]

    @classmethod
    def to(cls, app: TaskQ) -> AppReference:
        """Return the reference of an application.

        Raises:
            WorkerError: it is no attribute of an imported module, so that no other process can find it.
        """
        modules = {task.__module__ for task in app.tasks.values()}
        # not taskq's own: it remembers the application made last, whichever that is elsewhere
        others = (n for n in list(sys.modules) if n not in modules and n.partition(".")[0] != "taskq")
        names = [*modules, "__main__", *others]
        for name in names:
            for attribute, value in list(getattr(sys.modules.get(name), "__dict__", {}).items()):
                if value is app:
                    config_file = app.load_options.get("config_file")
                    return cls(
                        "__main__" if name == "__mp_main__" else name,
                        attribute,
                        dict(app.cli_settings),
                        None if config_file is None else str(config_file),
                        app.logs,
                        tuple(app.tasks),
                    )
        raise WorkerError(
            f"application {app.name!r} cannot be found by a child process: it is no module's attribute. Make it at the "
            "top level of a module (app = TaskQ(…)), or choose a pool without processes (-P threads)"
        )

    def find(self) -> TaskQ:
        """Import the application in this process and give it the same settings.

        Raises:
            WorkerError: it is not there, or lacks tasks that the worker's process knows.
        """
        try:
            app: TaskQ | None = getattr(importlib.import_module(self.module), self.attribute, None)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            raise WorkerError(f"a child process cannot import {self.module}: {text}") from error
        if app is None or not hasattr(app, "components"):
            raise WorkerError(f"a child process finds no application {self.module}:{self.attribute}")
        if not app.components.in_use and app.cli_settings != dict(self.settings):
            app.configure(self.settings, self.config_file)
        app.merge_defaults()
        if self.logs and not app.logs:
            set_up_logging(app)
        app.import_tasks()
        missing = [name for name in self.tasks if name not in app.tasks]
        if missing:
            raise WorkerError(
                f"a child process has imported {self.module} but does not know task {missing[0]!r}; declare tasks at "
                "the top level of modules, and name modules that are imported elsewhere in the setting include"
            )
        app.freeze()
        return app
