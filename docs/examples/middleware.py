"""Middleware: code around every send and every run, composed once per task."""

import time

from taskq import Middleware, Request, TaskQ


class Tenant(Middleware):
    """Hand a fact of the sender on to the run."""

    def before_send(self, request) -> None:
        request.headers.setdefault("tenant", "acme")

    def before_run(self, request: Request) -> None:
        print("running for", request.headers["tenant"])


class Timing(Middleware):
    """Measure `def` tasks; an application with `async def` tasks adds around_run_async."""

    def around_run(self, request: Request, call_next):
        began = time.perf_counter()
        try:
            return call_next(request)
        finally:
            print(f"{request.name} took {1000 * (time.perf_counter() - began):.1f} ms")


app = TaskQ("shop", broker="memory://", isolated=True)
app.add_middleware(Timing(), Tenant())  # outermost first; before the first send


@app.task(name="shop.price")
def price(amount: int) -> int:
    return 3 * amount


with app.worker():
    print(price.delay(14).get(timeout=10))
app.close()
