"""The training step, whole epochs and the whole command, against the common PyTorch script and other peers."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from distcifar.benchmark.peers import Answer, able_peers, peer_scripts, request, run_ours, run_peer
from distcifar.benchmark.place import Place, train_command
from distcifar.benchmark.results import Comparison, Goal, lines_of
from distcifar.benchmark.rounds import Side, by_turns, endless_training, seconds_of_steps
from distcifar.config import Recipe, replace_at
from distcifar.data.build import OpenData
from distcifar.data.loader import Batch
from distcifar.training.build import build_state
from distcifar.training.engine import wrap
from distcifar.training.reports import REPORT_SECONDS, Pace
from distcifar.training.step import train_step

RECIPES = ("cnn-day41", "resnet9-aug")
CPU_IMAGES, COMMAND_IMAGES, COMMAND_EPOCHS = 10_240, 4096, 3
BLOCK_IMAGES = 2048  # of a block of steps on a CPU; a GPU needs more to be timed well
PLAIN = "plain PyTorch"
LEAST_RATIO, LEAST_RATIO_BF16, LEAST_LOADER = 2.5, 4.0, 0.97


def step(place: Place) -> list[Comparison]:
    """Each recipe's step, epoch and command."""
    found = []
    for name in place.settings.recipe or (RECIPES[:1] if place.settings.quick else RECIPES):
        recipe = _sized(place.recipe(name), place)
        found += [_steps(recipe, place), _epochs(recipe, place), _command(recipe, place)]
    return found


def _sized(recipe: Recipe, place: Place) -> Recipe:
    """With as many training images as were asked for."""
    default = 512 if place.settings.quick else 0 if place.on_gpu else CPU_IMAGES
    return replace(recipe, data=replace(recipe.data, train_first=place.settings.images or default))


def _steps(recipe: Recipe, place: Place) -> Comparison:
    """The step alone over resident batches, with each of its parts switched on; then with the loader as in a run."""
    _, data = place.open(recipe, mode="resident")
    count = max(1, BLOCK_IMAGES * (16 if place.on_gpu else 1) // recipe.batch_size)
    batches = [batch for _, batch in zip(range(count), data.loaders.train.batches(0), strict=False)]
    plain, lean, half = "eager fp32 NCHW", "eager fp32 channels_last", "eager bf16 channels_last"
    sides = {
        plain: _alone(recipe, data, place, batches, "fp32", layout=torch.contiguous_format),
        lean: _alone(recipe, data, place, batches, "fp32"),
        half: _alone(recipe, data, place, batches, "bf16"),
        "engine with its loader, fp32": _with_loader(recipe, data, place, len(batches), "fp32"),
        "engine with its loader, bf16": _with_loader(recipe, data, place, len(batches), "bf16"),
    }
    if place.settings.compile == "on" or (place.settings.compile == "auto" and place.on_gpu):
        for precision in ("fp32", "bf16"):
            sides[f"compiled {precision} channels_last"] = _alone(
                recipe, data, place, batches, precision, compiled=True
            )
    found = by_turns(sides, place.settings.rounds, title=f"{recipe.name}: step")
    goals = (
        Goal("engine with its loader, fp32", lean, LEAST_LOADER),
        Goal("engine with its loader, bf16", half, LEAST_LOADER),
    )
    notes = (f"Batches of {recipe.batch_size}, {len(batches)} steps a block; images resident on {place.world.device}.",)
    return Comparison(f"{recipe.name}: training step", "images/s", lines_of(found), plain, goals=goals, notes=notes)


def _alone(
    recipe: Recipe,
    data: OpenData,
    place: Place,
    batches: list[Batch],
    precision: str,
    *,
    layout: torch.memory_format = torch.channels_last,
    compiled: bool = False,
) -> Side:
    """Steps over `batches` again and again, without loader, reports or evaluation."""
    state = build_state(recipe, data, "benchmark", place.world)
    state.set_precision(precision)
    state.model.to(memory_format=layout)
    net = wrap(state.model, place.world, compiled=compiled)
    mine = [replace(batch, images=batch.images.clone(memory_format=layout)) for batch in batches]
    images = sum(len(batch.images) for batch in mine)

    def measure(_: int) -> float:
        begun = time.perf_counter()
        for batch in mine:
            train_step(net, state, recipe, batch, place.world)
        wait_for_device(place)
        return images / (time.perf_counter() - begun)

    return measure


def _with_loader(recipe: Recipe, data: OpenData, place: Place, steps: int, precision: str) -> Side:
    """fit() as a run drives it, evaluations not counted."""
    state, reports = endless_training(recipe, data, place, precision, Pace(REPORT_SECONDS))

    def measure(_: int) -> float:
        before, seconds = state.progress.step, seconds_of_steps(reports, steps)
        per_epoch, samples = data.loaders.train.steps_per_epoch, data.loaders.train.store.num_samples
        return (state.progress.step - before) * samples / per_epoch / seconds

    return measure


def _epochs(recipe: Recipe, place: Place) -> Comparison:
    """Steady epochs of processes of their own: ours in fp32 and as precision auto decides, and each peer's."""
    recipe = replace(recipe, epochs=2, then=())
    prepared = place.prepare(recipe.data)
    wanted = request(recipe, prepared, place, epochs=recipe.epochs)
    peers = able_peers(peer_scripts(place), wanted, place)
    kept: dict[str, Answer] = {}
    sides: dict[str, Side] = {
        name: _noted(kept, name, partial(run_peer, script, wanted, place)) for name, script in peers.items()
    }
    ours = {"distcifar, fp32": "fp32", "distcifar, auto": "auto"}
    for name, precision in ours.items():
        changed = replace_at(recipe, "precision", precision)
        sides[name] = _noted(kept, name, partial(run_ours, changed, prepared.folder, place))
    found = by_turns(sides, place.settings.rounds, title=f"{recipe.name}: epochs", warm_up=0)
    precision = kept["distcifar, auto"].line["precision"]
    goals = [Goal("distcifar, fp32", PLAIN, LEAST_RATIO)] if PLAIN in found else []
    if precision != "fp32" and PLAIN in found:
        goals.append(Goal("distcifar, auto", PLAIN, LEAST_RATIO_BF16))
    usage = [
        f"{name}: {answer.process.cpu_seconds:.1f} s of processor time, {answer.process.peak_bytes / 1e6:,.0f} MB,"
        f" {answer.accuracy:.1%} on test."
        for name, answer in kept.items()
    ]
    notes = (f"Second of two epochs of {prepared.manifest.num_samples:,} images; auto is {precision} here.", *usage)
    baseline = PLAIN if PLAIN in found else ""
    title = f"{recipe.name}: steady epoch"
    return Comparison(title, "images/s", lines_of(found), baseline, goals=tuple(goals), notes=notes)


def _noted(kept: dict[str, Answer], name: str, run: Callable[[], Answer | None]) -> Side:
    """Images per second of what `run` answers; the newest answer stays in `kept`."""

    def measure(_: int) -> float:
        answer = run()
        assert answer is not None  # it has answered before
        kept[name] = answer
        return answer.images_per_s

    return measure


def _command(recipe: Recipe, place: Place) -> Comparison:
    """From the command to its end, an evaluation per epoch: jobs/train.py and the plain script."""
    images, epochs = (256, 1) if place.settings.quick else (COMMAND_IMAGES, COMMAND_EPOCHS)
    recipe = replace(recipe, data=replace(recipe.data, train_first=images), epochs=epochs, then=())
    prepared = place.prepare(recipe.data)
    wanted = request(recipe, prepared, place, epochs=epochs)
    peers = able_peers(peer_scripts(place, ("plain",)), wanted, place)
    sides: dict[str, Side] = {name: _wall(script, wanted, place) for name, script in peers.items()}
    ours = "jobs/train.py"
    sides[ours] = lambda number: (
        place.run(train_command(recipe, place, "--epochs", str(epochs), "--name", f"{recipe.name}-{number}")).seconds
    )
    found = by_turns(sides, place.settings.rounds, title=f"{recipe.name}: command")
    goals = (Goal(ours, PLAIN, 1.0),) if PLAIN in found else ()
    notes = (f"{epochs} epochs of {images:,} images, an evaluation each, and the test images; data prepared before.",)
    title, baseline = f"{recipe.name}: whole command", PLAIN if PLAIN in found else ""
    return Comparison(title, "s", lines_of(found), baseline, more_is_better=False, goals=goals, notes=notes)


def _wall(script: Path, wanted: dict[str, Any], place: Place) -> Side:
    """Seconds of a peer's process, from its start to its end."""

    def measure(_: int) -> float:
        answer = run_peer(script, wanted, place)
        assert answer is not None  # it has answered before
        return answer.process.seconds

    return measure


def wait_for_device(place: Place) -> None:
    """Returns once the GPU has done what it was given."""
    if place.on_gpu:
        torch.cuda.synchronize()
