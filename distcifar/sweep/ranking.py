"""What came of a search: its trials, the configurations in order, what the scheduler saved, who was confirmed.

All of it is computed from the lines of results.jsonl and is plain data: dataclasses.asdict makes JSON of it.
"""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from distcifar.config.space import Point
from distcifar.sweep.folder import Result, Sweep

State = Literal["finished", "stopped", "paused", "running", "failed"]


@dataclass(frozen=True)
class Trial:
    """One configuration trained with one seed; of pbt a chain of runs, of which the last one counts."""

    number: int
    run: str  # name of the newest run directory below trials/; empty where none has brought a result
    point: Point
    epochs: int  # trained, over all its runs
    score: float  # best validation accuracy of the newest run, 0-1, with what it was started from
    decision: str  # the last one: continue, stop or pause
    state: State
    curve: tuple[tuple[int, float], ...]  # epoch and validation accuracy; where runs follow each other the later one's
    seconds: float = 0.0  # of training, over all its runs
    problem: str = ""  # of a failed one: why, as far as results.jsonl tells

    @property
    def reached(self) -> int:
        """The epoch that its model has come to."""
        return self.curve[-1][0] if self.curve else 0

    def score_at(self, epoch: int) -> float:
        """The best validation accuracy up to `epoch`."""
        return max((accuracy for at, accuracy in self.curve if at <= epoch), default=0.0)


@dataclass(frozen=True)
class Ranked:
    """A configuration with all its seeds."""

    place: int  # from 1
    group: int
    point: Point
    trials: tuple[int, ...]  # those that count: failed ones only where all have failed
    scores: tuple[float, ...]  # theirs; of several at the last epoch that all of them came to: as equals
    mean: float
    error: float | None  # standard error of the mean; None of a single seed
    reached: int  # the last epoch that all of them came to
    states: tuple[State, ...]  # theirs


@dataclass(frozen=True)
class Savings:
    """Epochs that were trained against those of a search that stops nobody."""

    trials: int
    epochs: int
    full: int
    saved: float  # the share that was not trained; negative where pbt trains epochs again


@dataclass(frozen=True)
class Confirmed:
    """One of the best configurations, trained again at full length with seeds that the search has not seen."""

    group: int
    recipe_digest: str
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]  # on validation images, one a seed
    mean: float
    error: float | None
    winner: bool = False
    test: tuple[float, ...] = ()  # test accuracies, one a seed: of the winner alone, measured once


def trials_of(
    sweep: Sweep, results: Sequence[Result], points: Mapping[int, Point], failed: Collection[int] = ()
) -> list[Trial]:
    """All trials that have a result or have failed, by number.

    points: of each trial the newest; one that never began may have none. failed: trials that have, beyond those whose
    last result is a problem.
    """
    lines: dict[int, list[Result]] = {number: [] for number in failed}
    for result in results:
        lines.setdefault(result.trial, []).append(result)
    return [_trial(sweep, number, lines[number], points.get(number, {}), number in failed) for number in sorted(lines)]


def _trial(sweep: Sweep, number: int, lines: Sequence[Result], point: Point, failed: bool) -> Trial:  # noqa: FBT001
    last = lines[-1] if lines else None
    runs: dict[str, list[Result]] = {}
    for result in lines:
        if not result.problem:  # that epoch does not exist
            runs.setdefault(result.run, []).append(result)
    curve: dict[int, float] = {}
    for run in runs.values():
        curve = {epoch: accuracy for epoch, accuracy in curve.items() if epoch < run[0].epoch}
        curve |= {result.epoch: result.accuracy for result in run}
    trained = [result for run in runs.values() for result in run]
    return Trial(
        number=number,
        run=last.run if last else "",
        point=point,
        epochs=len(trained),
        score=trained[-1].score if trained else 0.0,
        decision=last.decision if last else "",
        state="failed" if failed or last is None or last.problem else _state(last, sweep.recipe.total_epochs),
        curve=tuple(curve.items()),
        seconds=sum(run[-1].seconds for run in runs.values()),
        problem=last.problem if last else "",
    )


def _state(last: Result, whole: int) -> State:
    if last.epoch >= whole:
        return "finished"
    return {"stop": "stopped", "pause": "paused"}.get(last.decision, "running")  # type: ignore[return-value]


def ranking(sweep: Sweep, trials: Sequence[Trial]) -> list[Ranked]:
    """Configurations by the mean of their seeds' scores; of equal ones the longer trained first, failed ones last."""
    groups: dict[int, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(sweep.group_of(trial.number), []).append(trial)
    rows = [_ranked(group, members) for group, members in groups.items()]
    rows.sort(key=lambda row: ("failed" in row.states, -row.mean, -row.reached, row.group))
    return [Ranked(**(vars(row) | {"place": place})) for place, row in enumerate(rows, start=1)]


def _ranked(group: int, members: Sequence[Trial]) -> Ranked:
    counted = [trial for trial in members if trial.state != "failed"] or members
    reached = min(trial.reached for trial in counted)
    scores = tuple(trial.score_at(reached) if len(counted) > 1 else trial.score for trial in counted)
    mean, error = mean_and_error(scores)
    return Ranked(
        place=0,
        group=group,
        point=counted[0].point,
        trials=tuple(trial.number for trial in counted),
        scores=scores,
        mean=mean,
        error=error,
        reached=reached,
        states=tuple(trial.state for trial in counted),
    )


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean of `values` and its standard error, which a single value does not have."""
    if len(values) == 1:
        return values[0], None
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def savings(sweep: Sweep, trials: Sequence[Trial]) -> Savings:
    """Of the trials that have begun: the epochs they trained, and those of each at full length."""
    trained, full = sum(trial.epochs for trial in trials), len(trials) * sweep.recipe.total_epochs
    return Savings(len(trials), trained, full, 1 - trained / full if full else 0.0)
