"""What JSON lacks, as tagged objects: ``{"$taskq": KIND, "v": …}``.

A ``Writer`` turns a value into plain JSON data with tags, a ``Reader`` turns it back. Nothing that a message names is
imported: a dataclass or an enum is looked up in the modules that are loaded already, must be one, and is filled without
running its constructor.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import sys
from collections.abc import Callable
from decimal import Decimal
from enum import Enum
from math import isfinite
from pathlib import Path
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from taskq.errors import DecodeError, EncodeError

TAG: Final = "$taskq"
MAX_DEPTH: Final = 200
"""Most levels of nesting in a value that is written. Python's own stack ends at about 1,000 frames."""
_PLAIN_INT: Final = 1 << 4096  # Python reads and writes 4,300 decimal digits at most
_ADVICE: Final = "Pass plain data (an id, a dict, a string), or choose a serializer that takes this type."


def bare(kind: type) -> str:
    """Return a type's name as people know it: without a module for builtins."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _main_name() -> str:
    """Return the import name of the script that runs as ``__main__``: what other processes know it by."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name.removesuffix(".__main__"))
    file = getattr(main, "__file__", None)
    return Path(file).stem if file else "__main__"


def class_name(kind: type) -> str:
    """Return ``module:qualname`` of a class; ``__main__`` becomes the name it is imported by elsewhere."""
    module = kind.__module__
    return f"{_main_name() if module == '__main__' else module}:{kind.__qualname__}"


def find_class(name: str) -> Any:
    """Return what ``module:qualname`` names in the loaded modules, None where there is no such thing."""
    module, _, qualname = name.partition(":")
    found: Any = sys.modules.get(module)
    if found is None and module == _main_name():
        found = sys.modules.get("__main__")
    for part in qualname.split("."):
        # Not getattr: a module's __getattr__ may import, a class's attribute may be computed.
        found = getattr(found, "__dict__", {}).get(part)
    return found if isinstance(found, type) else None


# ------------------------------------------------------------------------------------------------------- writing


class Writer:
    """Turns any supported value into plain JSON data with tags."""

    def __init__(self, encode: Callable[[Any], bytes]) -> None:
        self._encode = encode

    def __call__(self, value: Any) -> Any:
        """Return the value as plain JSON data. Errors: EncodeError."""
        path: list[Any] = []
        if type(value) in (list, tuple) and len(value) == 2:
            args, kwargs = value
            if type(args) in (list, tuple) and type(kwargs) is dict and all(type(key) is str for key in kwargs):
                return [self._call_part(args, "args"), self._call_part(kwargs, "kwargs")]
        path.append("value")
        return self._write(value, path)

    def _call_part(self, part: Any, name: str) -> Any:
        return self._write(part, [name])

    def _write(self, value: Any, path: list[Any]) -> Any:
        kind = type(value)
        if value is None or kind is bool:
            return value
        write = _WRITERS.get(kind)
        if write is None:
            write = self._writer_of(value, kind, path)
        if len(path) > MAX_DEPTH:
            raise EncodeError(
                f"cannot write {_where(path[:4])}… as JSON: it contains itself or is nested deeper than {MAX_DEPTH} "
                f"levels. Pass flatter data."
            )
        return write(self, value, path)

    def _writer_of(self, value: Any, kind: type, path: list[Any]) -> Callable[[Writer, Any, list[Any]], Any]:
        if not isinstance(value, type):
            if isinstance(value, Enum):
                return Writer._enum
            if dataclasses.is_dataclass(value):
                return Writer._dataclass
            for base, write in _WRITERS.items():  # a subclass of a supported type comes back as that type
                if isinstance(value, base):
                    return write
        raise EncodeError(f"cannot write {_where(path)} as JSON: its type is {bare(kind)}. {_ADVICE}")

    def _int(self, value: int, path: list[Any]) -> Any:
        if -_PLAIN_INT < value < _PLAIN_INT:
            return int(value)
        return {TAG: "int", "v": f"{value:x}"}

    def _float(self, value: float, path: list[Any]) -> Any:
        value = float(value)
        return value if isfinite(value) else {TAG: "float", "v": repr(value)}

    def _str(self, value: str, path: list[Any]) -> Any:
        if value.isascii():
            return str.__str__(value)
        try:
            value.encode()
        except UnicodeEncodeError:
            return {TAG: "str", "v": _to_base64(value.encode("utf-8", "surrogatepass"))}
        return str.__str__(value)

    def _list(self, value: Any, path: list[Any]) -> Any:
        items = []
        path.append(0)
        for index, item in enumerate(value):
            path[-1] = index
            items.append(self._write(item, path))
        path.pop()
        return items

    def _dict(self, value: dict[Any, Any], path: list[Any]) -> Any:
        items: list[Any] = []
        simple = True
        path.append(None)
        for key, item in value.items():
            path[-1] = _Key(key)
            written = self._hashable(key, path)
            simple = simple and type(written) is str and written != TAG
            items.append([written, self._write(item, path)])
        path.pop()
        return dict(items) if simple else {TAG: "dict", "v": items}

    def _set(self, value: Any, path: list[Any]) -> Any:
        path.append("{…}")
        items = [self._hashable(item, path) for item in value]
        path.pop()
        items.sort(key=self._encode)  # the order of a set differs between processes; what is written should not
        return {TAG: "set" if isinstance(value, set) else "frozenset", "v": items}

    def _hashable(self, value: Any, path: list[Any]) -> Any:
        """Write a dict's key or a set's element: there a tuple must come back as one, since a list has no hash."""
        if isinstance(value, tuple):
            if len(path) > MAX_DEPTH:
                raise EncodeError(f"cannot write {_where(path[:4])}… as JSON: nested deeper than {MAX_DEPTH} levels.")
            path.append("(…)")
            items = [self._hashable(item, path) for item in value]
            path.pop()
            return {TAG: "tuple", "v": items}
        return self._write(value, path)

    def _bytes(self, value: bytes, path: list[Any]) -> Any:
        return {TAG: "bytes", "v": _to_base64(value)}

    def _bytearray(self, value: bytearray, path: list[Any]) -> Any:
        return {TAG: "bytearray", "v": _to_base64(value)}

    def _datetime(self, value: dt.datetime, path: list[Any]) -> Any:
        return self._zoned("datetime", value, dt.datetime.isoformat(value), path)

    def _time(self, value: dt.time, path: list[Any]) -> Any:
        return self._zoned("time", value, dt.time.isoformat(value), path)

    def _zoned(self, kind: str, value: dt.datetime | dt.time, text: str, path: list[Any]) -> Any:
        written: dict[str, Any] = {TAG: kind, "v": text}
        if value.fold:
            written["fold"] = 1
        zone = value.tzinfo
        if isinstance(zone, ZoneInfo) and zone.key:
            written["zone"] = zone.key
        elif zone is not None and value.utcoffset() is None:
            raise EncodeError(
                f"cannot write {_where(path)} as JSON: its time zone {zone!r} tells no offset and is no ZoneInfo. "
                "Convert it to UTC, or use ZoneInfo."
            )
        return written

    def _date(self, value: dt.date, path: list[Any]) -> Any:
        return {TAG: "date", "v": dt.date.isoformat(value)}

    def _timedelta(self, value: dt.timedelta, path: list[Any]) -> Any:
        return {TAG: "timedelta", "v": [value.days, value.seconds, value.microseconds]}

    def _uuid(self, value: UUID, path: list[Any]) -> Any:
        return {TAG: "uuid", "v": str(value)}

    def _decimal(self, value: Decimal, path: list[Any]) -> Any:
        return {TAG: "decimal", "v": str(value)}

    def _enum(self, value: Enum, path: list[Any]) -> Any:
        kind = type(value)
        name = self._reference(kind, path)
        if kind.__members__.get(value._name_) is value:
            return {TAG: "enum", "c": name, "n": value._name_}
        return {TAG: "enum", "c": name, "v": self._write(value.value, path)}  # a combination of flags has no name

    def _dataclass(self, value: Any, path: list[Any]) -> Any:
        name = self._reference(type(value), path)
        try:
            object.__new__(type(value))
        except TypeError:
            raise EncodeError(
                f"cannot write {_where(path)} as JSON: the dataclass {bare(type(value))} derives from a built-in type. "
                "Pass a dict of what matters in it."
            ) from None
        fields = {}
        path.append("")
        for field in dataclasses.fields(value):
            path[-1] = f".{field.name}"
            try:
                item = getattr(value, field.name)
            except AttributeError:
                continue  # a field without a value, as init=False leaves it
            fields[field.name] = self._write(item, path)
        path.pop()
        return {TAG: "dataclass", "c": name, "v": fields}

    def _reference(self, kind: type, path: list[Any]) -> str:
        name = class_name(kind)
        if find_class(name) is not kind:
            raise EncodeError(
                f"cannot write {_where(path)} as JSON: {bare(kind)} is not found under its own name, so no other "
                "process could rebuild it. Define the class at the top level of a module, or pass a dict."
            )
        return name


class _Key:
    """A dict's key as a step of a path; shortened only when the path is printed."""

    def __init__(self, key: Any) -> None:
        self.key = key


def _where(path: list[Any]) -> str:
    """Return a path as Python would write it: ``args[0].user['name']``."""
    steps = []
    for step in path:
        if isinstance(step, int):
            steps.append(f"[{step}]")
        elif isinstance(step, _Key):
            shown = repr(step.key) if isinstance(step.key, str | int | float | bytes) else f"<{bare(type(step.key))}>"
            steps.append(f"[{shown if len(shown) <= 40 else shown[:39] + '…'}]")
        else:
            steps.append(step)
    return "".join(steps)


def _to_base64(data: bytes | bytearray) -> str:
    return base64.b64encode(data).decode("ascii")


# The order matters for subclasses: datetime before date, which it is a kind of.
_WRITERS: Final[dict[type, Callable[[Writer, Any, list[Any]], Any]]] = {
    str: Writer._str,
    int: Writer._int,
    float: Writer._float,
    list: Writer._list,
    tuple: Writer._list,
    dict: Writer._dict,
    set: Writer._set,
    frozenset: Writer._set,
    bytes: Writer._bytes,
    bytearray: Writer._bytearray,
    dt.datetime: Writer._datetime,
    dt.date: Writer._date,
    dt.time: Writer._time,
    dt.timedelta: Writer._timedelta,
    UUID: Writer._uuid,
    Decimal: Writer._decimal,
}


# ------------------------------------------------------------------------------------------------------- reading


class Reader:
    """Turns plain JSON data with tags back into values."""

    def __init__(self, rebuild_classes: bool) -> None:
        self._rebuild_classes = rebuild_classes

    def __call__(self, value: Any) -> Any:
        """Return the value, lists and dicts changed in place. Errors: DecodeError, and ValueError and the like."""
        kind = type(value)
        if kind is list:
            for index, item in enumerate(value):
                if type(item) is dict or type(item) is list:
                    value[index] = self(item)
            return value
        if kind is not dict:
            return value
        tag = value.get(TAG)
        if tag is None and TAG not in value:
            for key, item in value.items():  # replacing values keeps the dict's size, so this is safe
                if type(item) is dict or type(item) is list:
                    value[key] = self(item)
            return value
        read = _READERS.get(tag) if type(tag) is str else None
        if read is None:
            raise DecodeError(
                f"cannot read JSON: the tag {tag!r} is not known here; known are {', '.join(_READERS)}. "
                "Was it written by a newer taskq-serializer-json?"
            )
        try:
            return read(self, value)
        except DecodeError:
            raise
        except RecursionError:
            raise
        except Exception as error:
            raise DecodeError(f"cannot read JSON: a damaged {tag!r} tag ({type(error).__name__}: {error})") from error

    def _int(self, tagged: dict[str, Any]) -> Any:
        return int(_text(tagged), 16)

    def _float(self, tagged: dict[str, Any]) -> Any:
        return float(_text(tagged))

    def _str(self, tagged: dict[str, Any]) -> Any:
        return _from_base64(tagged).decode("utf-8", "surrogatepass")

    def _dict(self, tagged: dict[str, Any]) -> Any:
        return {self(key): self(item) for key, item in _items(tagged)}

    def _set(self, tagged: dict[str, Any]) -> Any:
        return set(self(_items(tagged)))

    def _frozenset(self, tagged: dict[str, Any]) -> Any:
        return frozenset(self(_items(tagged)))

    def _tuple(self, tagged: dict[str, Any]) -> Any:
        return tuple(self(_items(tagged)))

    def _bytes(self, tagged: dict[str, Any]) -> Any:
        return _from_base64(tagged)

    def _bytearray(self, tagged: dict[str, Any]) -> Any:
        return bytearray(_from_base64(tagged))

    def _datetime(self, tagged: dict[str, Any]) -> Any:
        value = dt.datetime.fromisoformat(_text(tagged)).replace(fold=_fold(tagged))
        if "zone" not in tagged:
            return value
        zone = _zone(tagged)
        local = value.replace(tzinfo=zone)
        # Where the zone's rules differ from the sender's, the moment counts, not what the clock on the wall shows.
        return local if local.utcoffset() == value.utcoffset() else value.astimezone(zone)

    def _time(self, tagged: dict[str, Any]) -> Any:
        value = dt.time.fromisoformat(_text(tagged)).replace(fold=_fold(tagged))
        return value.replace(tzinfo=_zone(tagged)) if "zone" in tagged else value

    def _date(self, tagged: dict[str, Any]) -> Any:
        return dt.date.fromisoformat(_text(tagged))

    def _timedelta(self, tagged: dict[str, Any]) -> Any:
        days, seconds, microseconds = tagged["v"]
        if type(days) is not int or type(seconds) is not int or type(microseconds) is not int:
            raise TypeError("a timedelta takes three integers")
        return dt.timedelta(days, seconds, microseconds)

    def _uuid(self, tagged: dict[str, Any]) -> Any:
        return UUID(_text(tagged))

    def _decimal(self, tagged: dict[str, Any]) -> Any:
        return Decimal(_text(tagged))

    def _enum(self, tagged: dict[str, Any]) -> Any:
        kind = self._class(tagged, "an enum", lambda found: issubclass(found, Enum))
        if "n" in tagged:
            member = kind.__members__.get(tagged["n"])
            if member is None:
                raise DecodeError(
                    f"cannot read JSON: the enum {tagged['c']} has no member {tagged['n']!r} here. "
                    "Do sender and receiver run the same version of the code?"
                )
            return member
        return kind(self(tagged["v"]))

    def _dataclass(self, tagged: dict[str, Any]) -> Any:
        kind = self._class(tagged, "a dataclass", dataclasses.is_dataclass)
        given = tagged["v"]
        if type(given) is not dict:
            raise TypeError("a dataclass takes an object of its fields")
        known = {field.name: field for field in dataclasses.fields(kind)}
        if unknown := given.keys() - known.keys():
            raise DecodeError(
                f"cannot read JSON: the dataclass {tagged['c']} has no field {', '.join(sorted(unknown))} here. "
                "Do sender and receiver run the same version of the code?"
            )
        value = object.__new__(kind)
        # Past __init__, __post_init__ and a frozen class's __setattr__: the state is put back, no code of it runs.
        for name, field in known.items():
            if name in given:
                item = given[name]
                object.__setattr__(value, name, self(item))
            elif field.default is not dataclasses.MISSING:
                object.__setattr__(value, name, field.default)
            elif field.default_factory is not dataclasses.MISSING:
                object.__setattr__(value, name, field.default_factory())
            elif field.init:
                raise DecodeError(f"cannot read JSON: the dataclass {tagged['c']} needs a field {name!r}")
        return value

    def _class(self, tagged: dict[str, Any], what: str, fits: Callable[[Any], bool]) -> Any:
        name = tagged["c"]
        if type(name) is not str:
            raise TypeError("a class is named by a string")
        if not self._rebuild_classes:
            raise DecodeError(
                f"cannot read JSON: it names the class {name}, but the json serializer's option classes is 'none' here"
            )
        found = find_class(name)
        if found is None:
            raise DecodeError(
                f"cannot read JSON: it names the class {name}, which no loaded module has. "
                "Import its module where the application is defined (or list it in include)."
            )
        if not fits(found):
            raise DecodeError(f"cannot read JSON: {name} is not {what}")
        return found


def _text(tagged: dict[str, Any]) -> str:
    text = tagged["v"]
    if type(text) is not str:
        raise TypeError(f"a string was expected, not a {bare(type(text))}")
    return text


def _items(tagged: dict[str, Any]) -> list[Any]:
    items = tagged["v"]
    if type(items) is not list:
        raise TypeError(f"a list was expected, not a {bare(type(items))}")
    return items


def _fold(tagged: dict[str, Any]) -> int:
    return 1 if tagged.get("fold") else 0


def _zone(tagged: dict[str, Any]) -> ZoneInfo:
    return ZoneInfo(tagged["zone"])


def _from_base64(tagged: dict[str, Any]) -> bytes:
    return base64.b64decode(_text(tagged), validate=True)


_READERS: Final[dict[str, Callable[[Reader, dict[str, Any]], Any]]] = {
    "int": Reader._int,
    "float": Reader._float,
    "str": Reader._str,
    "dict": Reader._dict,
    "set": Reader._set,
    "frozenset": Reader._frozenset,
    "tuple": Reader._tuple,
    "bytes": Reader._bytes,
    "bytearray": Reader._bytearray,
    "datetime": Reader._datetime,
    "date": Reader._date,
    "time": Reader._time,
    "timedelta": Reader._timedelta,
    "uuid": Reader._uuid,
    "decimal": Reader._decimal,
    "enum": Reader._enum,
    "dataclass": Reader._dataclass,
}
