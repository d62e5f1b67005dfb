"""What ``import taskq`` costs: no click, no plugin, no client library, nothing that a first send does not need."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


def modules_after(statement: str) -> set[str]:
    code = f"import sys, json\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stdout.splitlines()[-1]))


HEAVY = (
    "click",
    "stevedore",
    "asyncio",
    "concurrent.futures",
    "sqlite3",
    "pydantic",
    "pytest",
    "hypothesis",
    "dataclasses",
)


@pytest.mark.parametrize(
    "statement",
    ["import taskq", "import taskq; taskq.__version__", "import taskq.spi, taskq.errors, taskq.message"],
)
def test_importing_pulls_in_neither_click_nor_a_plugin(statement: str) -> None:
    loaded = modules_after(statement)
    assert "taskq" in loaded
    assert [name for name in loaded if name.startswith("taskq_")] == []
    assert [name for name in loaded if name in HEAVY] == []


def test_making_an_application_and_its_tasks_loads_no_plugin() -> None:
    loaded = modules_after(
        "from taskq import TaskQ\napp = TaskQ('x', broker='redis://localhost', isolated=True)\n"
        "@app.task\ndef f(x: int) -> int: return x"
    )
    assert [name for name in loaded if name.startswith("taskq_")] == []
    assert [name for name in loaded if name in ("click", "asyncio", "redis")] == []


def test_sending_loads_the_chosen_plugins_alone() -> None:
    loaded = modules_after(
        "from taskq import TaskQ\napp = TaskQ('x', broker='memory://', isolated=True)\n"
        "app.task(name='f')(lambda: None)\napp.tasks['f'].delay()"
    )
    # contributions are always loaded; what they need for their work, they import when there is some
    plugins = {name.split(".")[0] for name in loaded if name.startswith("taskq_") and "contrib" not in name}
    assert plugins == {"taskq_transport_memory", "taskq_store_memory", "taskq_lib_memory", "taskq_serializer_json"}
    assert "click" not in loaded
    assert "http.server" not in loaded


def test_every_public_name_exists() -> None:
    import taskq

    for name in taskq.__all__:
        assert getattr(taskq, name) is not None
    assert set(taskq.__all__) <= set(dir(taskq))
    with pytest.raises(AttributeError, match="no attribute 'Queue'"):
        taskq.Queue  # noqa: B018
