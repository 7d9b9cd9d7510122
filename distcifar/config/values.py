"""Frozen dataclasses as values: checks that name value, rule and remedy; strict JSON in and out; dotted paths."""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from distcifar.errors import ConfigError

T = TypeVar("T")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A remedy sentence for a misspelt name: the nearest known one, and the whole list."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    start = f"Did you mean {near[0]!r}? " if near else ""
    return f"{start}Known: {', '.join(known)}"


def require(ok: bool, found: str, rule: str, remedy: str) -> None:  # noqa: FBT001
    """Raises ConfigError(found, rule, remedy) unless `ok`."""
    if not ok:
        raise ConfigError(found, rule, remedy)


def require_range(name: str, value: float, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
    """Requires low <= value <= high (low < value with `open_low`) and a finite value."""
    above = value > low if open_low else value >= low
    bounds = f"{'>' if open_low else '>='} {low:g}" + ("" if high == math.inf else f" and <= {high:g}")
    require(
        above and value <= high and math.isfinite(value),
        f"{name} is {value!r}",
        f"{name} must be a finite number {bounds}",
        f"Set --{name.replace('_', '-')} within that range",
    )


class Range(NamedTuple):
    """The finite numbers from `low`, which does not belong to them if it is open, to `high`, which does."""

    low: float
    high: float = math.inf
    open_low: bool = False


def require_ranges(value: Any, path: str, ranges: Mapping[str, Range]) -> None:
    """`require_range` for fields of the dataclass `value` at `path`, by name; of a tuple each item counts."""
    for name, (low, high, open_low) in ranges.items():
        found = getattr(value, name)
        for number in found if isinstance(found, tuple) else (found,):
            require_range(f"{path}.{name}" if path else name, number, low, high, open_low=open_low)


def require_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Requires `value` to be one of `choices`."""
    choices = tuple(choices)
    if value not in choices:  # only then: to look for the nearest one takes most of the time
        found, rule = f"{name} is {value!r}", f"{name} must be one of {', '.join(choices)}"
        raise ConfigError(found, rule, did_you_mean(str(value), choices))


def value_of(kind: type[T], text: str, name: str) -> T:
    """`text`, what an environment variable `name` holds, as str, int or float. Raises ConfigError."""
    try:
        return kind(text)  # type: ignore[call-arg]
    except ValueError:
        raise ConfigError(f"{name} is {text!r}", f"It must be of type {kind.__name__}", "Correct or unset it") from None


def moments(name: str, items: Iterable[str], example: str) -> dict[str, float]:
    """What is before and after the @ of each of `items`, "WHAT@SHARE": a share of the training, 0 to 1."""
    found = {}
    for item in items:
        require(
            re.fullmatch(r"[\w.]+@(0?\.\d+|[01]|1\.0+)", item) is not None,
            f"{name} has {item!r}",
            "Each item is WHAT@SHARE, a share of the training between 0 and 1",
            f"Write, for example, {example}",
        )
        what, _, share = item.rpartition("@")
        found[what] = float(share)
    return found


def to_dict(value: Any) -> Any:
    """A dataclass tree as JSON-ready dicts, lists and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_dict(item) for item in value]
    return value


def from_dict(cls: type[T], data: Any, path: str = "") -> T:
    """`to_dict` undone, strictly: an unknown key or a wrong type is a ConfigError that names its dotted path."""
    where = path or cls.__name__
    require(
        isinstance(data, dict),
        f"{where} is {data!r}",
        f"{where} must be an object with the fields of {cls.__name__}",
        "Correct the file",
    )
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in data:
        if key not in known:  # only then: to look for the nearest name takes nine tenths of the time
            raise ConfigError(
                f"{where} has the key {key!r}", f"{cls.__name__} has no such field", did_you_mean(key, known)
            )
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        optional = f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
        require(optional or f.name in data, f"{where} lacks {f.name}", f"{cls.__name__} needs it", "Add it")
    prefix = f"{path}." if path else ""
    return cls(**{key: _coerce(hints[key], item, prefix + key) for key, item in data.items()})


def _coerce(hint: Any, value: Any, path: str) -> Any:
    """`value` as type `hint`; the only conversions are dict -> dataclass, list -> tuple and int -> float."""
    if isinstance(hint, type) and isinstance(value, hint) and dataclasses.is_dataclass(hint):
        return value
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, path)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _coerce(args[0], value, path)
    if origin is tuple:
        require(
            isinstance(value, list | tuple),
            f"{path} is {value!r}",
            "A list is needed",
            "Correct it",
        )
        inner = args[0] if args[-1] is Ellipsis else None
        fits = inner is not None or len(value) == len(args)
        require(fits, f"{path} is {value!r}", f"It has {len(args)} items", "Correct it")
        return tuple(_coerce(inner or args[i], item, path) for i, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        require(abs(value) < 1e300, f"{path} is too large", "A number below 1e300 is needed", "Correct the value")
        return float(value)
    if origin is typing.Literal:
        require_choice(path, value, args)
    expected = str if origin is typing.Literal else hint
    require(
        isinstance(value, expected) and not (expected is int and isinstance(value, bool)),
        f"{path} is {value!r}",
        f"{path} must be of type {getattr(expected, '__name__', expected)}",
        "Correct the value",
    )
    return value


def conform(value: Any, path: str = "") -> None:
    """Checks the types of a frozen dataclass's fields, first thing in its __post_init__.

    A whole number in a float field becomes a float and a list a tuple: equal values have equal digests.
    """
    hints = typing.get_type_hints(type(value))
    prefix = f"{path}." if path else ""
    for f in dataclasses.fields(value):
        object.__setattr__(value, f.name, _coerce(hints[f.name], getattr(value, f.name), prefix + f.name))


def replace_at(value: T, path: str, new: Any) -> T:
    """`value` with the field at dotted `path` ("optim.lr") replaced; every level is checked again.

    Raises ConfigError with the nearest name if the path does not exist.
    """
    head, dot, rest = path.partition(".")
    names = [f.name for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    require(
        head in names,
        f"There is no field {head!r} in {type(value).__name__}",
        "A dotted path names existing fields",
        did_you_mean(head, names),
    )
    new = replace_at(getattr(value, head), rest, new) if dot else new
    return dataclasses.replace(value, **{head: new})  # type: ignore[type-var]


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """The dotted paths at which two `to_dict` trees differ, each as "path: a -> b"."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = []
        for key in sorted(a.keys() | b.keys()):
            found += differences(a.get(key), b.get(key), f"{path}.{key}" if path else key)
        return found
    return [] if a == b else [f"{path}: {a!r} -> {b!r}"]
