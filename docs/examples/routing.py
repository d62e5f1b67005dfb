"""Routing: which queue a task goes to, by name, by pattern, by its arguments, or said at the call."""

from taskq import TaskQ


def big_ones(name, args, kwargs):
    """A route may look at the arguments; None leaves the call to the next route."""
    return "slow" if name == "video.encode" and args and args[0] > 100 else None


app = TaskQ(
    "media",
    broker="memory://",
    isolated=True,
    routes=[big_ones, ("video.*", "video"), ("re:mail[.].+", {"queue": "mail", "priority": 8})],
)


@app.task(name="video.encode")
def encode(minutes: int) -> str: ...


@app.task(name="mail.send")
def send_mail(to: str) -> None: ...


@app.task(name="pay", queue="payments")  # an option of the task goes before routes
def pay(cents: int) -> None: ...


encode.delay(5)
encode.delay(500)
send_mail.delay("a@example.org")
pay.delay(100)
pay.apply_async((1,), queue="urgent", priority=9)  # the call goes before everything

queues = app.queue_names()  # what a worker without -Q serves; what a route decides by arguments, only the route knows
print(queues)
stats = app.transport.stats([*queues, "slow", "urgent"])
print({name: found.ready for name, found in sorted(stats.items()) if found.ready})
app.close()
