"""Signatures: frozen calls, partial arguments, options, immutability."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from taskq import Signature, TaskQ
from taskq.errors import NotSupported, TaskArgumentsError, UnknownTask


@pytest.fixture
def add(app: TaskQ) -> Any:
    @app.task(name="add")
    def add(*args: Any, **kwargs: Any) -> list[Any]:
        return [list(args), kwargs]

    return add


def sent(rig: Any, app: TaskQ, signature: Any, *args: Any, **kwargs: Any) -> Any:
    result = signature.delay(*args, **kwargs)
    rig.drain(app)
    return result.get(timeout=1)


def test_further_arguments_go_in_front_and_keywords_win(rig: Any, app: TaskQ, add: Any) -> None:
    """The rule that users of Celery know: the result of the task before comes first."""
    partial = add.s(3, 4, key="own", other=1)
    assert sent(rig, app, partial, 1, 2, key="later") == [[1, 2, 3, 4], {"key": "later", "other": 1}]
    assert sent(rig, app, partial) == [[3, 4], {"key": "own", "other": 1}]
    assert partial(0) == [[0, 3, 4], {"key": "own", "other": 1}]


def test_an_immutable_one_takes_nothing_more(rig: Any, app: TaskQ, add: Any) -> None:
    fixed = add.si(3, key="own")
    assert sent(rig, app, fixed, 1, 2, key="later", more=1) == [[3], {"key": "own"}]
    assert fixed(1) == [[3], {"key": "own"}]
    assert fixed.clone((9,), countdown=5).options == {"countdown": 5}
    assert fixed.clone((9,)).args == (3,)


def test_it_is_frozen(app: TaskQ, add: Any) -> None:
    signature = add.s(1)
    with pytest.raises(AttributeError):
        signature.args = (2,)
    changed = signature.set(countdown=5).set(priority=9, countdown=7)
    assert signature.options == {}
    assert changed.options == {"countdown": 7, "priority": 9}
    assert (changed.args, changed.task, changed.immutable) == ((1,), "add", False)
    assert isinstance(changed, Signature)


def test_cloning_leaves_the_original_alone(add: Any) -> None:
    original = add.s(1, a=1)
    clone = original.clone((0,), {"b": 2}, queue="q")
    assert (clone.args, dict(clone.kwargs), dict(clone.options)) == ((0, 1), {"a": 1, "b": 2}, {"queue": "q"})
    assert (original.args, dict(original.kwargs), dict(original.options)) == ((1,), {"a": 1}, {})


def test_options_travel_and_later_ones_win(rig: Any, app: TaskQ, add: Any) -> None:
    signature = add.s(1).set(queue="special", priority=3)
    signature.apply_async((0,), {"k": 1}, priority=8)
    (peeked,) = app.transport.peek("special")  # type: ignore[attr-defined]
    assert peeked.priority == 8


def test_by_name_known_or_not(rig: Any, app: TaskQ, add: Any) -> None:
    assert sent(rig, app, app.signature("add", (2,), {"k": 1}), 1) == [[1, 2], {"k": 1}]
    unknown = app.signature("elsewhere", (2,))
    assert unknown.delay(1).id
    with pytest.raises(UnknownTask, match="elsewhere"):
        unknown(1)


def test_the_async_twins(rig: Any, app: TaskQ, add: Any) -> None:
    async def client() -> list[Any]:
        results = [await add.s(2).adelay(1, k=3), await add.s(2).aapply_async((1,), {"k": 4}, priority=7)]
        return [await r.aget(timeout=10) for r in results]

    with rig.work(app):
        assert asyncio.run(client()) == [[[1, 2], {"k": 3}], [[1, 2], {"k": 4}]]


def test_repr(app: TaskQ, add: Any) -> None:
    assert repr(add.s(1, "x", k=[2])) == "add(1, 'x', k=[2])"


def test_arguments_are_checked_when_it_is_sent(rig: Any, app: TaskQ) -> None:
    """Not before: more may be to come."""

    @app.task(name="two")
    def two(x: int, y: int) -> int:
        return x - y

    partial = two.s(1)
    with pytest.raises(TaskArgumentsError, match="do not fit task two"):
        partial.delay()
    assert sent(rig, app, partial, 5) == 4


@pytest.mark.parametrize("option", [{"transaction": object()}, {"publish_timeout": 5}], ids=lambda o: next(iter(o)))
def test_what_belongs_to_the_whole_send_is_refused_in_one_signature(
    app: TaskQ, add: Any, option: dict[str, Any]
) -> None:
    with pytest.raises(NotSupported, match="is an option of send_many as a whole"):
        app.send_many([add.s(1), add.s(2).set(**option)])
