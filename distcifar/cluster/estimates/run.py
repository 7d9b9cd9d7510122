"""`--estimate`: from a recipe and a specification to what its training will take, here and on machines for hire."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from distcifar.cluster.estimates.estimate import Estimate, Figures, estimate
from distcifar.cluster.estimates.figures import Measured, keep, kind, known, last_start, machine_of, measured_link
from distcifar.cluster.estimates.offers import NOT_MEASURED, Offer, cheapest, offers
from distcifar.cluster.estimates.prices import PriceTable, instance_types, read_prices
from distcifar.cluster.facts import hardware
from distcifar.cluster.job import Announce
from distcifar.cluster.stored.places import runs_here
from distcifar.config import Recipe, RunSpec
from distcifar.data.shared import shared_data
from distcifar.errors import ResourceError
from distcifar.tracking.startup import Marks

BENCHMARKS = Path("benchmarks")  # where jobs/benchmark.py leaves what it measured


@dataclass(frozen=True)
class Outlook:
    """What is told of a training before it starts."""

    recipe: Recipe
    machine: str
    estimate: Estimate
    images_per_s: float
    offers: list[Offer]
    table: PriceTable
    notes: list[str]


def estimate_run(recipe: Recipe, spec: RunSpec, *, cluster: Path, prices: str, announce: Announce) -> Outlook:
    """Measures a few steps here and keeps them for the runs that follow. No run directory is made.

    cluster: cluster.yaml, whose instances are priced (the cheapest with each card, where there is none). prices: a
    table instead of ours. Raises what a training would, and ConfigError for the table.
    """
    startup = Marks.of_this_process().ended("imports")
    table = read_prices(Path(prices)) if prices else read_prices()
    gpus = _gpus(spec)
    facts, runs = hardware() | {"gpus": gpus}, runs_here(spec.runs)
    machine = machine_of(facts, spec.device)
    places = len(gpus) or facts["cores"]
    ranks = spec.workers or len(gpus) or 1
    data = shared_data(recipe.data, spec.data_root, spec.data_copies, spec.source, announce=announce)
    announce(f"Measuring a few steps of {recipe.name} here ({machine}); half a minute at most for a small net")
    from distcifar.cluster.estimates.steps import Trial, measured_here

    together = ranks if ranks <= places else 1
    threads = spec.cpus_per_worker or max(1, len(os.sched_getaffinity(0)) // min(ranks, places))
    work, figures = measured_here(Trial(recipe, spec, data, ranks, together, threads, startup.ended("data check")))
    figures = _completed(figures, machine, runs, ranks)
    here = Measured(
        recipe=recipe.name, date=datetime.now(UTC).isoformat(timespec="seconds"), machine=machine, ranks=ranks,
        on_gpu=bool(gpus), work=work, figures=figures,
    )  # fmt: skip
    name = kind(recipe, spec)
    if together == ranks:  # else it is true of machines that have a core or a card for each
        keep(runs, name, here)
    others = [each for each in known(runs, name) if each.machine != machine]
    wanted = instance_types(cluster)
    with_gpus = [name for name in wanted if (instance := table.instance(name)) and instance.gpus]
    found = offers(table, with_gpus or wanted or cheapest(table, ranks), recipe, spec, [here, *others], ranks)
    result = estimate(recipe, spec, work, figures, ranks, on_gpu=bool(gpus))
    step = figures.step.seconds(ranks=ranks, images=recipe.batch_size / ranks, gradient_bytes=4 * work.parameters)
    notes = [*_notes(recipe, spec, here, together), *_notes_on_prices(table, wanted, found)]
    return Outlook(recipe, machine, result, recipe.batch_size / step, found, table, notes)


def _gpus(spec: RunSpec) -> list[str]:
    """The names of the GPUs that a launch would compute on. ResourceError where it must and there are none."""
    import torch

    found = [] if spec.device == "cpu" else [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if spec.device == "cuda" and not found:
        raise ResourceError("This machine has no GPU that torch can use", "--device cuda needs one", "Use --device cpu")
    return found


def _completed(figures: Figures, machine: str, runs: Path, ranks: int) -> Figures:
    """`figures` with what other programs have measured here: the link between ranks, and the start of several."""
    start = figures.start if figures.start is not None else last_start(runs, ranks)
    link = None if figures.network else measured_link(BENCHMARKS, machine)
    if link is None:
        return replace(figures, start=start)
    step = replace(figures.step, per_byte=link[0], per_hop=link[1])
    return replace(figures, start=start, step=step, network=True)


def _notes(recipe: Recipe, spec: RunSpec, here: Measured, together: int) -> list[str]:
    """What is assumed, and what is not in the figures."""
    told, figures = [], here.figures
    if together < here.ranks:
        told.append(f"Predicted, not measured: {here.ranks} workers, from one here that has such a share of the batch.")
        told.append("Each is taken to have a machine, or a part of one, as that one has; this machine has not so many.")
        told.append(
            "The all-reduce is that of `jobs/benchmark.py scaling` on this machine."
            if figures.network
            else "What the workers send each other is not in it: `jobs/benchmark.py scaling` measures it."
        )
    if spec.address:
        told.append(f"This machine was measured, not the cluster at {spec.address}.")
    if figures.start is None:
        told.append(f"No run of {here.ranks} workers has told yet what their start takes.")
    if recipe.tta == "shift":
        told.append("Assumed: all evaluated images are looked at again (tta shift); it may be fewer.")
    if recipe.early_stop:
        told.append("All epochs are counted: early stopping may end it before.")
    if here.on_gpu and spec.compile == "auto":
        told.append("Measured without torch.compile, which --compile auto may choose.")
    if spec.wandb != "disabled":
        told.append("What W&B's client keeps on the disk is not counted.")
    return told


def _notes_on_prices(table: PriceTable, wanted: Sequence[str], found: Sequence[Offer]) -> list[str]:
    told = [f"Prices of {table.date}: {table.source}. Another table: --prices FILE."]
    told.append("Money is for the workers' machines while they train: not for their start, storage, or a head.")
    offered = {offer.instance.name for offer in found}
    for name in wanted:
        instance = table.instance(name)
        if instance and name not in offered:
            told.append(f"Beside them the cluster has a {name}: {instance.on_demand:g} USD an hour.")
    if unpriced := [name for name in wanted if table.instance(name) is None]:
        told.append(f"Without a price in the table: {', '.join(unpriced)}.")
    if any(offer.basis == NOT_MEASURED for offer in found):
        told.append(
            "Not measured: --estimate on such a machine, with the same --runs, leaves what is known from then on."
        )
    return told
