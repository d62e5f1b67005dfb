"""Dead letters from Python: look at what failed for good, mend the reason, and send it back."""

from taskq import TaskQ
from taskq.dead import DeadLetters

app = TaskQ("billing", broker="memory://", isolated=True)
prices: dict[str, int] = {}


@app.task(name="charge")
def charge(product: str) -> int:
    return prices[product]


letters = DeadLetters(app.transport)
with app.worker():
    failed = charge.delay("book")
    failed.get(timeout=10, propagate=False)
    for letter in letters.list("default"):
        print(letter.info.task, letter.info.reason, f"after {letter.info.attempts} retries")

    prices["book"] = 20
    print("replayed:", letters.replay("default", lambda letter: letter.info.task == "charge"))
    print(app.AsyncResult(failed.id).get(timeout=10))  # the replayed run has the same id and replaces the failure
app.close()
