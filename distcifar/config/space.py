"""Search spaces: which fields of a recipe are searched, and over which values.

A Space is a value: it is checked against the recipe when a sweep is planned, it draws points from a seed and a number,
and it goes to JSON and to the command line (optim.lr=loguniform:1e-3:1) and back.
"""

import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from distcifar.config.recipe import Recipe
from distcifar.config.values import from_dict, replace_at, require, to_dict

Value = bool | int | float | str | tuple[Any, ...]
Point = dict[str, Value]  # dotted paths into a recipe, with their values
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
            return float(f"{value:.4g}")  # no result depends on the fifth digit, and people read them
        if self.kind == "int":
            return min(int(self.high), int(self.low + place * (self.high - self.low + 1)))
        return float(f"{self.low + place * (self.high - self.low):.4g}")

    def __str__(self) -> str:
        if self.kind == "choice":
            return "choice:" + "|".join(map(value_text, self.values))
        return f"{self.kind}:{self.low:g}:{self.high:g}"


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One searched field; with `when` only in points where another field has one of these values."""

    path: str
    domain: Domain
    when: tuple[str, tuple[Value, ...]] | None = None

    def active(self, point: Mapping[str, Value], recipe: Recipe) -> bool:
        """Whether it is searched where the other fields are those of `point`, or else of `recipe`."""
        if self.when is None:
            return True
        path, values = self.when
        return (point[path] if path in point else value_at(recipe, path)) in values

    def __str__(self) -> str:
        condition = f" if {self.when[0]}={'|'.join(map(value_text, self.when[1]))}" if self.when else ""
        return f"{self.path}={self.domain}{condition}"


@dataclass(frozen=True)
class Space:
    """What is searched; a dimension's condition names a field of the recipe or an earlier dimension."""

    dimensions: tuple[Dimension, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """The searched fields."""
        return tuple(dimension.path for dimension in self.dimensions)

    def checked(self, recipe: Recipe) -> "Space":
        """Itself. Raises ConfigError for a path that `recipe` does not have, or a value that it does not take."""
        require(bool(self.dimensions), "The search space is empty", "A search varies something",
                "Add --space optim.lr=loguniform:1e-3:1")  # fmt: skip
        for number, dimension in enumerate(self.dimensions):
            for value in dimension.domain.levels(2):
                replace_at(recipe, dimension.path, value)
            if dimension.when is not None:
                value_at(recipe, dimension.when[0])
                known = {other.path for other in self.dimensions[:number]}
                later = {other.path for other in self.dimensions[number:]}
                require(
                    dimension.when[0] in known or dimension.when[0] not in later,
                    f"The space has {dimension} before {dimension.when[0]}",
                    "A condition names a field of the recipe or an earlier one of the space",
                    "Put that one first",
                )
        return self

    def point(self, recipe: Recipe, seed: int, number: int) -> Point:
        """The point `number` of a random search: a pure function, whatever was drawn before."""
        generator, found = random.Random(f"{seed}/{number}"), Point()
        for dimension in self.dimensions:
            value = dimension.domain.draw(generator)  # also where it is not active: what follows stays the same
            if dimension.active(found, recipe):
                found[dimension.path] = value
        return found

    def grid(self, recipe: Recipe, levels: int) -> list[Point]:
        """All points of a grid with `levels` values of each interval; conditions leave no two alike."""

        def grown(point: Point, rest: Sequence[Dimension]) -> Iterator[Point]:
            if not rest:
                yield point
            elif not rest[0].active(point, recipe):
                yield from grown(point, rest[1:])
            else:
                for value in rest[0].domain.levels(levels):
                    yield from grown(point | {rest[0].path: value}, rest[1:])

        return list(grown({}, self.dimensions))

    def changed(self, texts: Sequence[str], recipe: Recipe) -> "Space":
        """With dimensions added, replaced or taken out (PATH=off) as `texts` say; the word `only` starts from none."""
        dimensions = {} if "only" in texts else {dimension.path: dimension for dimension in self.dimensions}
        for text in texts:
            if text == "only":
                continue
            path, _, rest = text.partition("=")
            if rest == "off":
                require(path in dimensions, f"--space has {text!r}", "Only what is searched can be taken out",
                        f"The space has {', '.join(dimensions)}")  # fmt: skip
                del dimensions[path]
            else:
                dimensions[path] = parse_dimension(text, recipe)
        return Space(tuple(dimensions.values()))


def apply(recipe: Recipe, point: Mapping[str, Value]) -> Recipe:
    """`recipe` with the fields of `point`, all at once: two of them may only be valid together."""
    numbers = to_dict(recipe)
    for path, value in point.items():
        *inner, last = path.split(".")
        place = numbers
        for name in inner:
            place = place[name]
        place[last] = value
    return from_dict(Recipe, numbers)


def value_at(recipe: Recipe, path: str) -> Any:
    """The field at dotted `path`. Raises ConfigError with the nearest name if there is none."""
    value: Any = recipe
    for name in path.split("."):
        if not hasattr(value, name) or callable(getattr(value, name)):
            replace_at(recipe, path, None)  # which raises, with the nearest name
        value = getattr(value, name)
    return value


def parse_dimension(text: str, recipe: Recipe) -> Dimension:
    """`PATH=DOMAIN`, or `PATH=DOMAIN if OTHER=A|B`; values are read as the recipe's fields are."""
    main, _, condition = text.partition(" if ")
    path, equals, words = main.strip().partition("=")
    require(bool(equals), f"--space has {text!r}", f"An item is PATH=DOMAIN, a domain {FORMS}",
            "Write, for example, --space optim.lr=loguniform:1e-3:1")  # fmt: skip
    when = None
    if condition:
        other, _, values = condition.strip().partition("=")
        when = (other, tuple(_value(word, value_at(recipe, other), text) for word in values.split("|")))
    return Dimension(path=path, domain=_domain(words, value_at(recipe, path), text), when=when)


def _domain(words: str, now: Any, text: str) -> Domain:
    kind, _, rest = words.partition(":")
    if kind == "choice" and rest:
        return Domain(kind="choice", values=tuple(_value(word, now, text) for word in rest.split("|")))
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
    least = 0 if kind == "loguniform" else -math.inf
    require(least < low < high, f"--space has {text!r}", "LOW is below HIGH, and above 0 for loguniform", "Correct it")
    require(
        isinstance(now, int | float) and not isinstance(now, bool) and (kind != "int" or isinstance(now, int)),
        f"--space has {text!r} for a field that is {now!r} now",
        "An interval is for numbers, and int for whole ones",
        "Use choice:A|B|C",
    )
    require(
        kind == "int" or not isinstance(now, int),
        f"--space has {text!r} for a field of whole numbers",
        "Its values are whole numbers",
        "Use int:LOW:HIGH or choice:A|B|C",
    )
    return Domain(kind=kind, low=low, high=high)  # type: ignore[arg-type]


def _value(word: str, now: Any, text: str) -> Value:
    """`word` as a value for a field that is `now`."""
    try:
        if isinstance(now, bool):
            return {"true": True, "false": False}[word.lower()]
        if isinstance(now, int | float):
            return type(now)(word)
        if isinstance(now, tuple):
            items = [item for item in word.split(",") if item]
            whole = all(isinstance(item, int) for item in now) and all(item.isdecimal() for item in items)
            return tuple(int(item) if whole else item for item in items)
    except (KeyError, ValueError):
        require(ok=False, found=f"--space has {word!r} in {text!r}", rule=f"The field is {now!r} now", remedy="Correct")
    return word


def value_text(value: Value) -> str:
    """A value as `parse_dimension` reads it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def space_from_dict(data: Any) -> Space:
    """`to_dict(space)` undone."""
    return Space(
        tuple(
            replace(
                Dimension(path=item["path"], domain=_domain_from(item["domain"])),
                when=(item["when"][0], tuple(map(_frozen, item["when"][1]))) if item["when"] else None,
            )
            for item in data["dimensions"]
        )
    )


def _domain_from(item: Mapping[str, Any]) -> Domain:
    return Domain(kind=item["kind"], low=item["low"], high=item["high"], values=tuple(map(_frozen, item["values"])))


def _frozen(value: Any) -> Value:
    return tuple(value) if isinstance(value, list) else value


def ranged(path: str, low: float, high: float, *, log: bool = False) -> Dimension:
    """A dimension over an interval."""
    return Dimension(path=path, domain=Domain(kind="loguniform" if log else "uniform", low=low, high=high))


def chosen(path: str, *values: Value) -> Dimension:
    """A dimension over a list."""
    return Dimension(path=path, domain=Domain(kind="choice", values=values))


def only_if(dimension: Dimension, path: str, *values: Value) -> Dimension:
    """`dimension`, searched only where `path` has one of `values`."""
    return replace(dimension, when=(path, values))


def all_points(space: Space, recipe: Recipe, *, search: str, count: int, seed: int, levels: int) -> list[Point]:
    """The points of a random search of `count`, or of the whole grid. Raises ConfigError where they are not `count`."""
    if search == "grid":
        points = space.grid(recipe, levels)
        require(
            len(points) <= count,
            f"The grid has {len(points)} points, and --trials is {count}",
            "A grid is searched whole",
            f"Use --trials {len(points)}, fewer --levels, or take fields out (--space PATH=off)",
        )
        return points
    return list(itertools.islice((space.point(recipe, seed, number) for number in itertools.count()), count))
