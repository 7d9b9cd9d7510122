"""A recipe trained with many seeds: accuracy as a distribution, and both times that people mean by its speed."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from distcifar.benchmark.peers import Answer, able_peers, peer_scripts, request, run_ours, run_peer
from distcifar.benchmark.place import Place, train_command
from distcifar.benchmark.results import Comparison, Line, lines_of
from distcifar.benchmark.rounds import Side, by_turns
from distcifar.recipes import RECIPES

WANTED, INSTEAD = "speedrun94", "quick"
CPU_RUNS, GPU_RUNS = 3, 100
OURS, COMMAND = "distcifar", "distcifar: command to result"
CPU_COMMANDS, GPU_COMMANDS = 1, 3  # runs of jobs/train.py: their time hardly differs, and each trains anew


def speedrun(place: Place) -> list[Comparison]:
    """Runs by turns with the peers: a new seed each round."""
    name = (place.settings.recipe or (WANTED if WANTED in RECIPES else INSTEAD,))[0]
    recipe = place.recipe(name)
    prepared = place.prepare(recipe.data)
    wanted = request(recipe, prepared, place, epochs=recipe.total_epochs)
    peers = able_peers(peer_scripts(place, ()), wanted, place)
    answers: dict[str, list[Answer]] = {OURS: [], **{peer: [] for peer in peers}}

    def kept(peer: str, answer: Answer | None) -> float:
        assert answer is not None  # it has answered before
        answers[peer].append(answer)
        return answer.seconds

    seeds = [recipe.seed + number for number in range(place.settings.runs or (GPU_RUNS if place.on_gpu else CPU_RUNS))]
    sides: dict[str, Side] = {
        OURS: lambda number: kept(OURS, run_ours(replace(recipe, seed=seeds[number]), prepared.folder, place))
    }

    def beside(peer: str, script: Path) -> Side:
        return lambda number: kept(peer, run_peer(script, {**wanted, "seed": seeds[number]}, place))

    sides |= {peer: beside(peer, script) for peer, script in peers.items()}
    found = by_turns(sides, len(seeds), title=f"{recipe.name}: seeds", warm_up=0)
    commands = [_command(recipe.name, seed, place) for seed in seeds[: GPU_COMMANDS if place.on_gpu else CPU_COMMANDS]]
    region = Comparison(
        f"{recipe.name}: timed region", "s", lines_of(found), OURS, more_is_better=False,
        notes=("Training and the final evaluation, after a warm-up that is not counted, as the records define it.",),
    )  # fmt: skip
    whole = lines_of({COMMAND: commands, **{peer: [each.process.seconds for each in answers[peer]] for peer in peers}})
    return [
        accuracies(recipe.name, {peer: [each.accuracy for each in found] for peer, found in answers.items()}),
        region,
        Comparison(f"{recipe.name}: command to result", "s", whole, COMMAND, more_is_better=False),
    ]


def _command(name: str, seed: int, place: Place) -> float:
    recipe = place.recipe(name)
    return place.run(train_command(recipe, place, "--seed", str(seed), "--name", f"seed-{seed}")).seconds


def accuracies(title: str, found: dict[str, list[float]]) -> Comparison:
    """Test accuracy in percent; the notes tell mean and standard error."""
    lines = tuple(Line(peer, tuple(100 * value for value in values)) for peer, values in found.items())
    return Comparison(
        f"{title}: test accuracy", "%", lines, notes=tuple(f"{each.name}: {told(each.values)}" for each in lines)
    )


def told(values: Sequence[float]) -> str:
    """Mean, its standard error, lowest and number of runs, in words."""
    mean = f"mean {statistics.fmean(values):.2f} %"
    if len(values) > 1:
        mean += f" +- {statistics.stdev(values) / math.sqrt(len(values)):.2f} (standard error)"
    return f"{mean}, lowest {min(values):.2f} %, {len(values)} run(s)."
