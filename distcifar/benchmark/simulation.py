"""A thousand ranks and ten thousand runs on one machine: what plan, journal, watchdog, runs and registry cost.

Nothing is trained and no rank is a process: what would be asked of our code at that size is asked of it here. Times are
this process's processor time, which other work on the machine moves little.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from distcifar.benchmark.place import Place
from distcifar.benchmark.results import Comparison, Line
from distcifar.benchmark.scaling import ASSUMED_LINKS
from distcifar.benchmark.simulated_ranks import Seconds, event_cost, journal_cost, plan_cost, sign_cost
from distcifar.benchmark.simulated_runs import registry_cost, run_cost
from distcifar.cluster.time_model import StepTime
from distcifar.data.progress import progress

# Ranks; images and batch: ImageNet's, and a batch for a thousand ranks; rows: a day's, of one step a second and of ten;
# events; runs, and versions.
WHOLE = (8, 64, 1000), (1_281_167, 32_768), (86_400, 864_000), (100, 1000, 10_000), (100, 1000, 10_000)
QUICK = (2, 4, 8), (2000, 64), (500, 1000), (5, 10, 20), (5, 10, 20)
GRADIENT_BYTES = 44.7e6  # resnet18's
ETHERNET = ("10 Gbit/s Ethernet", 1.25e9, 5e-5)  # assumed, as the links of scaling.py: bytes/s, seconds of a message
STEEP = 1.2  # exponent above which a cost is said to grow faster than what it is of

Costs = Mapping[tuple[str, float], Sequence[float]]  # by what and how many: seconds of each round


def simulation(place: Place) -> list[Comparison]:
    """What grows with ranks, rows, runs and versions, and how fast."""
    ranks, (images, batch), rows, events, runs = QUICK if place.settings.quick else WHOLE
    parts: dict[str, tuple[tuple[int, ...], Callable[[int, Path], Seconds]]] = {
        "the plan, by ranks": (ranks, lambda count, _: plan_cost(count, images, batch)),
        "signs of life, by ranks": (ranks, sign_cost),
        "the journal, by rows": (rows, journal_cost),
        "events, by their number": (events, event_cost),
        "a folder of runs, by runs": (runs, run_cost),
        "the registry, by versions": (runs, registry_cost),
    }
    found: dict[str, dict[tuple[str, float], list[float]]] = {title: {} for title in parts}
    with progress("simulation", place.settings.rounds * sum(len(sizes) for sizes, _ in parts.values())) as advance:
        for number in range(place.settings.rounds):
            for part, (title, (sizes, measure)) in enumerate(parts.items()):
                for size in sizes:
                    for what, seconds in measure(size, place.scratch / f"{number}-{part}-{size}").items():
                        found[title].setdefault((what, float(size)), []).append(seconds)
                    advance(1)
    return [*(told(title, costs) for title, costs in found.items()), predicted(ranks)]


def told(title: str, costs: Costs) -> Comparison:
    """Curves of what was measured; the notes say how each grows at its end."""
    lines = tuple(Line(f"{x:,.0f}: {what}", tuple(seconds), x, what) for (what, x), seconds in costs.items())
    notes = []
    for curve in dict.fromkeys(line.curve for line in lines):
        power = exponent([line for line in lines if line.curve == curve])
        steep = ": faster than what it is of" if power > STEEP else ""
        notes.append(f"{curve}: grows with the power {power:.1f}{steep}.")
    return Comparison(title.capitalize(), "s", lines, more_is_better=False, notes=tuple(notes))


def exponent(lines: Sequence[Line]) -> float:
    """p of seconds ~ x^p between the two largest x: 0 constant, 1 in proportion, 2 quadratic."""
    few, many = sorted((line.x or 1.0, max(line.median, 1e-9)) for line in lines)[-2:]
    return math.log(many[1] / few[1]) / math.log(many[0] / few[0])


def predicted(sizes: Sequence[int]) -> Comparison:
    """What a ring all-reduce of resnet18's gradient takes by StepTime's formula, over links that are assumed."""
    links = (ETHERNET, *ASSUMED_LINKS.values())
    lines = [
        Line(
            f"{ranks:,}: {name}",
            (StepTime(0, 0, 1 / rate, delay).seconds(ranks=ranks, images=0, gradient_bytes=GRADIENT_BYTES),),
            float(ranks),
            name,
        )
        for name, rate, delay in links
        for ranks in sizes
    ]
    assumed = [f"{name}: {rate / 1e9:g} GB/s, {delay * 1e6:g} us a message." for name, rate, delay in links]
    notes = ("2 (n - 1) / n x bytes / rate + 2 (n - 1) x delay; assumed:", *assumed)
    title = "Predicted, not measured: an all-reduce of 44.7 MB, by ranks"
    return Comparison(title, "s", tuple(lines), more_is_better=False, notes=notes)
