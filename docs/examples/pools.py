"""Two pools in one worker: processes for what computes, an event loop for what waits."""

import asyncio
import os

from taskq import TaskQ, gather

app = TaskQ("pools", broker="memory://", isolated=True)


@app.task(pool="prefork", time_limit=20)
def compute(n: int) -> tuple[int, int]:
    return os.getpid(), sum(i * i for i in range(n))


@app.task(pool="asyncio")
async def wait(seconds: float) -> int:
    await asyncio.sleep(seconds)
    return os.getpid()


if __name__ == "__main__":  # children import this file
    with app.worker(pool="prefork=2,asyncio=100"):
        computed = gather(app.send_many([compute.s(n) for n in (10, 100)]), timeout=30)
        places = gather(app.send_many([wait.s(0.1) for _ in range(50)]), timeout=30)
    print("sums:", [total for _, total in computed])
    print("computed in child processes:", os.getpid() not in {pid for pid, _ in computed})
    print("waited in this process:", set(places) == {os.getpid()})
    app.close()
