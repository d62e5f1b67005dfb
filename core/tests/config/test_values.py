"""Conversion of values: every type reads its own text back, and nothing of another type gets through."""

from __future__ import annotations

import enum
import math
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.config.schema import Settings
from taskq.config.values import About, Mismatch, convert, fields_of
from taskq.errors import PluginInvalid
from taskq.spi import Url, option

if TYPE_CHECKING:
    from decimal import Decimal

PLAIN = About()
SECONDS = About(unit="s")
BYTES = About(unit="bytes")
words = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1).filter(lambda s: s.lower() != "none")


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


@given(st.booleans())
def test_truth_value_reads_itself(value: bool) -> None:
    assert convert(value, bool, PLAIN) is value
    assert convert(str(value), bool, PLAIN) is value


@given(st.integers())
def test_whole_number_reads_itself(value: int) -> None:
    assert convert(value, int, PLAIN) == value
    assert convert(str(value), int, PLAIN) == value
    assert convert(str(value), int | None, PLAIN) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_number_reads_itself(value: float) -> None:
    result = convert(repr(value), float, PLAIN)
    assert result == value
    assert type(result) is float


@given(st.integers(min_value=-(2**53), max_value=2**53))
def test_number_takes_a_whole_number(value: int) -> None:
    for given_as in (value, str(value)):
        result = convert(given_as, float, PLAIN)
        assert result == value
        assert type(result) is float


@given(st.text())
def test_text_is_left_alone(value: str) -> None:
    assert convert(value, str, PLAIN) == value


@given(st.lists(words))
def test_list_reads_commas_and_json(values: list[str]) -> None:
    assert convert(",".join(values), tuple[str, ...], PLAIN) == tuple(values)
    assert convert(values, tuple[str, ...], PLAIN) == tuple(values)
    quoted = "[" + ", ".join(f'"{v}"' for v in values) + "]"
    assert convert(quoted, list[str], PLAIN) == values


@given(st.lists(st.integers(0, 9), min_size=2, max_size=2))
def test_pair_of_numbers(values: list[int]) -> None:
    assert convert(f"{values[0]}, {values[1]}", tuple[int, int] | None, PLAIN) == tuple(values)


@pytest.mark.parametrize("text", ["1", "1,2,3", "1,x", "a", ""])
def test_pair_of_numbers_refuses_anything_else(text: str) -> None:
    with pytest.raises(Mismatch):
        convert(text, tuple[int, int], PLAIN)


@given(st.dictionaries(words, words, min_size=1))
def test_table_of_texts_reads_pairs(table: dict[str, str]) -> None:
    assert convert(",".join(f"{k}={v}" for k, v in table.items()), Mapping[str, str], PLAIN) == table


def test_table_reads_json() -> None:
    assert convert('{"a": {"b": [1]}}', dict[str, Any], PLAIN) == {"a": {"b": [1]}}
    with pytest.raises(Mismatch, match="well-formed JSON"):
        convert('{"a": ', dict[str, Any], PLAIN)


@pytest.mark.parametrize(
    ("text", "about", "expected"),
    [
        ("10m", SECONDS, 600), ("1.5h", SECONDS, 5400), ("250ms", SECONDS, 0.25), ("1 d", SECONDS, 86400),
        ("3", SECONDS, 3), ("1min", SECONDS, 60), ("2w", SECONDS, 1209600),
        ("64MiB", BYTES, 64 << 20), ("1kb", BYTES, 1000), ("7 B", BYTES, 7),
    ],
)  # fmt: skip
def test_units(text: str, about: About, expected: float) -> None:
    assert convert(text, float, about) == expected


def test_unit_gives_whole_numbers_where_wanted() -> None:
    assert convert("1.5KiB", int, BYTES) == 1536
    assert type(convert("1.5KiB", int, BYTES)) is int
    with pytest.raises(Mismatch, match="a whole number of bytes"):
        convert("1.0001KiB", int, BYTES)


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ("10m", PLAIN),
        ("10m", BYTES),
        ("64MiB", SECONDS),
        ("10x", SECONDS),
        ("m", SECONDS),
        ("1_0", PLAIN),
        ("٣", PLAIN),
    ],
)
def test_unit_of_another_kind_is_refused(text: str, about: About) -> None:
    with pytest.raises(Mismatch):
        convert(text, float, about)


def test_duration_object() -> None:
    assert convert(timedelta(minutes=2), float, SECONDS) == 120
    with pytest.raises(Mismatch):
        convert(timedelta(minutes=2), float, PLAIN)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "nan", "inf", "1e999", [1.0, math.nan]])
def test_numbers_are_finite(value: object) -> None:
    with pytest.raises(Mismatch):
        convert(value, list[float] if isinstance(value, list) else float, PLAIN)


wrong: list[tuple[Any, Any]] = [
    (1, bool), ("maybe", bool), (True, int), (1.5, int), ("1.5", int), ("x", int), (True, float), ("x", float),
    (1, str), (None, str), (None, int), (["a"], str), ([1], tuple[str, ...]), (3, tuple[str, ...]), ("red!", Colour),
    ("c", Literal["a", "b"]), (1, Literal["a", "b"]), ([], dict[str, int]), ({"a": "x"}, dict[str, int]),
    (3, pathlib.Path), (3, tuple[Url, ...]), ([3], tuple[Url, ...]), ((), tuple[Url, ...]), ("", tuple[Url, ...]),
]  # fmt: skip


@pytest.mark.parametrize(("value", "kind"), wrong)
def test_wrong_types_are_refused(value: Any, kind: Any) -> None:
    with pytest.raises(Mismatch):
        convert(value, kind, PLAIN)


def test_none_unsets() -> None:
    assert convert("none", int | None, PLAIN) is None
    assert convert("None", str | None, PLAIN) is None
    assert convert("none", tuple[Url, ...] | None, About(none=())) == ()
    assert convert("none", str, PLAIN) == "none"


def test_choices_and_literals() -> None:
    assert convert("a", Literal["a", "b"], PLAIN) == "a"
    assert convert("2", Literal[1, 2], PLAIN) == 2
    assert convert("green", Colour, PLAIN) is Colour.GREEN
    assert convert(Colour.RED, Colour, PLAIN) is Colour.RED
    assert convert("x", str, About(choices=("x", "y"))) == "x"
    with pytest.raises(Mismatch, match="one of x, y"):
        convert("z", str, About(choices=("x", "y")))
    with pytest.raises(Mismatch, match="one of red, green"):
        convert("blue", Colour, PLAIN)


@given(st.integers(-5, 5))
def test_minimum(value: int) -> None:
    about = About(minimum=1)
    if value >= 1:
        assert convert(value, int | None, about) == value
        assert convert((value, 3), tuple[int, int], about) == (value, 3)
    else:
        for wrong_value, kind in ((value, int | None), (str(value), float), ((3, value), tuple[int, int])):
            with pytest.raises(Mismatch, match="at least 1"):
                convert(wrong_value, kind, about)


def test_unions_prefer_the_narrower_type() -> None:
    assert convert("5", int | str, PLAIN) == 5
    assert convert("5", str | int, PLAIN) == 5
    assert convert("5x", str | int, PLAIN) == "5x"


def test_urls() -> None:
    one = convert("redis://h/0", tuple[Url, ...], PLAIN)
    assert one == (Url.parse("redis://h/0"),)
    assert convert(["redis://a", "redis://b"], tuple[Url, ...], PLAIN) == convert(
        "redis://a;redis://b", tuple[Url, ...], PLAIN
    )
    assert convert(one[0], tuple[Url, ...], PLAIN) == one
    with pytest.raises(Mismatch, match="it has no scheme"):
        convert("localhost", tuple[Url, ...], PLAIN)


def test_path() -> None:
    assert convert("/a/b", pathlib.Path, PLAIN) == pathlib.Path("/a/b")
    assert convert(pathlib.Path("/a"), pathlib.Path | None, PLAIN) == pathlib.Path("/a")


def test_where_in_a_list_it_is_wrong() -> None:
    with pytest.raises(Mismatch, match=r"at \[1\]"):
        convert(["a", 2], tuple[str, ...], PLAIN)


def test_fields_of_a_dataclass() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Options:
        kept: ClassVar[int] = 1
        size: int = option(5, help="Size.", minimum=1, unit="bytes")
        names: list[str] = option(["a"], help="Names.")  # noqa: RUF009
        must: str = option(help="Needed.", secret=True)
        plain: bool = False

    fields = fields_of(Options)
    assert list(fields) == ["size", "names", "must", "plain"]
    assert fields["size"].about == About(help="Size.", unit="bytes", minimum=1)
    assert fields["names"].default == ["a"]
    assert fields["must"].about.secret


def test_every_default_of_the_schema_is_valid() -> None:
    for field in fields_of(Settings).values():
        if field.default is not None and not hasattr(field.default, "__struct_fields__"):
            assert convert(field.default, field.type, field.about) == field.default


def test_unresolvable_annotations_name_the_class() -> None:
    @dataclass
    class Options:
        size: Decimal = option(None, help="imported under TYPE_CHECKING only")  # noqa: RUF009

    with pytest.raises(PluginInvalid, match=r"Options cannot be resolved.*at run time"):
        fields_of(Options)


def test_other_classes_are_refused() -> None:
    with pytest.raises(PluginInvalid, match="dataclass"):
        fields_of(int)
