"""Run the Python blocks of a page in order, as one module: `python run_page.py PAGE`, for the tests.

A block after the comment `<!-- a worker runs -->` finds a worker of the page's `app` running, in this process.
"""

from __future__ import annotations

import logging
import sys
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.docs.pages import blocks

MARK = "<!-- a worker runs -->"


def main() -> None:
    page = Path(sys.argv[1])
    logging.basicConfig(level=logging.CRITICAL)
    lines = page.read_text("utf-8").splitlines()
    module = types.ModuleType("page")
    sys.modules["page"] = module
    worker = None
    for block in blocks(page):
        if block.language != "python":
            continue
        if lines[block.line - 3] == MARK or lines[block.line - 2] == MARK:
            worker = worker or module.app.worker(pool="threads", concurrency=2).start()
        source = "\n" * (block.line - 1) + block.text  # so that a traceback names the page's line
        exec(compile(source, str(page), "exec", dont_inherit=True), vars(module))
    if worker is not None:
        worker.stop()
        worker.join(20)


if __name__ == "__main__":
    main()
