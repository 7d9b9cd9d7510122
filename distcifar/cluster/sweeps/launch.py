"""Recipe + space + SweepSpec -> a finished search: prepared data, its folder, trials on Ray Tune."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import ray

from distcifar.cluster.job import Announce
from distcifar.cluster.run_folder import only_launch
from distcifar.cluster.session import connected
from distcifar.cluster.sweeps.confirm import confirm
from distcifar.cluster.sweeps.room import Room, embedded_cpus, room_for
from distcifar.cluster.sweeps.search import Told, search
from distcifar.cluster.sweeps.shipping import Trials
from distcifar.config import Recipe, RunSpec
from distcifar.config.space import Point, Space
from distcifar.config.sweep import MODEL_BASED, SweepSpec
from distcifar.data.shared import shared_data
from distcifar.sweep.folder import SWEEP, Result, Sweep, trial_of, write_sweep
from distcifar.sweep.plan import planned_points
from distcifar.sweep.ranking import Confirmed, Ranked, Trial
from distcifar.sweep.winner import ranked_trials, require_exportable


def open_sweep(recipe: Recipe, space: Space, spec: SweepSpec, run: RunSpec, announce: Announce) -> Sweep:
    """The search, of what `checked_search` has checked: its data prepared, its folder not yet written."""
    require_exportable(spec.export)
    folder = Path(run.runs).absolute() / (run.name or f"sweep-{recipe.name}")
    data = shared_data(recipe.data, run.data_root, run.data_copies, run.source, announce=announce)
    run = replace(run, name="", runs="", resume="auto", keep_last=_kept(spec), keep_best=0)
    return Sweep(folder, recipe, space, spec, run, data.folder, data.digest)


@contextmanager
def sweep_on_ray(sweep: Sweep, run: RunSpec) -> Iterator[Room]:
    """The sweep's folder for this process alone, and a cluster with room for its trials."""
    with only_launch(sweep.folder):
        if run.overwrite and (sweep.folder / SWEEP).exists():
            shutil.rmtree(sweep.folder)
        write_sweep(sweep)
        with connected(run, 0 if run.address else embedded_cpus(sweep.spec)):
            yield room_for(sweep.spec, run, ray.cluster_resources())


def _kept(spec: SweepSpec) -> int:
    """Checkpoints that a trial keeps: with pbt others may take over a state of one exchange before."""
    return spec.grace + 2 if spec.scheduler == "pbt" else 1


@dataclass(frozen=True)
class SweepEnd:
    """How the command has ended."""

    stopped: bool
    failed: dict[str, str]  # runs given up after crashes, with the reason
    trials: list[Trial]
    ranked: list[Ranked]
    confirmed: list[Confirmed]


def run_sweep(
    sweep: Sweep, run: RunSpec, told: Told, announce: Announce, environment: Mapping[str, str] | None = None
) -> SweepEnd:
    """Searches and confirms; goes on with what is in the sweep's folder. Raises the error family.

    told: given each epoch's result. environment: of the processes that speak with W&B: the account's key may be in it.
    """
    with sweep_on_ray(sweep, run) as room, closing(Trials(sweep, environment or {}, announce)) as trials:
        announce(f"{room.concurrent} trial(s) at once with {room.cpus} CPU(s) and {room.gpus:g} GPU(s) a process")

        def heard(result: Result) -> None:
            trials.heard(result)
            told(result)

        ended = search(sweep, room, heard, announce)
        failed = [trial_of(name) for name in ended.failed]
        tried, ranked = ranked_trials(sweep, planned(sweep), failed, over=not ended.stopped)
        confirmed: list[Confirmed] | None = None
        if not ended.stopped:
            trials.over()
            confirmed = confirm(sweep, room, ranked, heard, announce)
        if confirmed is None:
            trials.stopped()
        else:
            trials.measured()
        return SweepEnd(confirmed is None, ended.failed, tried, ranked, confirmed or [])


def planned(sweep: Sweep) -> list[Point]:
    """The point of each trial that is known before it begins."""
    spec = sweep.spec
    points = [] if spec.search in MODEL_BASED else planned_points(sweep.recipe, sweep.space, spec)
    return [point for point in points for _ in range(sweep.spec.seeds)]
