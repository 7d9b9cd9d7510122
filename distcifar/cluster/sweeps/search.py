"""A sweep on Ray Tune: from its folder to the end of its trials, whatever was done of it before."""

import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from distcifar.cluster.aside import answer_of
from distcifar.cluster.job import Announce
from distcifar.cluster.stopping import StopRequest, stop_on_signals
from distcifar.cluster.sweeps.room import WAITING, Room
from distcifar.cluster.sweeps.schedulers import make_scheduler, metric_of, plain_scheduler
from distcifar.cluster.sweeps.searchers import Listed, Unrecognised, config_of, make_searcher
from distcifar.cluster.sweeps.trial import TrialProcess
from distcifar.config.space import Point
from distcifar.config.sweep import MODEL_BASED, SweepSpec
from distcifar.errors import StorageError
from distcifar.sweep.folder import CONFIRMED, RESULTS, Result, Results, Sweep
from distcifar.sweep.plan import planned_points

FOLLOW_SECONDS = 0.2
Told = Callable[[Result], None]


@dataclass(frozen=True)
class Ended:
    """How Tune's part has ended."""

    stopped: bool  # by the user
    failed: dict[str, str]  # runs that were given up after crashes, with the last reason
    results: tuple[dict[str, Any], ...]  # the last one of each trial, as Tune has it


def search(sweep: Sweep, room: Room, told: Told, announce: Announce) -> Ended:
    """Tries what the sweep's specification says; goes on where its folder says that it was."""
    spec, results = sweep.spec, Results(sweep.folder)
    scheduler = make_scheduler(spec, sweep.space, sweep.recipe.total_epochs, results, told)
    common = {"sweep": str(sweep.folder), "results": RESULTS, "measure": False, "cpus": room.cpus}
    if spec.search in MODEL_BASED:
        searcher, trials = make_searcher(sweep, room.concurrent), spec.trials * spec.seeds
    else:
        configs = configs_of(sweep, planned_points(sweep.recipe, sweep.space, spec))
        searcher, trials = Listed(configs), len(configs)
    return _fit(sweep, room, common, scheduler, searcher, trials, announce)


def rerun(
    sweep: Sweep,
    room: Room,
    configs: Sequence[dict[str, Any]],
    told: Told,
    announce: Announce,
    *,
    measure: bool = False,
) -> Ended:
    """Trains `configs` (searchers.config_of) to their ends, for the confirmation; with `measure` the test images."""
    common = {"sweep": str(sweep.folder), "results": CONFIRMED, "measure": measure, "cpus": room.cpus}
    results = Results(sweep.folder, CONFIRMED)
    scheduler = plain_scheduler(results, told)
    return _fit(sweep, room, common, scheduler, Listed(configs), len(configs), announce)


def configs_of(sweep: Sweep, points: Sequence[Point]) -> list[dict[str, Any]]:
    """Of each point as many trials as there are seeds."""
    seeds, first = sweep.spec.seeds, sweep.recipe.seed
    numbered = [(n, points[n // seeds]) for n in range(len(points) * seeds)]
    return [config_of(number, point, first + number % seeds) for number, point in numbered]


def _fit(
    sweep: Sweep,
    room: Room,
    common: dict[str, Any],
    scheduler: TrialScheduler,
    searcher: Searcher,
    trials: int,
    announce: Announce,
) -> Ended:
    """Tuner.fit() in a thread: this one takes the signals. `common`: what the configs of all trials hold."""
    storage = sweep.folder / "ray" / uuid.uuid4().hex[:8]  # new each time: nothing is read from it
    stopping = Stopping()
    tuner = tune.Tuner(
        tune.with_resources(TrialProcess, _resources(sweep.spec, room)),
        param_space=common,
        tune_config=_tune_config(sweep.spec, room, scheduler, searcher, trials),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(storage),
            verbose=0,
            stop=stopping,
            failure_config=tune.FailureConfig(max_failures=sweep.spec.retries),
        ),
    )
    answer = answer_of(tuner.fit)
    with _asked_to_stop(sweep, stopping, announce):
        while answer.empty():
            time.sleep(FOLLOW_SECONDS)
    found = answer.get()
    shutil.rmtree(storage, ignore_errors=True)
    if stopping.unwritable:
        raise StorageError(stopping.unwritable, "", "")  # its rule and remedy are in it
    if isinstance(found, BaseException):
        raise found
    failed = {str(r.config["run"]): str(r.error).strip().splitlines()[-1] for r in found if r.error}
    return Ended(stopping.asked, failed, tuple(dict(r.metrics or {}) for r in found if not r.error))


def _resources(spec: SweepSpec, room: Room) -> tune.PlacementGroupFactory:
    """What Ray keeps for a trial. Several workers have placement groups of their own: beside them it takes no CPU."""
    alone = {"CPU": room.claim} | ({"GPU": room.gpus} if room.gpus else {})
    return tune.PlacementGroupFactory([alone if spec.workers_per_trial == 1 else {"memory": 1.0}])


def _tune_config(
    spec: SweepSpec, room: Room, scheduler: TrialScheduler, searcher: Searcher, trials: int
) -> tune.TuneConfig:
    return tune.TuneConfig(
        metric=metric_of(spec),
        mode="max",
        scheduler=scheduler,
        search_alg=Unrecognised(searcher) if spec.scheduler == "pbt" else searcher,
        num_samples=trials,
        # Trials that wait for others are counted as well: there the room is the only limit.
        max_concurrent_trials=None if spec.scheduler in WAITING else room.concurrent,
        reuse_actors=True,
        trial_name_creator=lambda trial: trial.config["run"],
        trial_dirname_creator=lambda trial: trial.config["run"],
    )


class Stopping(tune.Stopper):
    """Ends all trials once the user has asked for it, or one of them could not write."""

    def __init__(self) -> None:
        self.asked, self.unwritable = False, ""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether this trial is to end now; the scheduler's affair."""
        self.unwritable = self.unwritable or result.get("unwritable", "")
        return False

    def stop_all(self) -> bool:
        """Whether all are."""
        return self.asked or bool(self.unwritable)


@contextmanager
def _asked_to_stop(sweep: Sweep, stopping: Stopping, announce: Announce) -> Iterator[None]:
    """Ctrl-C and SIGTERM: the running trials save at the step they are in, and no other begins."""

    class Request(StopRequest):
        def make(self, reason: str = "") -> None:
            stopping.asked = True
            for folder in sweep.trials.iterdir():
                if (folder / "checkpoints").exists():
                    StopRequest(folder).make(reason)

    with stop_on_signals(Request(sweep.folder), announce):
        yield
