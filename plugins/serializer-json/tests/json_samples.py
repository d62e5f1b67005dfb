"""Classes that messages of the tests name."""

from __future__ import annotations

import collections
import dataclasses
import enum
from typing import Any


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    name: str
    tags: frozenset[str] = frozenset()


@dataclasses.dataclass
class Counting:
    """Says when code of it runs."""

    n: int
    runs = 0

    def __post_init__(self):
        type(self).runs += 1


@dataclasses.dataclass
class Defaults:
    a: int
    b: list[int] = dataclasses.field(default_factory=lambda: [7])
    c: int = dataclasses.field(init=False)


@dataclasses.dataclass
class Built(dict):
    x: int = 0


class Outer:
    @dataclasses.dataclass
    class Inner:
        v: int


class Color(enum.Enum):
    RED = "r"
    GREEN = ("g", 2)


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    A = "a"


class Mode(enum.Flag):
    R = 1
    W = 2


Pair = collections.namedtuple("Pair", "a b")


class Text(str):
    pass


class NotData:
    pass
