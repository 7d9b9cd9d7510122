"""A search on the screen: on a terminal a table that fits it, elsewhere a line for each epoch; a table at the end."""

import math
import time
from collections.abc import Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from distcifar.config.space import Point, Space, value_text
from distcifar.config.sweep import SweepSpec
from distcifar.sweep.folder import Result, Sweep, points_of_runs
from distcifar.sweep.plan import planned_points
from distcifar.sweep.ranking import Confirmed, Ranked

STATES = {"continue": "running", "noop": "running", "pause": "waiting", "stop": "stopped", "failed": "failed"}
CELL, OTHERS = 12, 48  # columns of the screen: of a searched field, of all else in a table's row
SPARE_LINES = 6  # of the terminal, for what is said beside the table


class SweepDisplay:
    """Shows results as they come."""

    def __init__(self, sweep: Sweep, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._sweep, self._last = sweep, dict[str, Result]()  # by the first run of a trial
        self._trials = trials_of_plan(sweep)
        self._points: dict[str, Point] = {}
        self._begun = time.monotonic()
        self._live = Live(get_renderable=self._table, console=self.console, refresh_per_second=2, transient=True)

    def __enter__(self) -> "SweepDisplay":
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """A sentence for the user."""
        self.console.print(text, markup=False)

    def show(self, result: Result) -> None:
        """One epoch of one trial."""
        self._last[result.run.partition("-e")[0]] = result
        if not self.console.is_terminal:
            self.say(line_of(result, self._sweep.recipe.total_epochs))

    def _table(self) -> RenderableType:
        """Trials that run first, then by score: as many as the terminal has lines for."""
        last = list(self._last.values())  # another thread adds to it
        ended = [r for r in last if _state(r, self._sweep) in ("finished", "stopped", "failed")]
        rows = sorted(last, key=lambda r: (r in ended, -r.score, r.trial))
        room = max(3, self.console.size.height - SPARE_LINES)
        fields = fitting(self._sweep.space, self.console.size.width)
        table = Table("trial", *map(short, fields), "epoch", "best", "rung", "state", box=None)
        for result in rows[:room]:
            point = self._point(result)
            cells = [cell(point, path) for path in fields]
            epoch = f"{result.epoch}/{self._sweep.recipe.total_epochs}"
            rung = str(rung_of(self._sweep.spec, result.epoch)) if self._sweep.spec.scheduler == "asha" else ""
            table.add_row(result.run, *cells, epoch, f"{result.score:.2%}", rung, _state(result, self._sweep))
        total = max(self._trials, len(last))
        done, seconds = len(ended), time.monotonic() - self._begun
        left = f", about {clock(seconds / done * (total - done))} left" if done and total > done else ""
        hidden = f" ({len(rows) - room} more trials)" if len(rows) > room else ""
        text = Text(f" {done}/{total} trials in {clock(seconds)}{left}{hidden}")
        return Group(table, ProgressBar(total=total, completed=done, width=24), text)

    def _point(self, result: Result) -> Point:
        if result.run not in self._points:
            self._points |= points_of_runs(self._sweep, [result])
        return self._points.get(result.run, {})


def trials_of_plan(sweep: Sweep) -> int:
    """How many trials the search is to have; a grid has as many points as it has."""
    points = planned_points(sweep.recipe, sweep.space, sweep.spec) if sweep.spec.search == "grid" else ()
    return (len(points) or sweep.spec.trials) * sweep.spec.seeds


def line_of(result: Result, epochs: int) -> str:
    """A result for a log."""
    if result.problem:
        return f"trial {result.run}  epoch {result.epoch}/{epochs}  failed: {result.problem}"
    decision = "" if result.decision in ("continue", "noop") or result.epoch == epochs else f"  {result.decision}"
    accuracy = f"acc {result.accuracy:.2%}  best {result.score:.2%}"
    return f"trial {result.run}  epoch {result.epoch}/{epochs}  {accuracy}{decision}"


def rung_of(spec: SweepSpec, epoch: int) -> int:
    """How many of asha's rungs lie at or below `epoch`."""
    return 0 if epoch < spec.grace else int(math.log(epoch / spec.grace) / math.log(spec.reduction) + 1e-9) + 1


def fitting(space: Space, width: int) -> tuple[str, ...]:
    """As many searched fields, the first ones, as a table of that width has room for; ranking.json has all."""
    return space.paths[: max(1, (width - OTHERS) // CELL)]


def ranking_table(ranked: Sequence[Ranked], space: Space, width: int = 80, most: int = 10) -> Table:
    """The best configurations, in a table for a screen of `width` columns."""
    fields = fitting(space, width)
    table = Table("", "trial", *map(short, fields), "epochs", "validation", title="Ranking")
    for row in ranked[:most]:
        cells = [cell(row.point, path) for path in fields]
        error = f" +- {row.error:.2%}" if row.error is not None else ""
        trials = ",".join(f"{number:03d}" for number in row.trials)
        table.add_row(str(row.place), trials, *cells, str(row.reached), f"{row.mean:.2%}{error}")
    return table


def confirmed_table(confirmed: Sequence[Confirmed], names: Mapping[int, str]) -> Table:
    """The best ones with new seeds; the winner's test accuracy."""
    table = Table("configuration", "seeds", "validation", "mean", "test", title="Confirmation")
    for row in confirmed:
        mean = f"{row.mean:.2%}" + (f" +- {row.error:.2%}" if row.error is not None else "")
        test = ", ".join(f"{value:.2%}" for value in row.test)
        seeds = ", ".join(map(str, row.seeds))
        accuracies = ", ".join(f"{value:.2%}" for value in row.accuracies)
        name = names.get(row.group, str(row.group)) + (" *" if row.winner else "")
        table.add_row(name, seeds, accuracies, mean, test, style="bold" if row.winner else "")
    return table


def cell(point: Point, path: str) -> str:
    """The point's value of a field in a table; empty where the field is not active."""
    value = point.get(path, "")
    return f"{value:.3g}" if isinstance(value, float) else value_text(value)


def short(path: str) -> str:
    """A field's own name, for heads of narrow columns: lr of optim.lr, and schedule of schedule.name."""
    return path.removesuffix(".name").rpartition(".")[2]


def clock(seconds: float) -> str:
    """Minutes and seconds, or hours."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _state(result: Result, sweep: Sweep) -> str:
    return "finished" if result.epoch >= sweep.recipe.total_epochs else STATES.get(result.decision, "running")
