"""A worker inside a program, on threads of its own: for small programs and for tests."""

from taskq import TaskQ, as_completed, gather

app = TaskQ("embedded", broker="memory://", isolated=True)


@app.task(name="double")
def double(x: int) -> int:
    return 2 * x


with app.worker(pool="threads", concurrency=4, grace=5):  # the settings under `worker`
    results = app.send_many([double.s(x) for x in range(10)])
    for result in as_completed(results, timeout=30):  # as they end
        result.get()
    print(gather(results))  # in order
app.close()
