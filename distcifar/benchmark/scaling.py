"""Workers 1..N through the engine, without Ray: efficiency, and a prediction for more workers than there are."""

import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from distcifar.benchmark.peers import Answer, answered, start_ours
from distcifar.benchmark.place import Place, finish
from distcifar.benchmark.results import Comparison, Line
from distcifar.benchmark.rounds import Side, by_turns
from distcifar.cluster.time_model import Observation, StepTime, fit_step_time
from distcifar.config import Recipe
from distcifar.errors import ResourceError

RECIPE, STEPS = "resnet9-aug", 12
SMALLER = (2, 8)  # shares of the batch that one worker is timed on as well
FLOAT_BYTES = 4
PREDICTED = (8, 64)
# Where one worker tells nothing of the network. Assumed, not measured: bytes/s and seconds of a message.
ASSUMED_LINKS = {8: ("NVLink in one machine", 2e11, 5e-6), 64: ("InfiniBand, one 400 Gbit/s port per GPU", 4e10, 1e-5)}
GLOBAL, LOCAL = "fixed global batch", "fixed batch per worker"


def scaling(place: Place) -> list[Comparison]:
    """Images per second on 1, 2, 4 ... N workers at a fixed global and at a fixed local batch."""
    counts = worker_counts(most_workers(place))
    recipe = place.recipe((place.settings.recipe or (RECIPE,))[0])
    batch = recipe.batch_size * (1 if place.settings.quick or not place.on_gpu else 8)
    folder = place.prepare(recipe.data).folder
    observed: list[Observation] = []
    sides: dict[str, Side] = {}

    def add(name: str, count: int, size: int) -> None:
        sides[name] = _side(replace(recipe, batch_size=size), folder, count, max(counts), place, observed)

    for count in counts:
        add(f"{count}, {GLOBAL}", count, batch)
        if count > 1:
            add(f"{count}, {LOCAL}", count, batch * count)
    for share in SMALLER:  # tell the time of an image from that of a step
        add(f"1, a batch of {batch // share}", 1, batch // share)
    found = by_turns(sides, place.settings.rounds, title="scaling", warm_up=0)
    found[f"1, {LOCAL}"] = found[f"1, {GLOBAL}"]  # the same
    lines = [
        Line(f"{count}, {kind}", tuple(found[f"{count}, {kind}"]), float(count), kind)
        for kind in (GLOBAL, LOCAL)
        for count in counts
    ]
    threads = worker_threads(max(counts), place)
    notes = [f"{recipe.name}; {batch} images; {threads} thread(s) for each worker, however many there are."]
    notes += efficiencies(lines)
    notes += predictions(medians(observed), batches={GLOBAL: batch, LOCAL: batch})
    facts = {"step_time": asdict(fit_step_time(medians(observed)))}  # jobs/train.py --estimate reads it
    return [Comparison("Workers", "images/s", tuple(lines), notes=tuple(notes), facts=facts)]


def medians(observed: Sequence[Observation]) -> list[Observation]:
    """One observation for each configuration, with the median of its times: the fit would follow a slow moment."""
    times: dict[Observation, list[float]] = {}
    for each in observed:
        times.setdefault(replace(each, seconds=0.0), []).append(each.seconds)
    return [replace(key, seconds=statistics.median(values)) for key, values in times.items()]


def efficiencies(lines: Sequence[Line]) -> list[str]:
    """The share of the ideal, N times one worker, that each line reaches."""
    alone = {line.curve: line.median for line in lines if line.x == 1}
    return [
        f"{line.name}: {line.median / (alone[line.curve] * line.x):.0%} of the ideal."
        for line in lines
        if line.x is not None and line.x > 1
    ]


def predictions(observed: Sequence[Observation], *, batches: dict[str, int]) -> list[str]:
    """What the time model, fitted to `observed`, says of more workers, in sentences that name what it assumes."""
    model = fit_step_time(observed)
    gradient = max(each.gradient_bytes for each in observed if each.steps)
    networked = any(each.ranks > 1 for each in observed)
    found = [
        f"Time model: {model.per_step * 1e3:.3g} ms a step + {model.per_image * 1e6:.3g} us an image"
        + (f" + {model.per_byte * 1e9:.3g} ns a byte + {model.per_hop * 1e6:.3g} us a message" if networked else "")
        + f"; a ring all-reduce of {gradient / 1e6:.1f} MB, not overlapped with the backward pass."
    ]
    for ranks in PREDICTED:
        link, per_byte, per_hop = "the link as measured here", model.per_byte, model.per_hop
        if not networked:
            link, bandwidth, per_hop = ASSUMED_LINKS[ranks]
            link, per_byte = (
                f"assumed, not measured: {link}, {bandwidth / 1e9:g} GB/s, {per_hop * 1e6:g} us",
                1 / bandwidth,
            )
        there = StepTime(model.per_step, model.per_image, per_byte, per_hop)
        for kind, batch in batches.items():
            images = batch / ranks if kind == GLOBAL else batch
            seconds = there.seconds(ranks=ranks, images=images, gradient_bytes=gradient)
            ideal = ranks * batch / model.seconds(ranks=1, images=batch, gradient_bytes=gradient)
            found.append(
                f"Predicted, not measured: {ranks} workers, {kind}: {images * ranks / seconds:,.0f} images/s,"
                f" {images * ranks / seconds / ideal:.0%} of the ideal ({link})."
            )
    return found


def most_workers(place: Place) -> int:
    """The most workers that are tried: as asked for, or one per GPU or core. ResourceError for more than there are."""
    have = torch.cuda.device_count() if place.on_gpu else len(os.sched_getaffinity(0))
    if place.settings.workers > have:
        raise ResourceError(
            f"--workers {place.settings.workers} on a machine of {have} {'GPU' if place.on_gpu else 'core'}(s)",
            "Each worker that is measured has one of its own",
            f"Use --workers {have}, or leave it out",
        )
    return place.settings.workers or have


def worker_counts(most: int) -> list[int]:
    """1, 2, 4 ... and `most` itself."""
    powers = [1 << power for power in range(most.bit_length()) if 1 << power < most]
    return [*powers, most]


def worker_threads(most: int, place: Place) -> int:
    """Threads of each worker: alike for all numbers of them, else one worker would have more than its share."""
    return max(1, place.threads // most)


def run_ranks(recipe: Recipe, folder: Path, count: int, most: int, place: Place, **more: Any) -> list[Answer]:
    """`count` processes of our engine that train together; each one's answer."""
    number = len(list(place.scratch.glob("request-*.json")))
    meeting = place.scratch / f"rendezvous-{number}"
    order: dict[str, Any] = {"size": count, "rendezvous": str(meeting), "threads": worker_threads(most, place), **more}
    started = [start_ours(recipe, folder, place, rank=rank, **order) for rank in range(count)]
    try:
        return [answered(finish(each), f"worker {rank}") for rank, each in enumerate(started)]
    finally:
        for each in started:
            if each.process.poll() is None:  # a peer has failed: it would wait for it
                each.process.kill()
                each.process.wait()


def _side(recipe: Recipe, folder: Path, count: int, most: int, place: Place, observed: list[Observation]) -> Side:
    """Images per second of `count` workers; what the time model is fitted to is added to `observed`."""

    def measure(_: int) -> float:
        sizes = (4096, 1 << 20, 1 << 24) if count > 1 else ()
        answers = run_ranks(recipe, folder, count, most, place, steps=STEPS, reduce_bytes=sizes)
        line = answers[0].line
        gradient = FLOAT_BYTES * line["parameters"]
        seconds = line["step_seconds"]
        observed.append(Observation(seconds, count, recipe.batch_size / count, gradient))
        observed.extend(
            Observation(taken, count, 0, float(size), steps=0) for size, taken in line["reduce_seconds"].items()
        )
        return recipe.batch_size / seconds

    return measure
