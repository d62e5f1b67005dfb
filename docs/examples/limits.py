"""Time limits: a task that cleans up at its soft limit, and one that is ended at its hard limit."""

import contextlib
import time

from taskq import TaskQ
from taskq.errors import SoftTimeLimitExceeded, TimeLimitExceeded

app = TaskQ("limits", broker="memory://", isolated=True)


@app.task(soft_time_limit=0.3, time_limit=20, max_retries=0)
def tidy() -> str:
    try:
        while True:
            time.sleep(0.01)
    except SoftTimeLimitExceeded:
        return "partial result"


@app.task(time_limit=0.5, max_retries=0, dead_letter=False)
def stubborn() -> None:
    while True:
        with contextlib.suppress(Exception):  # what a soft limit would raise here
            time.sleep(60)


if __name__ == "__main__":  # children import this file
    with app.worker(pool="prefork", concurrency=2):
        print("soft:", tidy.delay().get(timeout=20))
        try:
            stubborn.delay().get(timeout=20)
        except TimeLimitExceeded as error:
            print("hard:", error)  # its process was killed, another has taken its place
        print("again:", tidy.delay().get(timeout=20))
    app.close()
