"""Celery on its filesystem transport and result backend."""

from __future__ import annotations

import os
from pathlib import Path

from tests.bench.peers import _celery

ACK = "before the run (the file is removed as it is taken)"
DURABILITY = "none against power loss: files are written without fsync"
NOTE = "polls every 10 ms, results every 5 ms (its defaults: 1 s, 0.5 s)"
RESULTS = True
VERSIONS = _celery.VERSIONS

_folder = Path(os.environ["BENCH_DIR"])
for _name in ("queue", "results", "control"):
    (_folder / _name).mkdir(exist_ok=True)
_queue = f"{_folder}/queue"
_contender = _celery.Contender(
    __name__, "filesystem://", f"file://{_folder}/results",
    options={"data_folder_in": _queue, "data_folder_out": _queue, "control_folder": f"{_folder}/control"},
)  # fmt: skip
app, worker, send, call = _contender.app, _contender.worker, _contender.send, _contender.call
