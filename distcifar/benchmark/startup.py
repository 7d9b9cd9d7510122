"""From the command to the first step: what each stage takes, on the first start of a machine and on later ones."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from distcifar.benchmark.place import Place, train_command
from distcifar.benchmark.results import Comparison, Line
from distcifar.config import Recipe
from distcifar.data.progress import progress
from distcifar.tracking.startup import read_startup

RECIPES = ("debug", "quick")
IMAGES = 2048
Stages = dict[str, float]


def startup(place: Place) -> list[Comparison]:
    """Starts of jobs/train.py by turns, each with empty caches and again with the caches that it has left."""
    names = ("debug",) if place.settings.quick else place.settings.recipe or RECIPES
    starts: dict[str, tuple[Recipe, tuple[str, ...]]] = {name: (place.recipe(name), ()) for name in names}
    if place.settings.full:
        starts["debug, 2 workers"] = (place.recipe("debug"), ("--workers", "2"))
    found: dict[str, list[Stages]] = {}
    with progress("startup", 2 * len(starts) * place.settings.rounds) as advance:
        for number in range(place.settings.rounds):
            for title, (recipe, words) in starts.items():
                caches = _caches(place.scratch / f"caches-{number}-{len(words)}-{recipe.name}")
                for kind in ("first", "again"):
                    stages = _start(recipe, words, place, caches)
                    found.setdefault(f"{title}: {kind}", []).append(stages)
                    advance(1)
    lines = tuple(stacked(name, each) for name, each in found.items())
    notes = (
        f"A training of at most {IMAGES:,} images; the stages are those of startup.json.",
        "first: with empty caches of numba and of torch's compiler; what the system has read of files stays in memory.",
    )
    return [Comparison("From the command to the first step", "s", lines, more_is_better=False, notes=notes)]


def stacked(name: str, starts: Sequence[Stages]) -> Line:
    """A line of the totals whose parts are the medians of each stage; a stage that a start lacks took none."""
    stages = list(dict.fromkeys(stage for start in starts for stage in start))
    parts = {stage: statistics.median(start.get(stage, 0.0) for start in starts) for stage in stages}
    return Line(name, tuple(sum(start.values()) for start in starts), parts=parts)


def _caches(folder: Path) -> Mapping[str, str]:
    """The environment that makes a start the first one."""
    return {"NUMBA_CACHE_DIR": str(folder / "numba"), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}


def _start(recipe: Recipe, words: Sequence[str], place: Place, caches: Mapping[str, str]) -> Stages:
    """The seconds of each stage of one start, by name."""
    small = replace(recipe.data, train_first=IMAGES if recipe.data.dataset != "synthetic" else 0)
    recipe = replace(recipe, data=small)
    place.prepare(small)
    name = f"start-{len(list((place.scratch / 'runs').glob('start-*')))}"
    place.run(train_command(recipe, place, "--epochs", "1", "--name", name, *words), extra=caches)
    told = read_startup(place.scratch / "runs" / name)
    assert told is not None  # the run has come to its end
    return {stage["name"]: stage["seconds"] for stage in told["stages"]}
