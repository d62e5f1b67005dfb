"""Retries: which failures are tried again, how often, how long apart, and what the caller sees at the end."""

from taskq import Retry, TaskQ

app = TaskQ("fetcher", broker="memory://", isolated=True, retry_backoff=0.05)
calls: list[str] = []


@app.task(name="fetch", max_retries=3, retry_on=(ConnectionError,), never=(ConnectionRefusedError,), bind=True)
def fetch(self, url: str) -> str:
    calls.append(url)
    if self.request.attempt < 2:
        raise ConnectionResetError("the line is bad")
    return f"{url} after {self.request.attempt} retries"


@app.task(name="poll")
def poll(job: str, tries: int = 0) -> str:
    if tries < 2:
        raise Retry(countdown=0.05, task_kwargs={"tries": tries + 1})  # another run, with other arguments
    return f"{job} is ready"


@app.task(name="hopeless", max_retries=1, retry_backoff=0.01)
def hopeless() -> None:
    raise ValueError("never works")


with app.worker():
    print(fetch.delay("a.example").get(timeout=10))
    print(poll.delay("job 7").get(timeout=10))
    result = hopeless.delay()
    try:
        result.get(timeout=10)
    except ValueError as error:  # the task's own exception, with the traceback of the worker as its cause
        print(result.state, repr(error), "caused by", type(error.__cause__).__name__)
app.close()
