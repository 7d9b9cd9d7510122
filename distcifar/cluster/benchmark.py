"""What checkpoints and W&B cost the training that they go with."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from distcifar.cluster.facts import collect_facts
from distcifar.config import Recipe, RunSpec, to_dict
from distcifar.data.build import OpenData
from distcifar.data.prepare import PreparedData
from distcifar.files import write_json
from distcifar.tracking.identity import Identity, new_identity, write_identity
from distcifar.tracking.journal import Journal
from distcifar.tracking.shipping.content import step_values
from distcifar.tracking.shipping.ship import Shipping
from distcifar.tracking.shipping.tracker import Tracker
from distcifar.tracking.wandb.run import WandbRun
from distcifar.training.benchmark import measure_saving
from distcifar.training.build import build_state
from distcifar.training.engine import fit
from distcifar.training.reports import EpochReport, Report, Row
from distcifar.world import World

SETTLE_SECONDS = 8.0  # for the client to start: that is measured apart


@dataclass(frozen=True)
class Place:
    """Where a measurement works: a folder of its own, the data, and the environment of W&B's processes."""

    folder: Path
    prepared: PreparedData
    data: OpenData
    environment: Mapping[str, str]


def saving_cost(recipe: Recipe, place: Place, *, rounds: int, steps: int) -> list[tuple[str, str]]:
    """Blocks of `steps` steps by turns with one checkpoint and without; the first round is not counted."""
    found = measure_saving(recipe, place.data, place.folder, rounds=rounds, steps=steps)
    return [
        ("without a checkpoint", f"{found['without']:.2f} s"),
        (f"with one of {found['megabytes']:.0f} MB", f"{found['with']:.2f} s"),
        ("the loop stands still", f"{found['standstill'] * 1000:.0f} ms"),
        ("cost", f"{found['with'] / found['without'] - 1:.1%}"),
    ]


def tracking_cost(recipe: Recipe, place: Place, *, rounds: int, steps: int) -> list[tuple[str, str]]:
    """Blocks of `steps` steps by turns without W&B, beside the shipper, and with the client in this process, offline.

    The first round is not counted.
    """
    state = build_state(recipe, place.data, place.prepared.digest, World())
    state.set_precision("bf16" if recipe.precision == "auto" else recipe.precision)
    reports = fit(recipe, state, place.data.loaders, World())
    found: dict[str, list[float]] = {"none": [], "shipper": [], "inside": [], "start": []}
    for number in range(rounds + 1):
        for kind in ("none", "shipper", "inside"):
            run = place.folder / f"{kind}-{number}"
            identity = _begin(recipe, place.prepared, run)
            journal, begun = Journal(run), time.perf_counter()
            with _listener(kind, run, identity, place.environment) as listen:
                if kind == "inside":
                    found["start"].append(time.perf_counter() - begun)
                _train(reports, journal, listen, 1)  # the first row is what starts the shipper
                time.sleep(SETTLE_SECONDS)  # alike for all three
                found[kind].append(_train(reports, journal, listen, steps))
    none, shipper, inside = (statistics.median(found[kind][1:]) for kind in ("none", "shipper", "inside"))
    return [
        ("without W&B", f"{none:.2f} s"),
        ("beside the shipper", f"{shipper:.2f} s, {shipper / none - 1:+.1%}"),
        ("client in the training's process", f"{inside:.2f} s, {inside / none - 1:+.1%}"),
        ("its start there, before the first step", f"{found['start'][0]:.2f} s"),
    ]


def _begin(recipe: Recipe, prepared: PreparedData, run: Path) -> Identity:
    run.mkdir(parents=True)
    identity = new_identity(run.name, "benchmark")
    write_json(run / "recipe.json", to_dict(recipe))
    write_json(run / "run.json", collect_facts(RunSpec(), prepared.folder, prepared.digest))
    write_identity(run, identity)
    return identity


@contextmanager
def _listener(
    kind: str, run: Path, identity: Identity, environment: Mapping[str, str]
) -> Iterator[Callable[[Row], None]]:
    if kind == "none":
        yield lambda row: None
    elif kind == "shipper":
        tracker = Tracker(run, Shipping("offline", "none"), environment, announce=lambda text: None)
        yield tracker.listen
        tracker.close(60)
    else:
        inside = WandbRun(identity, run, {}, "offline")
        yield lambda row: inside.log(row["step"], step_values(row))
        inside.handle.finish()


def _train(reports: Iterator[Report], journal: Journal, listen: Callable[[Row], None], steps: int) -> float:
    """Seconds of `steps` steps with what is done with their rows; evaluations between them are not counted."""
    seconds = 0.0
    while steps:
        begun = time.perf_counter()
        report = next(reports)
        if isinstance(report, EpochReport):
            continue
        journal.append(report.rows)
        for row in report.rows:
            listen(row)
        seconds += time.perf_counter() - begun
        steps -= 1
    return seconds
