"""Typed fields of a settings class or a plugin's options class, and the conversion of values to their types.

Text is read in the same way wherever it comes from (a file, a variable, a URL's query, the command line):

    true false yes no on off 1 0       for a truth value
    30  2.5  "10m"  "64MiB"            for a number; the suffix where the setting has a unit
    a,b,c  or  ["a", "b"]              for a list; JSON where it starts with a bracket
    {"a": 1}  or  a=x,b=y              for a table
    none                               for a setting that may be unset
"""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Literal, cast

import msgspec
from msgspec import NODEFAULT, Struct

from taskq.errors import PluginInvalid, UrlError
from taskq.spi.url import Url, parse_urls

_TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_NUMBER = r"([+-]?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)"
_UNITS: Mapping[str, Mapping[str, float]] = {
    "s": {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800},
    "bytes": {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30},
}
_UNIONS, _NONE = (typing.Union, types.UnionType), type(None)
_LISTS = (Sequence, set, frozenset)


class About(Struct, frozen=True):
    """What is known of a setting besides its type and default; also made from the metadata of ``taskq.spi.option``.

    ``unit`` "s" or "bytes" lets text carry a suffix; ``minimum`` and ``choices`` hold for each element of a list;
    ``none`` is what the text "none" stands for, where None itself means "choose for me" (the text "auto"); ``since`` is
    a release.
    """

    help: str = ""
    unit: str = ""
    minimum: float | None = None
    choices: Sequence[Any] | None = None
    secret: bool = False
    none: Any = None
    since: str = "0.1"


class Field(Struct, frozen=True):
    """One typed field; ``default`` is ``NODEFAULT`` where a value is required."""

    name: str
    type: Any
    about: About
    default: Any


class Mismatch(Exception):
    """A value does not fit: what was expected. It becomes a ConfigError that names the setting and the source."""


_fields: dict[type, Mapping[str, Field]] = {}


def fields_of(cls: type) -> Mapping[str, Field]:
    """Return the fields of a msgspec struct or a dataclass, in order.

    Raises:
        PluginInvalid: the types cannot be resolved, or the class is neither.
    """
    if cls not in _fields:
        where, kind = f"{cls.__module__}.{cls.__qualname__}", cast("Any", cls)
        declared: Sequence[Any]
        try:
            hints = typing.get_type_hints(cls, include_extras=True)
        except (NameError, TypeError) as error:
            raise PluginInvalid(
                f"the types of {where} cannot be resolved ({error}); what they name must be imported at run time, "
                "not under TYPE_CHECKING"
            ) from error
        if issubclass(cls, Struct):
            declared = msgspec.structs.fields(cls)
        elif hasattr(cls, "__dataclass_fields__"):
            import dataclasses

            declared = [field for field in dataclasses.fields(kind) if field.init]
        else:
            raise PluginInvalid(f"{where} must be a dataclass or a msgspec struct")
        _fields[cls] = {field.name: _field(field, hints[field.name]) for field in declared}
    return _fields[cls]


def _field(declared: Any, hint: Any) -> Field:
    """Return a field of either library: both have default, default_factory and a marker for "missing"."""
    metadata = getattr(declared, "metadata", {})
    described = About(**{key: metadata[key] for key in About.__struct_fields__ if key in metadata})
    if typing.get_origin(hint) is typing.Annotated:
        hint, *extras = typing.get_args(hint)
        described = next((extra for extra in extras if isinstance(extra, About)), described)
    default = declared.default
    if type(default) is type(NODEFAULT) or type(default).__name__ == "_MISSING_TYPE":
        default = declared.default_factory() if callable(declared.default_factory) else NODEFAULT
    return Field(declared.name, hint, described, default)


def convert(value: Any, kind: Any, about: About) -> Any:
    """Return a value as a field's type, text read as the module's docstring says.

    Raises:
        Mismatch: it is not of that type, or not within the field's choices and limits.
    """
    if isinstance(value, str):
        value = _read(str(value), kind, about)
    elif about.unit == "s" and hasattr(value, "total_seconds"):
        value = value.total_seconds()
    value = _typed(value, kind, about)
    for item in value if isinstance(value, tuple | list | set | frozenset) else (value,):
        infinite = isinstance(item, float) and not math.isfinite(item)
        below = about.minimum is not None and isinstance(item, int | float) and item < about.minimum
        if infinite or below or (about.choices is not None and item is not None and item not in about.choices):
            raise Mismatch(describe(kind, about))
    return value


def _read(text: str, kind: Any, about: About) -> Any:
    """Return what a text stands for; it is returned unchanged where that is for ``_typed`` to refuse."""
    base: Any = typing.get_origin(kind) or kind
    args, word = typing.get_args(kind), text.strip()
    if base in _UNIONS:
        if _NONE in args and word.lower() in ("none", "auto" if about.none is not None else "none"):
            return about.none if word.lower() == "none" else None
        for member in sorted((a for a in args if a is not _NONE), key=lambda a: a is str):
            try:
                return _typed(_read(text, member, about), member, about)
            except Mismatch:
                pass
        return text
    if base is bool:
        return _TRUTH.get(word.lower(), text)
    if base in (int, float):
        return _read_number(word, kind, about)
    if base is Literal:
        return next((choice for choice in args if str(choice) == word), text)
    listed = isinstance(base, type) and issubclass(base, _LISTS) and not issubclass(base, str | bytes)
    tables = isinstance(base, type) and issubclass(base, Mapping | Struct)
    if args == (Url, ...) or not (listed or tables):
        return text
    if word[:1] in ("[", "{"):
        try:
            return msgspec.json.decode(word)
        except msgspec.DecodeError:
            raise Mismatch(f"{describe(kind, about)}, as well-formed JSON") from None
    if not listed:
        pairs = [item.partition("=") for item in word.split(",")]
        return {key.strip(): value.strip() for key, mark, value in pairs} if all(mark for _, mark, _ in pairs) else text
    items = [item.strip() for item in word.split(",") if item.strip()]
    kinds = args if args and args[-1] is not ... and len(args) == len(items) else [*args[:1], str][:1] * len(items)
    return [_read(item, element, about) for item, element in zip(items, kinds, strict=True)]


def _read_number(word: str, kind: type, about: About) -> Any:
    match = re.fullmatch(_NUMBER, word)
    factor = _UNITS.get(about.unit, {}).get(match[2].lower()) if match and match[2] else 1
    if match is None or factor is None:
        raise Mismatch(describe(kind, about))
    try:
        number: Any = int(match[1])
    except ValueError:  # a fraction, an exponent, or more digits than int() reads
        number = float(match[1])
    number = number / 1000 if factor == 0.001 else number * factor
    return int(number) if kind is int and isinstance(number, float) and number.is_integer() else number


def _typed(value: Any, kind: Any, about: About) -> Any:
    try:
        if (Url, ...) in (typing.get_args(kind), *map(typing.get_args, typing.get_args(kind))):
            optional = _NONE in typing.get_args(kind)
            return value if optional and value in (None, about.none) else _urls(value)
        return value if kind is Any else msgspec.convert(value, kind, dec_hook=_foreign)
    except UrlError as error:
        # The text may be a password in the wrong place, so the message goes without it.
        reason = re.sub(r"(['\"]).*\1", "it", str(error).partition(", found")[0], count=1, flags=re.DOTALL)
        raise Mismatch(f"{describe(kind, about)}: {reason}") from None
    except (msgspec.ValidationError, ValueError, TypeError, NotImplementedError) as error:
        where = re.search(r" - at `\$(.+)`\Z", str(error))
        raise Mismatch(describe(kind, about) + (f" (at {where[1].removeprefix('.')})" if where else "")) from None


def _urls(value: Any) -> tuple[Url, ...]:
    values = (value,) if isinstance(value, str | Url) else value
    if not isinstance(values, Sequence) or not all(isinstance(item, str | Url) for item in values):
        raise TypeError
    return parse_urls([item.raw() if isinstance(item, Url) else item for item in values])


def _foreign(kind: type, value: Any) -> Any:
    """Convert to a type that msgspec does not know, a path for example."""
    if isinstance(value, kind):
        return value
    if isinstance(value, str):
        return kind(value)
    raise NotImplementedError


def describe(kind: Any, about: About) -> str:
    """Return what a field takes, in words, to follow "expected"."""
    base, args = typing.get_origin(kind) or kind, typing.get_args(kind)
    if base in _UNIONS:
        words = [describe(member, about) for member in args if member is not _NONE]
        words += ['"none"'] if _NONE in args else []
        return " or ".join(words + (['"auto"'] if about.none is not None else []))
    if about.choices is not None or base is Literal:
        return "one of " + ", ".join(str(choice) for choice in (about.choices or args))
    if base in (int, float):
        of = {"": "", "s": " of seconds"}.get(about.unit, f" of {about.unit}")
        limit = "" if about.minimum is None else f", at least {about.minimum:g}"
        return ("a whole number" if base is int else "a number") + of + limit
    if args == (Url, ...):
        return "a URL or a list of URLs"
    if base in (bool, str) or not isinstance(base, type):
        return {bool: "true or false", str: "text"}.get(base, str(kind))
    if issubclass(base, Enum):
        return "one of " + ", ".join(str(member.value) for member in base)
    if issubclass(base, _LISTS):
        return "a list, each " + describe(args[0], about) if args else "a list"
    return "a table" if issubclass(base, Mapping | Struct) else base.__name__
