"""Checked by mypy, never run: what the type checker, and so an editor, knows of the API. See test_typing.py."""

from __future__ import annotations

from datetime import datetime
from typing import Any, assert_type, reveal_type

from taskq import AsyncResult, Signature, Task, TaskQ, aas_completed, as_completed, gather, shared_task

app = TaskQ("typed")


@app.task
def add(x: int, y: int = 0, *, scale: float = 1.0) -> float:
    return (x + y) * scale


@app.task(queue="mail", max_retries=3)
def mail(to: str) -> None: ...


@app.task(bind=True)
def bound(self: Task[..., Any], when: datetime) -> str:
    return f"{self.request.id} {when}"


@app.task
async def fetch(url: str) -> bytes:
    return url.encode()


@app.task(bind=True, name="x")
async def abound(self: Any, n: int) -> list[int]:
    return [n]


reveal_type(add.delay)
reveal_type(bound.delay)
reveal_type(fetch.delay)
assert_type(add.delay(1, 2, scale=0.5), AsyncResult[float])
assert_type(add.delay(1).get(timeout=5), float)
assert_type(mail.delay("a@b").get(), None)
assert_type(bound.delay(datetime.now()).get(), str)
assert_type(fetch.delay("http://x").get(), bytes)
assert_type(abound.delay(5).get(), list[int])
assert_type(add.apply_async((1, 2), countdown=5), AsyncResult[float])
assert_type(add.apply((1, 2)).get(), float)
assert_type(add(1, 2), float)
assert_type(add.s(1), Signature[float])
assert_type(add.si(1).set(queue="q"), Signature[float])
assert_type(add.s(1).delay(2), AsyncResult[float])
assert_type(app.send_many([add.s(1), add.s(2)]), list[AsyncResult[float]])
assert_type(gather([add.delay(1)]), list[float])
assert_type(app.AsyncResult("id"), AsyncResult[Any])
assert_type(app.send_task("name", (1,)), AsyncResult[Any])

for done in as_completed([add.delay(1)]):
    assert_type(done, AsyncResult[float])


async def twins() -> None:
    assert_type(await add.adelay(1, 2), AsyncResult[float])
    assert_type(await (await add.adelay(1)).aget(timeout=5), float)
    assert_type(await fetch.delay("u"), bytes)
    assert_type(await fetch.adelay("u"), AsyncResult[bytes])
    assert_type(await fetch("u"), bytes)
    assert_type(await app.asend_many([add.s(1)]), list[AsyncResult[float]])
    async for result in aas_completed([add.delay(1)]):
        assert_type(result, AsyncResult[float])


# Each of these lines must be an error; mypy says so itself should one of them be none (warn_unused_ignores).
add.delay("one")  # type: ignore[arg-type]
add.delay()  # type: ignore[call-arg]
add.delay(1, 2, 3)  # type: ignore[call-arg]
add.delay(1, z=5)  # type: ignore[call-arg]
bound.delay(5)  # type: ignore[arg-type]
bound.delay()  # type: ignore[call-arg]
fetch.delay(5)  # type: ignore[arg-type]
abound.delay("n")  # type: ignore[arg-type]
mail("to", "more")  # type: ignore[call-arg]
add.dealy(1)  # type: ignore[attr-defined]


class Resize(Task[[str, int], bytes]):
    def run(self, name: str, width: int) -> bytes:
        return name.encode() * width


resize = app.register(Resize)
shared = shared_task(lambda: 1)
shared.delay()
