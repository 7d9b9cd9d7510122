"""Checks this machine, or a whole Ray cluster: says what is wrong, why it matters, and how to mend it.

examples:
  python jobs/doctor.py                              this machine
  python jobs/doctor.py --address 10.0.0.1:6379      each node of a cluster too (inside a Ray job: by itself)
  python jobs/doctor.py --runs /mnt/runs --fix       storage of another folder; mends what can be mended safely
  python jobs/doctor.py --json > doctor.json         one JSON document, for programs and bug reports

exit codes: 0 healthy or only warnings, 1 an error was found, 2 the command line was not understood
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from program import place, run_program
from rich.console import Console

from distcifar.store import is_url


@dataclass(frozen=True)
class Command:
    """What to look at."""

    address: str = ""
    """HOST:PORT of a running head, whose nodes are checked too (default: $RAY_ADDRESS)."""
    runs: Annotated[str, tyro.conf.arg(metavar="DIR|URL")] = "runs"
    """Where runs are; the storage is tried."""
    data_root: Annotated[str, tyro.conf.arg(metavar="DIR|URL")] = "data"
    """Where prepared data are; the storage is tried, a URL by reading."""
    working_dir: Path = Path(__file__).parents[1]
    """What `ray job submit --working-dir` would upload: searched for secrets, and for its size."""
    fix: bool = False
    """Mend what can be mended safely, each act told; then look again."""
    json: bool = False
    """Print one JSON document and nothing else."""
    debug: bool = False
    """Show tracebacks of mistakes."""


def main(argv: list[str]) -> int:
    """Looks, mends if asked to, shows; returns the exit code."""
    chosen = tyro.cli(Command, args=argv, description=__doc__, prog="doctor.py", config=(tyro.conf.FlagCreatePairsOff,))
    from distcifar.doctor.examine import examine
    from distcifar.doctor.findings import exit_code
    from distcifar.doctor.fixes import fix
    from distcifar.doctor.gather import Place
    from distcifar.doctor.ray_here import living_temp
    from distcifar.doctor.screen import show

    console, aside = Console(highlight=False), Console(stderr=True, highlight=False, markup=False)
    places = {"runs": place(chosen.runs), "data": place(chosen.data_root)}
    stores = {name: url for name, url in places.items() if is_url(url)}
    folders = {name: Path(path).absolute() for name, path in places.items() if name not in stores}
    temp = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray")  # as Ray chooses it
    living = None if "RAY_TMPDIR" in os.environ else living_temp()  # of `ray start --temp-dir`
    here = Place(dict(os.environ), Path.home(), folders, chosen.working_dir.absolute(), temp, living, stores=stores)
    of_job = os.environ.get("RAY_ADDRESS", "")
    address = chosen.address or (of_job if "://" not in of_job else "")  # http:// is where jobs are submitted
    report = examine(here, address, aside.print)
    fixed = fix(report.findings, here, address, aside.print) if chosen.fix else []
    report = examine(here, address, aside.print) if fixed else report
    if chosen.json:
        json.dump(report.document(fixed), sys.stdout, indent=2)
    else:
        show(report.findings, console)
    return exit_code(report.findings)


if __name__ == "__main__":
    run_program(main)
