"""Typed fields of a settings class or a plugin's options class, and the conversion of values to their types.

Text is read in the same way wherever it comes from (a file, a variable, a URL's query, the command line):

    true false yes no on off 1 0       for a truth value
    30  2.5  "10m"  "64MiB"            for a number; the suffix where the setting has a unit
    a,b,c  or  ["a", "b"]              for a list; JSON where it starts with a bracket
    {"a": 1}                           for a table
    none                               for a setting that may be unset
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Literal

import msgspec
from msgspec import NODEFAULT, Struct

from taskq.config.redact import redact
from taskq.errors import PluginInvalid, UrlError
from taskq.spi.url import Url, parse_urls

_TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_NUMBER = re.compile(r"([+-]?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\Z")
_UNITS: Mapping[str, Mapping[str, float]] = {
    "s": {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800, "ms": 0.001},
    "bytes": {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30},
}
_NONE = type(None)


class About(Struct, frozen=True):
    """What is known of a setting besides its type and default; also made from the metadata of ``taskq.spi.option``."""

    help: str = ""
    unit: str = ""
    minimum: float | None = None
    choices: Sequence[Any] | None = None
    secret: bool = False
    none: Any = None
    since: str = "0.1"


def about(help: str, *, unit: str = "", minimum: float | None = None, choices: Sequence[Any] | None = None,
          secret: bool = False, none: Any = None, since: str = "0.1") -> About:  # fmt: skip
    """Describe a setting.

    Args:
        help: one sentence for listings.
        unit: "s" or "bytes"; text may then carry a suffix ("10m", "64MiB").
        minimum: the least number accepted, of each element where there are several.
        choices: the only values accepted.
        secret: hidden in every listing, error and repr.
        none: what the text "none" stands for, where None itself means "not set".
        since: the release that brought it.
    """
    return About(help, unit, minimum, choices, secret, none, since)


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
        _fields[cls] = {field.name: field for field in _read_fields(cls)}
    return _fields[cls]


def _read_fields(cls: type) -> list[Field]:
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except (NameError, TypeError) as error:
        raise PluginInvalid(
            f"the types of {cls.__module__}.{cls.__qualname__} cannot be resolved ({error}); "
            "import what its annotations name at run time, not under TYPE_CHECKING"
        ) from error
    if issubclass(cls, Struct):
        return [_from_hint(f.encode_name, hints[f.name], _default(f), None) for f in msgspec.structs.fields(cls)]
    declared: Mapping[str, Any] | None = getattr(cls, "__dataclass_fields__", None)
    if declared is None:
        raise PluginInvalid(f"{cls.__module__}.{cls.__qualname__} must be a dataclass or a msgspec struct")
    return [
        _from_hint(f.name, hints[f.name], _default(f), f.metadata)
        for f in declared.values()
        if f.init and f._field_type.name == "_FIELD"  # neither a ClassVar nor an InitVar
    ]


def _default(field: Any) -> Any:
    """Return a field's default, made anew where there is a factory; both libraries spell it alike."""
    if callable(field.default_factory):
        return field.default_factory()
    return NODEFAULT if type(field.default) is type(field.default_factory) else field.default


def _from_hint(name: str, hint: Any, default: Any, metadata: Mapping[str, Any] | None) -> Field:
    described = About()
    if metadata:
        described = About(**{k: metadata[k] for k in About.__struct_fields__ if k in metadata})
    if typing.get_origin(hint) is typing.Annotated:
        hint, *extras = typing.get_args(hint)
        described = next((e for e in extras if isinstance(e, About)), described)
    return Field(name, hint, described, default)


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
    for number in value if isinstance(value, tuple | list) else (value,):
        if isinstance(number, float) and (number != number or number in (float("inf"), float("-inf"))):
            raise Mismatch(describe(kind, about))
        below = about.minimum is not None and isinstance(number, int | float) and number < about.minimum
        if below or (about.choices is not None and number is not None and number not in about.choices):
            raise Mismatch(describe(kind, about))
    return value


def _read(text: str, kind: Any, about: About) -> Any:
    """Return what a text stands for; it is returned unchanged where that is for ``_typed`` to refuse."""
    origin, args, word = typing.get_origin(kind), typing.get_args(kind), text.strip()
    if origin in (typing.Union, types.UnionType):
        if _NONE in args and word.lower() == "none":
            return about.none
        for member in sorted((a for a in args if a is not _NONE), key=lambda a: a is str):
            try:
                return _typed(_read(text, member, about), member, about)
            except Mismatch:
                pass
        return text
    if kind is bool:
        return _TRUTH.get(word.lower(), text)
    if kind in (int, float):
        return _read_number(word, kind, about)
    if origin is Literal:
        return next((choice for choice in args if str(choice) == word), text)
    base = origin or kind
    if not isinstance(base, type) or issubclass(base, str | bytes | Enum) or args == (Url, ...):
        return text
    listed = issubclass(base, Sequence | set | frozenset)
    if word[:1] in ("[", "{") and (
        listed or issubclass(base, Mapping | Struct) or hasattr(base, "__dataclass_fields__")
    ):
        try:
            return msgspec.json.decode(word)
        except msgspec.DecodeError:
            raise Mismatch(f"{describe(kind, about)}, as well-formed JSON") from None
    if not listed:
        return text
    items = [item.strip() for item in word.split(",") if item.strip()]
    kinds = (
        args if args and args[-1] is not ... and len(args) == len(items) else [args[0] if args else str] * len(items)
    )
    return [_read(item, element, about) for item, element in zip(items, kinds, strict=True)]


def _read_number(word: str, kind: type, about: About) -> Any:
    match = _NUMBER.match(word)
    factor = _UNITS.get(about.unit, {}).get(match[2].lower()) if match and match[2] else 1
    if match is None or factor is None:
        raise Mismatch(describe(kind, about))
    try:
        number: float = int(match[1])
    except ValueError:  # a fraction, an exponent, or more digits than int() reads
        number = float(match[1])
    number = number / 1000 if factor == 0.001 else number * factor
    if kind is int and isinstance(number, float):
        return int(number) if number.is_integer() else number
    return number


def _typed(value: Any, kind: Any, about: About) -> Any:
    try:
        if kind is Any:
            return value
        args = [a for a in typing.get_args(kind) if a is not _NONE]
        if args and typing.get_args(args[0]) == (Url, ...):  # tuple[Url, ...] | None
            return value if value is None or value == about.none else _urls(value)
        if typing.get_args(kind) == (Url, ...):
            return _urls(value)
        return msgspec.convert(value, kind, dec_hook=_foreign)
    except UrlError as error:
        # The text may be a password in the wrong place, so the message goes without it.
        reason = re.sub(r"(['\"]).*\1", "it", str(error).partition(", found")[0], count=1, flags=re.DOTALL)
        raise Mismatch(f"{describe(kind, about)}: {reason}") from None
    except (msgspec.ValidationError, ValueError, TypeError, NotImplementedError) as error:
        where = re.search(r" - at `\$(.+)`\Z", str(error))
        raise Mismatch(describe(kind, about) + (f" (at {where[1].removeprefix('.')})" if where else "")) from None


def _urls(value: Any) -> tuple[Url, ...]:
    if isinstance(value, str):
        return parse_urls(value)
    if isinstance(value, Url):
        return (value,)
    if not isinstance(value, Sequence) or not all(isinstance(item, str | Url) for item in value):
        raise TypeError
    return parse_urls([item.raw() if isinstance(item, Url) else item for item in value])


def _foreign(kind: type, value: Any) -> Any:
    """Convert to a type that msgspec does not know (a path, an enumeration of the plugin's own)."""
    if isinstance(value, kind):
        return value
    if isinstance(value, str):
        return kind(value)
    raise NotImplementedError


def describe(kind: Any, about: About) -> str:
    """Return what a field takes, in words, to follow "expected"."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        words = " or ".join(describe(a, about) for a in args if a is not _NONE)
        return f'{words} or "none"' if _NONE in args else words
    if about.choices is not None or origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in (about.choices or args))
    limit = f", at least {about.minimum:g}" if about.minimum is not None else ""
    of = {"s": " of seconds", "bytes": " of bytes"}.get(about.unit, f" of {about.unit}" if about.unit else "")
    if kind in (int, float):
        return ("a whole number" if kind is int else "a number") + of + limit
    names = {bool: "true or false", str: "text", Url: "a URL"}
    if kind in names:
        return names[kind]
    base = origin or kind
    if args == (Url, ...):
        return "a URL or a list of URLs"
    if isinstance(base, type) and (issubclass(base, Mapping) or issubclass(base, Struct)):
        return "a table"
    if isinstance(base, type) and issubclass(base, Sequence | set | frozenset):
        return "a list of " + (describe(args[0], about) if args else "values")
    return getattr(kind, "__name__", str(kind))


def shown(value: Any, name: str = "", *, secret: bool = False) -> str:
    """Return a short, safe text for a value in an error message."""
    text = repr(redact(value, name, secret=secret))
    return text if len(text) <= 80 else text[:77] + "…"
