"""Search spaces: which fields of a recipe are searched, and over which values.

A Space is a value: it is checked against the recipe when a sweep is planned, it draws points from a seed and a number,
and it goes to JSON and to the command line (optim.lr=loguniform:1e-3:1) and back.
"""

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_type_hints

from distcifar.config.domain import FORMS, Domain, Value, frozen, parse_domain, parse_value, value_text
from distcifar.config.recipe import Recipe
from distcifar.config.values import from_dict, replace_at, require, to_dict

_OF_DATA = ("data.dataset", "data.validation", "data.train_first", "data.size", "data.split_seed", "data.storage")
FIXED = ("name", "seed", "epochs", "then", *_OF_DATA)  # alike for all trials, or given to them by the search
Point = dict[str, Value]  # dotted paths into a recipe, with their values


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
            require(dimension.path not in FIXED, f"The space has {dimension}",
                    "All trials have the same images and length, and the search gives them their seeds",
                    f"Take {dimension.path} out, and set it for the whole search")  # fmt: skip
            for value in dimension.domain.levels(2):
                replace_at(recipe, dimension.path, value)
            if dimension.when is not None:
                other, values = dimension.when
                for value in values:
                    parse_value(value_text(value), hint_at(recipe, other), str(dimension))
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
        if name not in getattr(value, "__dataclass_fields__", ()):
            replace_at(recipe, path, None)  # which raises, with the nearest name
        value = getattr(value, name)
    return value


def hint_at(recipe: Recipe, path: str) -> Any:
    """The type of the field at dotted `path`, as it is annotated. Raises ConfigError if there is none."""
    value_at(recipe, path)
    inner, _, last = path.rpartition(".")
    return get_type_hints(type(value_at(recipe, inner) if inner else recipe))[last]


def parse_dimension(text: str, recipe: Recipe) -> Dimension:
    """`PATH=DOMAIN`, or `PATH=DOMAIN if OTHER=A|B`; values are read as those of the recipe's fields."""
    main, _, condition = text.partition(" if ")
    path, equals, words = main.strip().partition("=")
    require(bool(equals), f"--space has {text!r}", f"An item is PATH=DOMAIN, a domain {FORMS}",
            "Write, for example, --space optim.lr=loguniform:1e-3:1")  # fmt: skip
    when = None
    if condition:
        other, _, values = condition.strip().partition("=")
        require(bool(values), f"--space has {text!r}", "A condition is OTHER=A|B",
                "Write, for example, --space 'optim.momentum=uniform:0.8:0.98 if optim.name=sgd'")  # fmt: skip
        when = (other, tuple(parse_value(word, hint_at(recipe, other), text) for word in values.split("|")))
    return Dimension(path=path, domain=parse_domain(words, hint_at(recipe, path), text), when=when)


def space_from_dict(data: Any) -> Space:
    """`to_dict(space)` undone."""
    return Space(
        tuple(
            Dimension(
                path=item["path"],
                domain=Domain(**(item["domain"] | {"values": frozen(item["domain"]["values"])})),
                when=(item["when"][0], frozen(item["when"][1])) if item["when"] else None,
            )
            for item in data["dimensions"]
        )
    )


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
