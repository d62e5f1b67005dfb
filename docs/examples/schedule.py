"""Sending by the clock from Python; the command `taskq beat` does this with the setting `schedules`."""

import threading

from taskq import TaskQ
from taskq.beat import Beat

app = TaskQ("ticker", broker="memory://", isolated=True, schedules={"tick": {"task": "tick", "rule": "every 0.2"}})
ticks = threading.Semaphore(0)


@app.task(name="tick")
def tick() -> None:
    ticks.release()


beat = Beat(app)
with app.worker():
    thread = threading.Thread(target=beat.run)
    thread.start()
    for number in range(3):
        ticks.acquire(timeout=10)
        print("tick", number + 1)
    beat.stop()
    thread.join()
app.close()
