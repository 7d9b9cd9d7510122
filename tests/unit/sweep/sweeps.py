"""Made-up searches, in a folder as a search leaves it, whose truth is known: what decides, and by how much.

The best reachable accuracy falls with the distance of log10(optim.lr) from -2, less with the batch size, and with
nothing else. A trial comes to it like 1 - exp(-epoch / 2); asha stops at rungs what is not in the best third so far.
"""

import json
import math
import random
from dataclasses import asdict, dataclass, replace

from distcifar.config import RunSpec
from distcifar.config.space import Space, chosen, only_if, ranged
from distcifar.config.sweep import SweepSpec
from distcifar.recipes import get_recipe
from distcifar.recipes.spaces import SPACES
from distcifar.sweep.folder import RESULTS, Result, Sweep, read_results, read_sweep, write_sweep

FIELDS = (
    ranged("optim.lr", 1e-4, 1.0, log=True),
    chosen("batch_size", 32, 64, 128, 256),
    ranged("model.dropout", 0.0, 0.6),
    chosen("optim.name", "adam", "sgd"),
    only_if(ranged("optim.momentum", 0.5, 0.99), "optim.name", "sgd"),
)


@dataclass(frozen=True)
class MadeUp:
    sweep: Sweep
    results: list
    points: dict


def made_up(
    folder, *, trials=24, epochs=9, scheduler="asha", seeds=1, fields=FIELDS, noise=0.004, recipe="cnn2", until=None,
    seed=0, rate=0.15, batch=0.02,
):  # fmt: skip
    """A search as `folder` holds it. rate, batch: what a decade and a doubling cost. until: only so many results."""
    recipe = replace(get_recipe(recipe), epochs=epochs)
    spec = SweepSpec(trials=trials, scheduler=scheduler, seeds=seeds, search_seed=seed)
    space = Space(tuple(fields)).checked(recipe)
    folder.mkdir(parents=True)
    write_sweep(Sweep(folder, recipe, space, spec, RunSpec(), folder.parent / "betons", "a" * 64))
    points = {number: space.point(recipe, seed, number // seeds) for number in range(trials * seeds)}
    rungs: dict = {}
    generator = random.Random(seed)
    lines = []
    for number, point in points.items():
        lines += trained(
            number, epochs, generator, noise, truth(point, rate, batch), rungs if scheduler == "asha" else None
        )
    lines = lines[:until]
    (folder / RESULTS).write_text("".join(json.dumps(asdict(line)) + "\n" for line in lines))
    return MadeUp(read_sweep(folder), read_results(folder), {line.trial: points[line.trial] for line in lines})


def truth(point, rate, batch):
    """The best reachable accuracy."""
    off = math.log10(point.get("optim.lr", 0.01)) + 2
    return 0.9 - rate * off * off - batch * math.log2(point.get("batch_size", 32) / 32)


def trained(number, epochs, generator, noise, reachable, rungs):
    """The results of one trial, one after the other."""
    best = 0.0
    for epoch in range(1, epochs + 1):
        accuracy = max(0.05, reachable * (1 - math.exp(-epoch / 2)) + generator.gauss(0, noise))
        best = max(best, accuracy)
        stop = rungs is not None and epoch in (1, 3) and not among_the_best(rungs.setdefault(epoch, []), best)
        stop = stop or epoch == epochs
        seconds = 10.0 * epoch
        run = f"{number:03d}"
        yield Result(run, number, epoch, accuracy, best, 2 - accuracy, seconds, "stop" if stop else "continue")
        if stop:
            return


def among_the_best(rung, score):
    """Whether `score` is in the best third of a rung, which notes it."""
    rung.append(score)
    return sorted(rung, reverse=True).index(score) < max(1, len(rung) / 3)


def all_fields(count):
    """`count` fields, up to 14: of the named space that has most, and one more."""
    most = max((space.dimensions for space in SPACES.values()), key=len)
    fields = (*most, ranged("ema_decay", 0.0, 0.99))[:count]
    assert len(fields) == count
    return fields
