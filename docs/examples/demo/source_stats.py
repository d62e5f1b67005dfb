"""The demo's application: one task that measures one source file.

`run.py` starts workers on it. It needs nothing of the demo and can be used by hand as well, from this folder:

    taskq -A source_stats worker
    taskq -A source_stats call source_stats.measure --args '["run.py"]' --wait 10
"""

from __future__ import annotations

import ast
import tokenize
from collections.abc import Iterator
from pathlib import Path

from taskq import TaskQ

app = TaskQ("demo")  # no broker named: an SQLite file, unless TASKQ_BROKER says otherwise


# Files in another dialect or encoding are expected: no dead letter, no traceback in the log. Other failures are kept.
@app.task(throws=(SyntaxError, ValueError))
def measure(path: str) -> dict[str, int]:
    """Count what is in a file; functions and classes only where it is Python."""
    if not path.endswith(".py"):
        text = Path(path).read_text(encoding="utf-8")
        return {"lines": text.count("\n"), "words": len(text.split()), "functions": 0, "classes": 0}
    with tokenize.open(path) as file:  # obeys the file's own coding line
        text = file.read()
    statements = list(walk_statements(ast.parse(text, path).body))
    return {
        "lines": text.count("\n"),
        "words": len(text.split()),
        "functions": sum(isinstance(s, ast.FunctionDef | ast.AsyncFunctionDef) for s in statements),
        "classes": sum(isinstance(s, ast.ClassDef) for s in statements),
    }


def walk_statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield statements and those within them; expressions, the bulk of a tree, are not looked at."""
    for statement in body:
        yield statement
        for field in ("body", "orelse", "finalbody"):
            yield from walk_statements(getattr(statement, field, []))
        for branch in [*getattr(statement, "handlers", []), *getattr(statement, "cases", [])]:
            yield from walk_statements(branch.body)
