"""Reports of runs: one HTML file that needs nothing else, and the same as a W&B report.

examples:
  python jobs/report.py first                       runs/first/report.html
  python jobs/report.py first second --out both.html    a comparison
  python jobs/report.py --group widths              all runs of a search
  python jobs/report.py first --html-only           nothing for W&B
  python jobs/report.py sync                        sends to W&B what it lacks of all runs, and the reports kept of them
  python jobs/report.py sync first                  of one run
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from program import command as typed
from program import folder, from_environment, run_program
from rich.console import Console

from distcifar.config import RunSpec
from distcifar.errors import ConfigError
from distcifar.recipes import RECIPES


@dataclass(frozen=True)
class Command:
    """Which runs, and where their report goes."""

    names: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[sync] RUN...")] = ()
    """Runs by name or directory. With the word sync before them (or alone, for all): send them to W&B."""
    group: Annotated[str, tyro.conf.arg(metavar="SWEEP")] = ""
    """All runs of this W&B group as well."""
    runs: Annotated[str, tyro.conf.arg(metavar="DIR")] = "runs"
    """Folder of the runs."""
    out: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """The HTML file (default: report.html in the run, or report-NAMES.html beside the runs)."""
    html_only: Annotated[bool, tyro.conf.arg(aliases=["--no-publish"])] = False
    """Nothing for W&B."""
    debug: bool = False
    """Show tracebacks of mistakes."""


def main(argv: list[str]) -> int:
    """Writes the report, or sends runs; returns the exit code."""
    command = tyro.cli(
        Command, args=argv, description=__doc__, prog="report.py", config=(tyro.conf.FlagCreatePairsOff,)
    )
    runs = folder(command.runs)
    os.environ.setdefault("WANDB_SILENT", "true")
    if command.names[:1] == ("sync",):
        return sync(command, runs)
    if not command.names and not command.group:
        raise ConfigError("No run is named", "A report is about runs", "python jobs/report.py RUN..., or --group SWEEP")
    from distcifar.insight.report import report_path, write_report
    from distcifar.insight.report_run import find_runs, read_run

    folders = find_runs(command.names, runs, command.group)
    records, default = [read_run(folder) for folder in folders], report_path(folders, runs, command.group)
    page = Path(command.out) if command.out else default
    write_report(records, page, runs=runs, group=command.group, known=RECIPES)
    print(f"Report: {page}", flush=True)
    if not command.html_only:
        from distcifar.insight.wandb_report import keep_and_publish

        spec = default.with_suffix(".json")
        online = os.environ.get("WANDB_MODE", "online") == "online"
        print(keep_and_publish(records, spec, runs=runs, group=command.group, known=RECIPES, online=online,
                               later=typed("sync", "--runs", str(runs))))  # fmt: skip
    return 0


def sync(command: Command, runs: Path) -> int:
    """Sends to W&B what it lacks of runs, what was promoted, and the reports that are kept of them."""
    from distcifar.insight.report_run import all_runs, find_runs
    from distcifar.insight.wandb_report import publish_kept
    from distcifar.tracking.shipping.sync import sync_registries, sync_runs, sync_table

    named = find_runs(command.names[1:], runs, command.group)
    folders = named or all_runs(runs)
    spec = from_environment(RunSpec())
    results = sync_runs(folders, print, project=spec.project, entity=spec.entity, named=bool(named))
    Console().print(sync_table(results))
    problems = sync_registries(runs, project=spec.project, entity=spec.entity, announce=print)
    problems += publish_kept(folders, only=bool(named), runs=runs, known=RECIPES, announce=print)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 2 if problems or any(result.missing for result in results) else 0


if __name__ == "__main__":
    run_program(main)
