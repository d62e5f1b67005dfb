"""What the json serializer promises beyond the kit: the table of its README."""

from __future__ import annotations

import collections
import datetime as dt
import json
import math
import os
import subprocess
import sys
import uuid
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskq.errors import DecodeError, EncodeError
from taskq.spi import ComponentConfig
from taskq_serializer_json.options import JsonOptions
from taskq_serializer_json.plugin import taskq_serializer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import json_samples as t  # noqa: E402

sys.path.remove(str(HERE))

SERIALIZER = taskq_serializer("json").factory(ComponentConfig(options=JsonOptions()))
dumps, loads = SERIALIZER.dumps, SERIALIZER.loads


def same(a, b):
    """Equal in value and in type, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return len(a) == len(b) and all(map(same, a, b)) and all(map(same, a.values(), b.values()))
    if isinstance(a, t.Point):
        return same(a.x, b.x) and same(a.y, b.y)
    if isinstance(a, float):
        return repr(a) == repr(b)
    if isinstance(a, dt.datetime | dt.time):
        return a.isoformat() == b.isoformat() and a.fold == b.fold
    return repr(a) == repr(b) if isinstance(a, Decimal) else a == b


BERLIN = ZoneInfo("Europe/Berlin")
ROUND_TRIPS = [
    None, True, False, 0, -1, 2**63, 2**64, -(2**64), 10**30, -(10**4000), 1 << 40000, -(1 << 40000),
    0.0, -0.0, 1.5, 5e-324, 1.7976931348623157e308, math.nan, math.inf, -math.inf,
    "", "ä €😀", "\x00", "\ud800", "a\udfff", '"$taskq"', "$taskq",
    [], {}, [[]], [{}], {"a": {"b": [1, None]}},
    {1: "a"}, {None: 1}, {1.5: 2, "x": 3}, {(1, 2): 3}, {(1, (2, "x")): 3}, {frozenset({1}): 2},
    {"\ud800": 1}, {True: 1, "1": 2},
    {"$taskq": 1}, {"$taskq": "datetime", "v": "x"}, {"a": {"$taskq": {"$taskq": None}}}, [{"$taskq": []}],
    set(), {1, 2}, frozenset(), frozenset({"a"}), {(1, 2), frozenset({3})}, {None, 1.5, "x", b"y"},
    b"", b"\x00\xff", bytearray(b"ab"), bytearray(),
    dt.datetime(2024, 1, 2, 3, 4, 5, 6), dt.datetime(1, 1, 1), dt.datetime.max,
    dt.datetime(2024, 1, 2, tzinfo=dt.UTC), dt.datetime(2024, 10, 27, 2, 30, fold=1),
    dt.datetime(2024, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=-3, minutes=-30, seconds=7, microseconds=9))),
    dt.datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN), dt.datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=1),
    dt.datetime(2024, 3, 31, 2, 30, tzinfo=BERLIN),
    dt.date(2024, 2, 29), dt.time(1, 2, 3, 4), dt.time(1, tzinfo=dt.UTC),
    dt.time(2, 30, tzinfo=BERLIN), dt.time(2, fold=1),
    dt.timedelta(0), dt.timedelta(microseconds=-1), dt.timedelta.min, dt.timedelta.max,
    uuid.UUID(int=5), Decimal("1.10"), Decimal("-0"), Decimal("1E+999999"), Decimal("NaN"),
    Decimal("sNaN12"), Decimal("-Infinity"),
    t.Point(1, [2]), t.Point(t.Point({1}, dt.date(1, 1, 1)), None), t.Frozen("a", frozenset({"b"})), t.Outer.Inner(3),
    {t.Frozen("k"): 1}, {"p": {"q": [t.Point(b"x")]}},
    t.Color.RED, t.Color.GREEN, t.Level.LOW, t.Word.A, t.Mode.R, t.Mode.R | t.Mode.W, t.Mode(0),
    {t.Word.A: 1, t.Level.LOW: 2}, {t.Color.RED},
]  # fmt: skip


@pytest.mark.parametrize(
    "value", ROUND_TRIPS, ids=[f"{i}-{type(value).__name__}" for i, value in enumerate(ROUND_TRIPS)]
)
def test_round_trip(value):
    for wrapped in (value, [value], {"k": value}):
        written = dumps(wrapped)
        json.loads(written)  # any other reader can read it
        assert same(loads(written), wrapped)


@pytest.mark.parametrize(
    ("value", "back"),
    [
        ((1, (2,)), [1, [2]]),
        ([(1, b"x")], [[1, b"x"]]),
        (t.Pair(1, 2), [1, 2]),
        (t.Text("a"), "a"),
        (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (collections.Counter("aa"), {"a": 2}),
        ({t.Text("k"): 1}, {"k": 1}),
        ({1: t.Text("ä")}, {1: "ä"}),
    ],
)
def test_comes_back_as_a_simpler_type(value, back):
    assert same(loads(dumps(value)), back)


def test_plain_data_is_plain_json():
    assert dumps([(1, "a"), {"x": [None, True, 1.5]}]) == b'[[1,"a"],{"x":[null,true,1.5]}]'
    assert json.loads(dumps({"when": dt.date(2024, 1, 2)})) == {"when": {"$taskq": "date", "v": "2024-01-02"}}
    assert loads(b' {"a": [1, 2.5, null, "\\u00e4"]} ') == {"a": [1, 2.5, None, "ä"]}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
    | st.text(st.characters(categories=["Cs", "Ll"]))
    | st.datetimes(timezones=st.none() | st.timezones()) | st.dates() | st.timedeltas() | st.uuids()
    | st.times() | st.decimals() | st.sampled_from(t.Color) | st.builds(bytearray, st.binary()),
    lambda inner: st.lists(inner)
    | st.dictionaries(st.text() | st.just("$taskq") | st.integers() | st.tuples(st.dates(), st.text()), inner)
    | st.sets(st.integers() | st.text() | st.tuples(st.integers(), st.binary()))
    | st.builds(t.Point, inner, inner),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(values)
def test_any_value_round_trips(value):
    assert same(loads(dumps(value)), value)


@settings(max_examples=300, deadline=None)
@given(st.binary())
def test_random_bytes_give_only_decode_errors(data):
    try:
        loads(data)
    except DecodeError:
        pass


tags = st.sampled_from(
    ["int", "float", "str", "dict", "set", "frozenset", "tuple", "bytes", "bytearray", "datetime", "date", "time",
     "timedelta", "uuid", "decimal", "enum", "dataclass", "other", None, 1, []]
)  # fmt: skip
junk = st.recursive(
    st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | st.just("2024-01-01")
    | st.sampled_from(["json_samples:Point", "json_samples:Color", "os:system", "sys:modules", "builtins:dict"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.fixed_dictionaries(
        {"$taskq": tags},
        optional={"v": inner, "c": inner, "n": inner, "zone": inner, "fold": inner},
    ),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(junk)
def test_damaged_tags_give_only_decode_errors(tree):
    try:
        loads(json.dumps(tree).encode())
    except DecodeError:
        pass


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "0 bytes"),
        (b"[1", "truncated"),
        (b"NaN", "malformed"),
        (b'"\xff"', "utf-8"),
        (b'"\\ud800"', "JSON"),
        (b"1" * 5000, "JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"$taskq": "set", "v": ' * 5000 + b"[]" + b"}" * 5000, "nested too deeply"),
        (b'{"$taskq": "color", "v": 1}', "'color' is not known.*newer"),
        (b'{"$taskq": ["x"]}', "not known"),
        (b'{"$taskq": null}', "None is not known"),
        (b'{"$taskq": "date"}', "damaged 'date' tag.*KeyError"),
        (b'{"$taskq": "date", "v": "yesterday"}', "damaged 'date' tag"),
        (b'{"$taskq": "set", "v": "abc"}', "a list was expected, not a str"),
        (b'{"$taskq": "set", "v": [[1]]}', "unhashable"),
        (b'{"$taskq": "bytes", "v": "%%%%"}', "damaged"),
        (b'{"$taskq": "datetime", "v": "2024-01-01T00:00:00", "zone": "../../etc/passwd"}', "damaged"),
        (b'{"$taskq": "dataclass", "c": "no_such_module:Point", "v": {}}', "no_such_module:Point.*no loaded module"),
        (b'{"$taskq": "dataclass", "c": "json_samples:NotData", "v": {}}', "is not a dataclass"),
        (b'{"$taskq": "dataclass", "c": "json_samples:Color", "v": {}}', "is not a dataclass"),
        (b'{"$taskq": "dataclass", "c": "os:system", "v": {}}', "no loaded module"),
        (b'{"$taskq": "dataclass", "c": "json_samples:Point", "v": {"x": 1, "z": 2}}', "no field z.*same version"),
        (b'{"$taskq": "dataclass", "c": "json_samples:Point", "v": {"y": 1}}', "needs a field 'x'"),
        (b'{"$taskq": "enum", "c": "json_samples:Color", "n": "BLUE"}', "no member 'BLUE'"),
        (b'{"$taskq": "enum", "c": "json_samples:Point", "n": "x"}', "is not an enum"),
    ],
)
def test_what_cannot_be_read_is_told(data, says):
    with pytest.raises(DecodeError, match=says):
        loads(data)


def test_bytes_like_input_is_read_alike():
    written = dumps({1, 2})
    assert loads(bytearray(written)) == loads(memoryview(written)) == {1, 2}


class OddZone(dt.tzinfo):
    def utcoffset(self, when):
        return None


def deep(levels, kind):
    value = 0
    for _ in range(levels):
        value = kind(value)
    return value


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (object(), r"cannot write value as JSON: its type is object\. Pass plain data"),
        ([(t.Point(t.NotData()),), {}], r"args\[0\]\.x as JSON: its type is json_samples\.NotData\."),
        ([(1,), {"who": {"x": [0, 1j]}}], r"kwargs\['who'\]\['x'\]\[1\] as JSON: its type is complex"),
        ({"a": {1: int}}, r"value\['a'\]\[1\] as JSON: its type is type"),
        ({t.Frozen("k"): [lambda: 0]}, r"value\[<json_samples\.Frozen>\]\[0\] as JSON: its type is function"),
        ({"x" * 500: 1j}, r"value\['x{38}…\] as JSON"),
        ([{(1, 1j)}], r"value\[0\]\{…\}\(…\) as JSON"),
        (memoryview(b""), "memoryview"),
        (t.Built(), "derives from a built-in type"),
        (dt.datetime(2024, 1, 1, tzinfo=OddZone()), "tells no offset"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_told(value, says):
    with pytest.raises(EncodeError, match=says):
        dumps(value)


def test_a_local_class_cannot_be_written():
    @dataclass
    class Local:
        x: int

    with pytest.raises(EncodeError, match=r"Local is not found under its own name.*top level"):
        dumps(Local(1))


def test_what_contains_itself_cannot_be_written():
    listed, mapped, point = [], {}, t.Point(1)
    listed.append(listed)
    mapped["me"] = [mapped]
    point.y = {1: point}
    for value in (listed, mapped, point, [(listed,), {}]):
        with pytest.raises(EncodeError, match="contains itself or is nested deeper than 200"):
            dumps(value)


@pytest.mark.parametrize(
    "kind",
    [
        lambda v: [v],
        lambda v: {"k": v},
        lambda v: {1: v},
        t.Point,
        lambda v: frozenset({v}),
        lambda v: frozenset({(v,)}),
    ],
    ids=["list", "dict", "pairs", "dataclass", "set", "tuple"],
)
def test_nesting_is_limited_and_what_is_written_can_be_read(kind):
    value = deep(95, kind)  # a tuple in a set takes two levels
    assert loads(dumps(value)) == value
    with pytest.raises(EncodeError, match="200"):
        dumps(deep(210, kind))


def test_a_short_stack_gives_an_encode_error():
    limit = sys.getrecursionlimit()
    value = deep(195, t.Point)
    written = dumps(value)
    frame, used = sys._getframe(), 0
    while frame:
        frame, used = frame.f_back, used + 1
    sys.setrecursionlimit(used + 120)
    try:
        with pytest.raises(EncodeError, match="stack"):
            dumps(value)
        with pytest.raises(DecodeError, match="nested too deeply"):
            loads(written)
    finally:
        sys.setrecursionlimit(limit)


def test_reading_runs_no_code_of_the_class():
    value = t.Counting(3)
    t.Counting.runs = 0
    assert loads(dumps(value)) == value
    assert t.Counting.runs == 0


def test_missing_fields_get_their_defaults():
    back = loads(b'{"$taskq": "dataclass", "c": "json_samples:Defaults", "v": {"a": 1}}')
    assert (back.a, back.b, hasattr(back, "c")) == (1, [7], False)
    unset = t.Defaults(1)
    assert json.loads(dumps(unset))["v"] == {"a": 1, "b": [7]}
    assert not hasattr(loads(dumps(unset)), "c")


def test_classes_can_be_refused():
    strict = taskq_serializer("json").factory(ComponentConfig(options=JsonOptions(classes="none")))
    for value in (t.Point(1), t.Color.RED):
        with pytest.raises(DecodeError, match="option classes is 'none'"):
            strict.loads(dumps(value))
    assert strict.loads(dumps({1})) == {1}


def test_nothing_is_imported_for_a_message():
    assert "this" not in sys.modules
    with pytest.raises(DecodeError, match="no loaded module"):
        loads(b'{"$taskq": "dataclass", "c": "this:s", "v": {}}')
    assert "this" not in sys.modules


def test_a_zone_whose_rules_differ_keeps_the_moment():
    back = loads(b'{"$taskq": "datetime", "v": "2024-07-01T12:00:00+05:00", "zone": "Europe/Berlin"}')
    assert back == dt.datetime(2024, 7, 1, 7, tzinfo=dt.UTC)
    assert back.tzinfo is BERLIN


def test_what_is_written_does_not_depend_on_the_hash_seed(tmp_path):
    code = (
        "from taskq_serializer_json.serializer import JsonSerializer as S; "
        "print(S().dumps({'k': {str(i) for i in range(50)}, 's': frozenset({(i, str(i)) for i in range(9)})}))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        )
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout != b""


def test_a_class_of_the_main_script_travels_under_its_import_name(tmp_path):
    (tmp_path / "shop.py").write_text(
        "import dataclasses\n"
        "from taskq_serializer_json.serializer import JsonSerializer\n"
        "@dataclasses.dataclass\n"
        "class Order:\n    n: int\n"
        "if __name__ == '__main__':\n"
        "    s = JsonSerializer()\n"
        "    written = s.dumps(Order(1))\n"
        "    assert s.loads(written) == Order(1)\n"
        "    print(written.decode())\n"
    )
    for command in (["shop.py"], ["-m", "shop"]):
        ran = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert json.loads(ran.stdout) == {"$taskq": "dataclass", "c": "shop:Order", "v": {"n": 1}}


def test_the_plugin_module_does_not_import_the_driver():
    code = "import sys, taskq_serializer_json.plugin; sys.exit('taskq_serializer_json.serializer' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
