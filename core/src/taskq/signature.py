"""Looking at a task function once, when it is declared: argument check, kind, and models among its annotations."""

from __future__ import annotations

import inspect
import keyword
import typing
from collections.abc import Callable
from itertools import repeat
from typing import Any

import msgspec

from taskq.errors import TaskArgumentsError, TaskDefinitionError


def make_check(fn: Callable[..., Any], name: str, *, bound: bool) -> Callable[..., None]:
    """Return a function that accepts exactly the arguments ``fn`` accepts and raises TypeError for others.

    It is compiled from the parameters' names, which makes a check cost one Python call instead of the several
    microseconds of ``inspect.Signature.bind``.

    Raises:
        TaskDefinitionError: a bound task without a first parameter.
    """
    parameters = list(inspect.signature(fn).parameters.values())
    if bound:
        if not parameters or parameters[0].kind not in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        ):
            raise TaskDefinitionError(f"task {name} is declared with bind=True but takes no first parameter for itself")
        parameters = parameters[1:]
    parts: list[str] = []
    star = False
    for i, p in enumerate(parameters):
        if p.kind is p.VAR_POSITIONAL:
            star = True
        elif p.kind is p.KEYWORD_ONLY and not star:
            parts.append("*")
            star = True
        prefix = "*" if p.kind is p.VAR_POSITIONAL else "**" if p.kind is p.VAR_KEYWORD else ""
        parts.append(prefix + p.name + ("" if p.default is p.empty else "=None"))
        following = parameters[i + 1].kind if i + 1 < len(parameters) else None
        if p.kind is p.POSITIONAL_ONLY and following is not p.POSITIONAL_ONLY:
            parts.append("/")
    function_name = getattr(fn, "__name__", "")  # of a callable object: none
    if not function_name.isidentifier() or keyword.iskeyword(function_name):
        function_name = "task"
    namespace: dict[str, Any] = {}
    # only parameter names enter the source, and those are identifiers
    exec(f"def {function_name}({', '.join(parts)}): pass", namespace)  # noqa: S102
    check: Callable[..., None] = namespace[function_name]
    return check


def arguments_error(name: str, error: TypeError) -> TaskArgumentsError:
    """Return the error for a call that does not fit the signature."""
    return TaskArgumentsError(f"the arguments do not fit task {name}: {error}; nothing was sent")


class Models:
    """Converters between models (pydantic or msgspec) and plain data, for one task.

    Only annotations that hold a model are looked at; other parameters pass untouched.
    """

    def __init__(self, parameters: list[inspect.Parameter], annotations: dict[str, Any], result: Any) -> None:
        self._rest: Callable[[Any], Any] = _untouched
        self._others: Callable[[Any], Any] = _untouched
        self._positional: list[Callable[[Any], Any]] = []
        self._load: dict[str, Callable[[Any], Any]] = {}
        for p in parameters:
            step = _loader(annotations[p.name]) if p.name in annotations else _untouched
            if p.kind is p.VAR_POSITIONAL:
                self._rest = step
            elif p.kind is p.VAR_KEYWORD:
                self._others = step
            else:
                self._load[p.name] = step
                if p.kind is not p.KEYWORD_ONLY:
                    self._positional.append(step)
        self._load_result = _loader(result) if result is not None else None

    @classmethod
    def of(cls, fn: Callable[..., Any], *, bound: bool) -> Models | None:
        """Return the converters of a function, None where no annotation holds a model."""
        try:
            hints = typing.get_type_hints(fn)
        except Exception:
            # Annotations that only exist for a type checker cannot be models that anybody could build here.
            return None
        result = hints.pop("return", None)
        signature = list(inspect.signature(fn).parameters.values())[1 if bound else 0 :]
        found = {p.name: hints[p.name] for p in signature if p.name in hints and _holds_model(hints[p.name])}
        wanted = result if result is not None and _holds_model(result) else None
        if not found and wanted is None:
            return None
        return cls(signature, found, wanted)

    def plain(self, value: Any) -> Any:
        """Return a value with every model in it turned into plain data."""
        return _plain(value)

    def load_arguments(self, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments with models rebuilt and validated.

        Raises:
            TaskArgumentsError: a value that its model refuses.
        """
        load, others = self._load, self._others
        try:
            loaded = [
                step(v) for step, v in zip([*self._positional, *repeat(self._rest, len(args))], args, strict=False)
            ]
            return loaded, {k: load.get(k, others)(v) for k, v in kwargs.items()}
        except ValueError as error:  # pydantic.ValidationError and msgspec.ValidationError are ValueErrors
            raise TaskArgumentsError(f"an argument was refused by its model: {error}") from error

    def load_result(self, value: Any) -> Any:
        """Return a result with its model rebuilt."""
        return value if self._load_result is None or value is None else self._load_result(value)


def _untouched(value: Any) -> Any:
    return value


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and (
        issubclass(annotation, msgspec.Struct) or hasattr(annotation, "__pydantic_validator__")
    )


def _holds_model(annotation: Any) -> bool:
    return _is_model(annotation) or any(_holds_model(a) for a in typing.get_args(annotation))


def _uses_pydantic(annotation: Any) -> bool:
    return hasattr(annotation, "__pydantic_validator__") or any(_uses_pydantic(a) for a in typing.get_args(annotation))


def _loader(annotation: Any) -> Callable[[Any], Any]:
    if _uses_pydantic(annotation):
        from pydantic import TypeAdapter  # the application's own dependency: its annotation is a pydantic model

        return TypeAdapter(annotation).validate_python
    return lambda value: msgspec.convert(value, annotation)


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    if hasattr(type(value), "__pydantic_validator__") and hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value
