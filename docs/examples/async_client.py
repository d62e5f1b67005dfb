"""An asyncio program as the client: thousands of calls wait at once, on a fixed number of threads."""

import asyncio

from taskq import TaskQ, aas_completed

app = TaskQ("squares", broker="memory://", isolated=True)


@app.task(name="square")
async def square(x: int) -> int:
    await asyncio.sleep(0)
    return x * x


async def main() -> None:
    one = await square.adelay(12)
    print(await one)  # or: await one.aget(timeout=10)

    results = await app.asend_many([square.s(x) for x in range(100)])
    print(sum([await result.aget(timeout=10) async for result in aas_completed(results, timeout=30)]))


with app.worker():
    asyncio.run(main())
app.close()
