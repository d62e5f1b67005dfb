"""Every file of docs/examples runs by itself and prints what it is there to show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, python

EXAMPLES = DOCS / "examples"

# Regular expressions that must be found in what an example prints, in this order.
SHOWN: dict[str, list[str]] = {
    "async_client.py": [r"^144$", r"^328350$"],
    "consume_raw.py": [r"some\.task \w{32} b'\[\[0\],\{\}\]'", r"\[\[1\]", r"\[\[2\]"],
    "dead_letters.py": [r"^charge KeyError: 'book' after 0 retries", r"^replayed: 1$", r"^20$"],
    "embedded_worker.py": [r"^\[0, 2, 4, 6, 8, 10, 12, 14, 16, 18\]$"],
    "hello.py": [],
    "limits.py": [
        r"^soft: partial result$",
        r"^hard: task limits\.stubborn ran longer than its time limit",
        r"^again: partial result$",
    ],
    "middleware.py": [r"^running for acme$", r"^shop\.price took \d", r"^42$"],
    "models.py": [r"^Customer\(name='Ada', visits=1\)$", r"^TaskArgumentsError\(.*Expected `str`, got `int`"],
    "plugin_options.py": [
        r"synchronous = 'NORMAL', from url broker\?synchronous",
        r"poll_interval = 0\.5, from code",
        r"no such option; did you mean 'synchronous'\?",
    ],
    "pool_alone.py": [r"^\[\(0, b'ONE'\), \(1, b'TWO'\), \(2, b'THREE'\)\]$"],
    "pools.py": [r"^sums: \[285, 328350\]$", r"^computed in child processes: True$", r"^waited in this process: True$"],
    "produce_without_worker.py": [
        r"^\w{32} UNKNOWN$",
        r"'reports': QueueStats\(ready=1",
        r"'default': QueueStats\(ready=6",
    ],
    "retries.py": [r"^a\.example after 2 retries$", r"^job 7 is ready$", r"^FAILURE ValueError.*by RemoteTraceback$"],
    "routing.py": [
        r"'default', 'mail', 'payments', 'video'",
        r"'mail': 1, 'payments': 1, 'slow': 1, 'urgent': 1, 'video': 1",
    ],
    "schedule.py": [r"^tick 1$", r"^tick 2$", r"^tick 3$"],
    "scheduler_alone.py": [r"^\[\('backup\.run', 60\)\]$"],
    "serializer_alone.py": [r'"price":\{"\$taskq":"decimal"', r"datetime\.datetime\(2026, 1, 31.*Decimal\('9\.90'\)"],
    "store_alone.py": [r"Record\(id='job-1', state='SUCCESS', payload=b'any bytes'.*None\]$", r"^b'1' True False$"],
    "task_class.py": [r"^\[1, 2, 3\]$"],
    "transaction.py": [r"^waiting invoices: 1$"],
    "transport_alone.py": [r"^\[b'more bytes', b'any bytes'\]$"],
}


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SHOWN)


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_example(name: str, tmp_path: Path) -> None:
    done = python(EXAMPLES / name, cwd=tmp_path, state=tmp_path / "state")
    assert done.returncode == 0, done.stderr
    at = 0
    for pattern in SHOWN[name]:
        found = re.compile(pattern, re.MULTILINE).search(done.stdout, at)
        assert found, f"{pattern!r} is not in, or not in its place in:\n{done.stdout}\n{done.stderr}"
        at = found.start()


def test_the_folder_s_page_names_every_example() -> None:
    page = (EXAMPLES / "README.md").read_text("utf-8")
    missing = [name for name in (*SHOWN, "demo/") if f"]({name})" not in page]
    assert not missing, f"docs/examples/README.md has no link to {missing}"


ALONE = [
    name for name in SHOWN if name.endswith("_alone.py") or name in ("consume_raw.py", "produce_without_worker.py")
]


@pytest.mark.parametrize("name", sorted(ALONE))
def test_a_part_by_itself_needs_no_worker(name: str) -> None:
    text = (EXAMPLES / name).read_text("utf-8")
    assert ".worker(" not in text
    assert "@app.task" not in text
