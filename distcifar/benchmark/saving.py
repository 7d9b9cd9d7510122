"""What checkpoints cost the training that they interrupt."""

import time

from distcifar.benchmark.place import Place
from distcifar.benchmark.results import Comparison, lines_of
from distcifar.benchmark.rounds import by_turns, endless_training, seconds_of_steps
from distcifar.training.checkpoint import capture
from distcifar.training.saving import CheckpointWriter

WITHOUT, WITH = "without a checkpoint", "with one"


def saving(place: Place) -> list[Comparison]:
    """Blocks of `steps` steps by turns with one checkpoint and without; what the loop waits for the state's copy."""
    recipe = place.recipe("resnet18", batch_size=place.settings.batch_size)
    _, data = place.open(recipe)
    state, reports = endless_training(recipe, data, place)
    writer = CheckpointWriter(place.scratch / "checkpoints", keep=1, before=lambda: None)
    standstills: list[float] = []

    def block(*, save: bool) -> float:
        start = time.perf_counter()
        if save:
            writer.submit(capture(state, {}), ())
            standstills.append(time.perf_counter() - start)
        waited = time.perf_counter() - start
        found = waited + seconds_of_steps(reports, place.settings.steps)
        writer.drain()  # it is done long before, or the block was too short to tell anything
        return found

    sides = {WITHOUT: lambda _: block(save=False), WITH: lambda _: block(save=True)}
    found = by_turns(sides, place.settings.rounds, title="saving")
    megabytes = capture(state, {}).size_bytes / 1e6
    writer.close()
    notes = (
        f"{recipe.name}, a checkpoint of {megabytes:.0f} MB in {place.settings.steps} steps of {recipe.batch_size}.",
    )
    return [
        Comparison("Checkpoints", "s", lines_of(found), WITHOUT, more_is_better=False, notes=notes),
        Comparison(
            "The loop stands still", "s", lines_of({"copy of the state": standstills[1:]}), more_is_better=False
        ),
    ]
