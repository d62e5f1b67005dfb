"""The compiled argument check accepts exactly what the function accepts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.signature import make_check

FUNCTIONS: list[Callable[..., Any]] = [
    lambda: None,
    lambda a: None,
    lambda a, b=1: None,
    lambda a, /, b: None,
    lambda a, b, /, c=3, *, d, e=5: None,
    lambda *args: None,
    lambda a, *args, b, **kwargs: None,
    lambda *, only: None,
    lambda **kwargs: None,
    lambda a, /, **kwargs: None,
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: str(inspect.signature(f)))
@given(args=st.lists(st.integers(), max_size=5), names=st.sets(st.sampled_from(["a", "b", "c", "d", "e", "only", "z"])))
def test_as_the_function_itself(function: Callable[..., Any], args: list[int], names: set[str]) -> None:
    kwargs = dict.fromkeys(names, 1)

    def accepts(target: Callable[..., Any]) -> bool:
        try:
            target(*args, **kwargs)
        except TypeError:
            return False
        return True

    assert accepts(make_check(function, "task", bound=False)) == accepts(function)


def test_the_first_parameter_of_a_bound_task_is_its_own() -> None:
    check = make_check(lambda self, x: None, "task", bound=True)
    check(1)
    with pytest.raises(TypeError):
        check(1, 2)


def test_defaults_and_annotations_do_not_matter() -> None:
    def odd(a=object(), *, b=[]):  # type: ignore[no-untyped-def]  # noqa: B006, B008
        return a, b

    odd.__annotations__ = {"a": "Nothing", "b": 5, "return": "..."}
    check = make_check(odd, "task", bound=False)
    check()
    check(1, b=2)


def test_names_that_are_no_names() -> None:
    for name in ("class", "<lambda>", "", "a b"):
        function = lambda x: x  # noqa: E731
        function.__name__ = name
        make_check(function, "task", bound=False)(1)
