"""What W&B costs the training beside it."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from distcifar.benchmark.place import Place
from distcifar.benchmark.results import Comparison, lines_of
from distcifar.benchmark.rounds import by_turns, endless_training, seconds_of_steps
from distcifar.cluster.facts import collect_facts
from distcifar.config import Recipe, RunSpec, to_dict
from distcifar.data.prepare import PreparedData
from distcifar.files import write_json
from distcifar.tracking.identity import Identity, new_identity, write_identity
from distcifar.tracking.journal import Journal
from distcifar.tracking.shipping.content import step_values
from distcifar.tracking.shipping.ship import Shipping
from distcifar.tracking.shipping.tracker import Tracker
from distcifar.tracking.wandb.run import WandbRun
from distcifar.training.reports import Report, Row, StepReport

SETTLE_SECONDS = 8.0  # for the client to start: that is measured apart
NONE, SHIPPER, INSIDE = "without W&B", "beside the shipper", "client in the training's process"


def tracking(place: Place) -> list[Comparison]:
    """Blocks of steps by turns without W&B, beside the shipper, and with the client in this process, offline."""
    recipe = place.recipe("quick", batch_size=place.settings.batch_size)
    prepared, data = place.open(recipe)
    _, reports = endless_training(recipe, data, place)
    starts: list[float] = []

    def block(kind: str, number: int) -> float:
        run = place.scratch / f"{('none', 'shipper', 'inside')[(NONE, SHIPPER, INSIDE).index(kind)]}-{number}"
        identity = _begin(recipe, prepared, run)
        journal, begun = Journal(run), time.perf_counter()
        with _listener(kind, run, identity, place.environment) as listen:
            if kind == INSIDE:
                starts.append(time.perf_counter() - begun)

            def tell(report: Report) -> None:
                assert isinstance(report, StepReport)
                journal.append(report.rows)
                for row in report.rows:
                    listen(row)

            seconds_of_steps(reports, 1, tell)  # the first row is what starts the shipper
            time.sleep(0 if place.settings.quick else SETTLE_SECONDS)  # alike for all three
            return seconds_of_steps(reports, place.settings.steps, tell)

    sides = {kind: lambda number, kind=kind: block(kind, number) for kind in (NONE, SHIPPER, INSIDE)}
    found = by_turns(sides, place.settings.rounds, title="tracking")
    first_step = lines_of({"the client's start there": starts})
    notes = (
        f"{recipe.name}, offline, {place.settings.steps} steps of {recipe.batch_size}; evaluations are not counted.",
    )
    return [
        Comparison("W&B", "s", lines_of(found), NONE, more_is_better=False, notes=notes),
        Comparison("Before the first step", "s", first_step, more_is_better=False),
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
    if kind == NONE:
        yield lambda row: None
    elif kind == SHIPPER:
        tracker = Tracker(run, Shipping("offline", "none"), environment, announce=lambda text: None)
        yield tracker.listen
        tracker.close(60)
    else:
        inside = WandbRun(identity, run, {}, "offline")
        yield lambda row: inside.log(row["step"], step_values(row))
        inside.handle.finish()
