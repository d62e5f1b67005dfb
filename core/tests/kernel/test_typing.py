"""mypy, and so an editor, sees the parameters of ``delay()`` and what ``get()`` returns."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_api_is_typed(tmp_path: Path) -> None:
    config = tmp_path / "mypy.ini"
    config.write_text("[mypy]\nstrict = true\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--config-file", str(config), "--cache-dir", str(tmp_path / "cache")),
            *("--follow-imports", "silent", "--no-error-summary", str(HERE / "typed_api.py")),
        ],
        capture_output=True,
        text=True,
        timeout=170,
        cwd=tmp_path,
    )
    lines = [line.partition("typed_api.py")[2] for line in done.stdout.splitlines()]
    notes = [line.partition("note: Revealed type is ")[2].strip('"') for line in lines if "Revealed type" in line]
    assert [line for line in lines if "error:" in line] == [], done.stdout
    add, bound, fetch = (note.replace("builtins.", "") for note in notes)
    assert add.startswith("def (x: int, y: int =, *, scale: float =) -> "), add
    assert add.endswith("AsyncResult[float]")
    assert "def (when: datetime.datetime) ->" in bound
    assert "def (url: str) ->" in fetch
    assert fetch.endswith("AsyncResult[bytes]")
