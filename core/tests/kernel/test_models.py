"""Arguments and results as pydantic and msgspec models: checked, rebuilt, and plain data on the way."""

import asyncio
from typing import Any

import msgspec
import pydantic
import pytest

from taskq import TaskQ
from taskq.errors import TaskArgumentsError


class Point(msgspec.Struct):
    x: int
    y: int = 0


class Tagged(msgspec.Struct, tag="tagged"):
    name: str


class Order(pydantic.BaseModel):
    id: int
    lines: list[str] = []
    total: float = pydantic.Field(default=0.0, ge=0)

    @pydantic.field_validator("id")
    @classmethod
    def known(cls, value: int) -> int:
        if value == 404:
            raise LookupError("no such order")
        return value


def body(rig: Any, app: TaskQ) -> Any:
    from taskq import envelope

    (payload,) = rig.payloads(app)
    return msgspec.json.decode(payload[envelope.decode(payload)[1] :])


def test_a_msgspec_model(rig: Any, app: TaskQ, pool: str) -> None:
    @app.task
    def mirror(point: Point, *, by: int = 0) -> Point:
        assert type(point) is Point
        return Point(point.y + by, point.x)

    result = mirror.delay(Point(1, 2), by=5)
    assert body(rig, app) == [[{"x": 1, "y": 2}], {"by": 5}]
    rig.drain(app, pool)
    assert result.get(timeout=1) == Point(7, 1)


def test_a_pydantic_model(rig: Any, app: TaskQ, pool: str) -> None:
    @app.task
    def ship(order: Order) -> Order:
        assert type(order) is Order
        return order.model_copy(update={"lines": [*order.lines, "shipped"]})

    result = ship.delay(order=Order(id=1, lines=["a"]))
    assert body(rig, app) == [[], {"order": {"id": 1, "lines": ["a"], "total": 0.0}}]
    rig.drain(app, pool)
    assert result.get(timeout=1) == Order(id=1, lines=["a", "shipped"])


def test_models_inside_containers_and_optionals(rig: Any, app: TaskQ) -> None:
    @app.task
    def total(points: list[Point], named: dict[str, Order], maybe: Point | None = None) -> list[Order] | None:
        assert all(type(p) is Point for p in points)
        return [Order(id=sum(p.x for p in points), lines=sorted(named), total=0 if maybe is None else maybe.x)]

    results = [
        total.delay([Point(1), Point(2)], {"a": Order(id=1)}),
        total.delay([], {}, Point(9)),
        total.delay([], {}, None),
    ]
    rig.drain(app)
    assert [r.get(timeout=1) for r in results] == [
        [Order(id=3, lines=["a"])],
        [Order(id=0, total=9)],
        [Order(id=0)],
    ]


def test_async_tasks_bound_tasks_and_options(rig: Any, app: TaskQ) -> None:
    @app.task(bind=True)
    async def mirror(self: Any, point: Point) -> Point:
        await asyncio.sleep(0)
        return Point(point.y, self.request.attempt)

    results = [
        mirror.delay(Point(1, 2)),
        mirror.apply_async((Point(1, 3),), priority=7),
        *app.send_many([mirror.s(Point(0, 4))]),
    ]
    rig.drain(app)
    assert [r.get(timeout=1) for r in results] == [Point(2, 0), Point(3, 0), Point(4, 0)]


def test_plain_data_is_accepted_and_checked_at_the_worker(rig: Any, app: TaskQ, pool: str) -> None:
    """Another program, or another language, sends plain data; a value that the model refuses is no reason to retry."""
    runs = []

    @app.task(name="ship", max_retries=5, retry_backoff=0)
    def ship(order: Order, point: Point) -> list[Any]:
        runs.append(order)
        return [order.id, point.x]

    good = app.send_task("ship", ({"id": "5"}, {"x": 1}))
    bad = [
        app.send_task("ship", ({"id": 1, "total": -5}, {"x": 1})),
        app.send_task("ship", ({"id": 1}, {"x": "one"})),
        app.send_task("ship", (17, {"x": 1})),
    ]
    with rig.work(app, pool) as worker:
        assert good.get(timeout=10) == [5, 1]
        for result in bad:
            with pytest.raises(TaskArgumentsError, match="refused by its model"):
                result.get(timeout=10)
        with pytest.raises(LookupError, match="no such order"):
            app.send_task("ship", ({"id": 404}, {"x": 1})).get(timeout=10)
        assert worker.lanes[0].settler.retried == 0
    assert len(runs) == 1


def test_models_may_be_left_alone(rig: Any, app: TaskQ) -> None:
    @app.task(models=False)
    def raw(point: Point) -> Any:
        return point

    result = raw.delay({"x": 1})  # type: ignore[arg-type]
    rig.drain(app)
    assert result.get(timeout=1) == {"x": 1}


def test_other_parameters_pass_untouched(rig: Any, app: TaskQ) -> None:
    @app.task
    def mixed(n: int, point: Point, *rest: Any, **more: Any) -> list[Any]:
        return [n, point.x, list(rest), more]

    result = mixed.delay("not an int", Point(1), 2, 3, z=4)  # type: ignore[arg-type]
    rig.drain(app)
    assert result.get(timeout=1) == ["not an int", 1, [2, 3], {"z": 4}]


def test_eager_and_direct_calls(rig: Any, app: TaskQ) -> None:
    @app.task
    def mirror(point: Point) -> Point:
        return Point(point.y, point.x)

    assert mirror(Point(1, 2)) == Point(2, 1)
    assert mirror.apply((Point(1, 2),)).get() == Point(2, 1)


def test_annotations_of_the_type_checker_alone_do_no_harm(rig: Any, app: TaskQ) -> None:
    def task(x: "NotHere") -> "NorThis":  # type: ignore[name-defined]  # noqa: F821
        return x

    result = app.task(task).delay(5)
    rig.drain(app)
    assert result.get(timeout=1) == 5


def test_a_union_of_tagged_models(rig: Any, app: TaskQ) -> None:
    class Other(msgspec.Struct, tag="other"):
        n: int

    def which(value: Tagged | Other) -> str:
        return type(value).__name__

    which.__annotations__ = {"value": Tagged | Other, "return": str}
    task = app.task(name="which")(which)
    results = [task.delay(Tagged("x")), task.delay(Other(1))]
    rig.drain(app)
    assert [r.get(timeout=1) for r in results] == ["Tagged", "Other"]


def test_var_arguments_may_be_models(rig: Any, app: TaskQ) -> None:
    @app.task
    def total(*points: Point, **named: Point) -> int:
        return sum(p.x for p in points) + sum(p.x for p in named.values())

    result = total.delay(Point(1), Point(2), a=Point(3))
    rig.drain(app)
    assert result.get(timeout=1) == 6
