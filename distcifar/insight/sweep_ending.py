"""The end of a search, told: files in its folder, pictures, the page, tables on the screen."""

from collections.abc import Mapping, Sequence

from rich.console import Console

from distcifar.config import Recipe
from distcifar.errors import DistcifarError
from distcifar.insight.report import report_path
from distcifar.insight.report_run import find_runs, read_run
from distcifar.insight.sweep_plots import draw_sweep
from distcifar.insight.sweep_report import write_sweep_report
from distcifar.sweep.folder import Sweep
from distcifar.sweep.ranking import Confirmed, Ranked, Trial
from distcifar.sweep.screen import confirmed_table, ranking_table
from distcifar.sweep.winner import ending_of, write_ending


def present(
    sweep: Sweep,
    trials: Sequence[Trial],
    ranked: Sequence[Ranked],
    confirmed: Sequence[Confirmed],
    console: Console,
    export: str = "",
) -> None:
    """Writes ranking.json, best.json, the pictures and sweep.html, and shows what matters of them.

    Raises StorageError where no trial has come to a result.
    """
    ending = ending_of(sweep, trials, ranked, confirmed)
    paths = write_ending(sweep, ending, export)
    paths += draw_sweep(sweep, trials, sweep.folder)
    page = sweep.folder / "sweep.html"
    write_sweep_report(sweep, ending, page)
    console.print(ranking_table(ranked, sweep.space, console.size.width))
    if confirmed:
        console.print(confirmed_table(confirmed, {row.group: f"{row.trials[0]:03d}" for row in ranked}))
    saved = ending.savings
    console.print(f"Trained {saved.epochs} epochs where {saved.full} would have been all: {saved.saved:.0%} saved.")
    console.print(
        "Most decisive: " + (", ".join(f.path for f in ending.importance.fields if f.clear) or "nothing beyond chance")
    )
    console.print(f"Results: {sweep.folder} ({', '.join(path.name for path in [*paths, page])})")


def publish(sweep: Sweep, known: Mapping[str, Recipe], *, online: bool, later: str) -> str:
    """The W&B report of the search's group, kept beside the search and, `online`, published; a sentence about it.

    known: recipes as they are published. later: the command that publishes it another time.
    """
    from distcifar.insight.wandb_report import keep_and_publish  # two seconds of imports

    runs, group = sweep.folder.parent, sweep.folder.name
    try:
        folders = find_runs((), runs, group)
        path = report_path(folders, runs, group).with_suffix(".json")
        records = [read_run(folder) for folder in folders]
        return keep_and_publish(records, path, runs=runs, group=group, known=known, online=online, later=later)
    except DistcifarError as error:  # a search is not lost for its page
        return f"No W&B report: {error}"
