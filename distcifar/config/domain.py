"""Domain: the values over which one field is searched, as a value, as text and as places from 0 to 1."""

import math
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from distcifar.config.values import require, require_choice

Value = bool | int | float | str | tuple[Any, ...]
FORMS = "loguniform:LOW:HIGH, uniform:LOW:HIGH, int:LOW:HIGH or choice:A|B|C"


@dataclass(frozen=True, kw_only=True)
class Domain:
    """Values of one field: an interval of numbers, or a list."""

    kind: Literal["loguniform", "uniform", "int", "choice"]
    low: float = 0.0
    high: float = 0.0
    values: tuple[Value, ...] = ()

    def draw(self, generator: random.Random) -> Value:
        """One value; all are as likely (of loguniform: their logarithms)."""
        if self.kind == "choice":
            return generator.choice(self.values)
        return self._at(generator.random())

    def levels(self, count: int) -> tuple[Value, ...]:
        """For a grid: all of a list; of an interval `count` values from end to end, at like distances."""
        if self.kind == "choice":
            return self.values
        places = [i / (count - 1) for i in range(count)] if count > 1 else [0.5]
        return tuple(dict.fromkeys(self._at(place) for place in places))

    def place(self, value: Any) -> float:
        """Where `value` lies, 0 to 1: `_at` undone; of a list its number."""
        if self.kind == "choice":
            return self.values.index(value) / max(1, len(self.values) - 1)
        low, high, value = (math.log(x) if self.kind == "loguniform" else x for x in (self.low, self.high, value))
        return (value - low) / (high - low)

    def _at(self, place: float) -> Value:
        if self.kind == "loguniform":
            value = math.exp(math.log(self.low) + place * math.log(self.high / self.low))
        elif self.kind == "int":
            return min(int(self.high), math.floor(self.low + place * (self.high - self.low + 1)))
        else:
            value = self.low + place * (self.high - self.low)
        value = float(f"{value:.4g}")  # no result depends on the fifth digit, and people read them
        return min(self.high, max(self.low, value))

    def __str__(self) -> str:
        if self.kind == "choice":
            return "choice:" + "|".join(map(value_text, self.values))
        return f"{self.kind}:{value_text(self.low)}:{value_text(self.high)}"


def parse_domain(words: str, hint: Any, text: str) -> Domain:
    """`words` as the domain of a field of type `hint`. Raises ConfigError, which names the whole `text`."""
    kind, _, rest = words.partition(":")
    if kind == "choice" and rest:
        return Domain(kind="choice", values=tuple(dict.fromkeys(parse_value(w, hint, text) for w in rest.split("|"))))
    number = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"
    bounds = re.fullmatch(rf"({number}):({number})", rest)
    require(
        kind in ("loguniform", "uniform", "int") and bounds is not None,
        f"--space has {text!r}",
        f"A domain is {FORMS}",
        "Write, for example, --space optim.lr=loguniform:1e-3:1",
    )
    assert bounds is not None
    low, high = float(bounds[1]), float(bounds[4])
    require(
        (0 if kind == "loguniform" else -math.inf) < low < high < math.inf,
        f"--space has {text!r}",
        "LOW is below HIGH, both are finite, and above 0 for loguniform",
        "Correct the bounds",
    )
    fits = {int: kind == "int" and low % 1 == high % 1 == 0, float: kind != "int"}.get(hint, False)
    require(
        fits,
        f"--space has {text!r} for a field of {_kind(hint)}",
        "int:LOW:HIGH is for whole numbers, with whole bounds; uniform and loguniform are for other numbers",
        "Use choice:A|B|C for any field",
    )
    return Domain(kind=kind, low=low, high=high)  # type: ignore[arg-type]


def parse_value(word: str, hint: Any, text: str) -> Value:
    """`word` as a value for a field of type `hint`. Raises ConfigError, which names the whole `text`."""
    if get_origin(hint) is Literal:
        require_choice(f"A value in --space {text!r}", word, get_args(hint))
    try:
        if hint is bool:
            return {"true": True, "false": False}[word.lower()]
        if hint in (int, float):
            return hint(word)
        if get_origin(hint) is tuple:
            return tuple(get_args(hint)[0](item) for item in word.split(",") if item)
    except (KeyError, TypeError, ValueError):
        require(
            ok=False,
            found=f"--space has {word!r} in {text!r}",
            rule=f"Its field is one of {_kind(hint)}",
            remedy="Correct the value",
        )
    return word


def _kind(hint: Any) -> str:
    """What a field of type `hint` holds, in words."""
    if get_origin(hint) is tuple:
        return f"lists of {_kind(get_args(hint)[0])}, with commas between them"
    return {bool: "true or false", int: "whole numbers", float: "numbers"}.get(hint, "texts")


def value_text(value: Value) -> str:
    """A value as `parse_dimension` reads it."""
    if isinstance(value, tuple):
        return ",".join(map(value_text, value))
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)


def frozen(values: Iterable[Any]) -> tuple[Value, ...]:
    """Values as they were before JSON made lists of tuples."""
    return tuple(tuple(value) if isinstance(value, list) else value for value in values)
