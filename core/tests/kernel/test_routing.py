"""Which queue a call goes to, and with which priority."""

from __future__ import annotations

import re
from typing import Any

import pytest

from taskq import TaskQ
from taskq.errors import ConfigError
from taskq.routing import Route, RouteTable


def queue_of(app: TaskQ, result: Any, *queues: str) -> str:
    for queue in queues:
        for peeked in app.transport.peek(queue):  # type: ignore[attr-defined]
            if peeked.id == result.id:
                return queue
    raise AssertionError(f"in none of {queues}")


@pytest.mark.parametrize(
    ("match", "hits", "misses"),
    [
        ("reports.daily", ["reports.daily"], ["reports.daily2", "xreports.daily", "reports"]),
        ("reports.*", ["reports.daily", "reports.a.b"], ["reports", "xreports.a"]),
        ("*.mail?", ["a.mail1"], ["a.mail", "mail1"]),
        ("[ab].x", ["a.x", "b.x"], ["c.x"]),
        (r"re:reports\.(daily|weekly)", ["reports.daily", "reports.weekly"], ["reports.daily2", "areports.daily"]),
        (re.compile("x+"), ["x", "xxx"], ["xy"]),
        (lambda name: name.endswith("!"), ["go!"], ["go"]),
    ],
    ids=["name", "glob", "globs", "class", "regex", "compiled", "callable"],
)
def test_how_a_route_matches(match: Any, hits: list[str], misses: list[str]) -> None:
    table = RouteTable([(match, "there")])
    assert [table.find(name) for name in hits] == [Route("there")] * len(hits)
    assert [table.find(name) for name in misses] == [Route()] * len(misses)


def test_the_first_match_wins_and_a_callable_may_pass() -> None:
    table = RouteTable([
        lambda name, args, kwargs: "big" if args and args[0] > 100 else None,
        {"match": "a.*", "queue": "a", "priority": 7},
        ("*", {"queue": "rest"}),
    ])  # fmt: skip
    assert table.dynamic
    assert table.find("a.x", (500,)) == Route("big")
    assert table.find("a.x", (5,)) == Route("a", 7)
    assert table.find("b.x", ()) == Route("rest")
    assert table.queues() == {"a", "rest"}


@pytest.mark.parametrize(
    ("route", "message"),
    [
        ("just a string", "neither a callable"),
        ({"queue": "a"}, "has no 'match'"),
        (("re:(", "a"), "is not a regular expression"),
        (("a", 5), "a route must give a queue name"),
        (("a", {"queue": "q", "speed": 5}), "a route must give"),
    ],
)
def test_routes_that_make_no_sense(route: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RouteTable([route])


def test_who_decides(rig: Any) -> None:
    """The call, then the task, then the routes, then the default queue."""
    app = rig.app(routes=[("routed", "by-route"), ("tasks-own", "by-route")], default_queue="by-default")
    app.task(name="routed")(lambda: None)
    app.task(name="tasks-own", queue="by-task")(lambda: None)
    app.task(name="other")(lambda: None)
    queues = ("by-call", "by-task", "by-route", "by-default")
    sent = {
        "by-call": app.tasks["tasks-own"].apply_async(queue="by-call"),
        "by-task": app.tasks["tasks-own"].delay(),
        "by-route": app.tasks["routed"].delay(),
        "by-default": app.tasks["other"].delay(),
    }
    assert {queue_of(app, result, *queues): result for result in sent.values()} == sent
    assert queue_of(app, app.tasks["tasks-own"].apply_async(priority=1), *queues) == "by-task"
    assert queue_of(app, app.send_task("routed"), *queues) == "by-route"
    assert queue_of(app, app.send_task("unknown"), *queues) == "by-default"
    assert app.queue_names() == ["by-default", "by-route", "by-task"]


def test_a_callable_sees_the_arguments_of_every_call(rig: Any) -> None:
    seen = []

    def by_size(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        seen.append((name, args, dict(kwargs)))
        return {"queue": "big", "priority": 2} if args[0] > 10 else None

    app = rig.app(routes=by_size)
    work = app.task(name="work")(lambda x, *, y=0: None)
    own = app.task(name="own", queue="own")(lambda x: None)
    assert queue_of(app, work.delay(11), "big", "default") == "big"
    assert queue_of(app, work.delay(9, y=5), "big", "default") == "default"
    assert queue_of(app, work.apply_async((12,), headers={}), "big", "default") == "big"
    assert queue_of(app, app.send_many([work.s(13)])[0], "big", "default") == "big"
    assert queue_of(app, app.send_task("work", (14,)), "big", "default") == "big"
    assert queue_of(app, own.delay(15), "own", "big") == "own"
    assert [args[0] for _, args, _ in seen] == [11, 9, 12, 13, 14, 15]
    assert seen[1] == ("work", (9,), {"y": 5})
    assert [p.priority for p in app.transport.peek("big")] == [2] * 4  # type: ignore[attr-defined]


def test_priority_of_call_task_route_queue(rig: Any) -> None:
    app = rig.app(routes=[{"match": "routed", "queue": "routed", "priority": 3}], queues={"low": {"priority": 1}})
    app.task(name="routed")(lambda: None)
    app.task(name="own", queue="low", priority=8)(lambda: None)
    app.task(name="plain", queue="low")(lambda: None)

    def priority(result: Any, queue: str) -> int:
        return next(p.priority for p in app.transport.peek(queue) if p.id == result.id)  # type: ignore[attr-defined]

    assert priority(app.tasks["own"].apply_async(priority=9), "low") == 9
    assert priority(app.tasks["own"].delay(), "low") == 8
    assert priority(app.tasks["routed"].delay(), "routed") == 3
    assert priority(app.tasks["plain"].delay(), "low") == 1
    assert priority(app.send_task("else"), "default") == 5


def test_routes_of_settings_and_plugins_come_after_the_codes_own(rig: Any) -> None:
    from taskq.spi import hookimpl

    class Plugin:
        @hookimpl
        def taskq_routes(self, app: TaskQ) -> list[Any]:
            return [("*", "plugin")]

    app = rig.app(routes=[("own", "code")])
    app.plugins.register(Plugin(), "router")
    app.task(name="own")(lambda: None)
    app.task(name="other")(lambda: None)
    assert queue_of(app, app.tasks["own"].delay(), "code", "plugin") == "code"
    assert queue_of(app, app.tasks["other"].delay(), "code", "plugin") == "plugin"


def test_a_worker_serves_every_queue_that_the_application_names(rig: Any) -> None:
    app = rig.app(routes=[("a", "qa")], queues={"configured": {}})
    app.task(name="a")(lambda: "a")
    app.task(name="b", queue="qb")(lambda: "b")
    with rig.work(app) as worker:
        assert sorted(q.queue for lane in worker.lanes for q in lane.queues) == ["configured", "default", "qa", "qb"]
        assert [app.tasks[n].delay().get(timeout=10) for n in "ab"] == ["a", "b"]
        assert app.tasks["a"].apply_async(queue="configured").get(timeout=10) == "a"


def test_a_worker_of_some_queues_leaves_the_others(rig: Any) -> None:
    app = rig.app()
    app.task(name="a")(lambda: "a")
    with rig.work(app, queues=("only",)):
        app.tasks["a"].delay()
        assert app.tasks["a"].apply_async(queue="only").get(timeout=10) == "a"
    assert rig.counts(app) == (1, 0, 0)
