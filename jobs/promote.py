"""The model registry: gives a trained model an alias such as staging or production, and takes it back.

examples:
  python jobs/promote.py first --to staging                the model of the run runs/first
  python jobs/promote.py v3 --to production                a version that the registry knows
  python jobs/promote.py runs/first/model --to production --reason "asked for by Ann"
  python jobs/promote.py --rollback production             back to what it was before; again: one further back
  python jobs/promote.py --list                            versions, aliases, accuracies; --history: each act
  python jobs/promote.py --pull production here            a copy of the model, verified
  python jobs/promote.py --sync                            W&B's registry is told what it has not been told

Where there is a W&B key, each act goes to W&B at once; --offline leaves that to a later --sync.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from program import folder, from_environment, run_program

from distcifar.config import RunSpec
from distcifar.tracking.registry import console
from distcifar.tracking.registry.registry import Registry
from distcifar.tracking.wandb.registry import sync
from distcifar.tracking.wandb.registry_pull import pull
from distcifar.tracking.wandb.run import has_key


@dataclass(frozen=True)
class Command:
    """One act: a model with --to, or one of --rollback, --list, --history, --pull, --sync."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN|MODEL")] = ""
    """A run's name or directory, a model's directory, or a version such as v3."""
    to: Annotated[str, tyro.conf.arg(metavar="ALIAS")] = ""
    """The alias that is to point at the model: staging, production, or any other."""
    rollback: Annotated[str, tyro.conf.arg(metavar="ALIAS")] = ""
    """Make this alias point at what it pointed at before."""
    list: bool = False
    """Show the versions."""
    history: bool = False
    """Show each act."""
    pull: Annotated[tuple[str, str], tyro.conf.arg(metavar="ALIAS DIR")] = ("", "")
    """Copy the model that has this alias (or version) to DIR; from W&B if the runs folder does not know it."""
    sync: bool = False
    """Tell W&B what it has not been told."""
    registry: str = "model"
    """The registry: runs/.registry/NAME here, wandb-registry-NAME in W&B."""
    runs: Annotated[str, tyro.conf.arg(metavar="DIR")] = "runs"
    """Folder of the runs."""
    force: bool = False
    """Promote in spite of a lower accuracy, of a choice on the test split, or of what has the alias in W&B."""
    reason: str = ""
    """Why, for the history."""
    offline: bool = False
    """Do not speak to W&B."""
    project: str = "distcifar"
    """W&B project of models whose run is not in W&B."""
    entity: str = ""
    """W&B team or user; empty: the account's default."""
    debug: bool = False
    """Show tracebacks of mistakes."""


def main(argv: list[str]) -> int:
    """Does the one act that is asked for; returns the exit code."""
    command = tyro.cli(
        Command, args=argv, description=__doc__, prog="promote.py", config=(tyro.conf.FlagCreatePairsOff,)
    )
    act = console.asked_act(vars(command))
    registry = Registry(folder(command.runs), command.registry)
    spec = from_environment(RunSpec(project=command.project, entity=command.entity))
    online = not command.offline and spec.wandb in ("auto", "online")
    console.require_online(act, online=online)
    if act in console.TABLES:
        console.show(console.TABLES[act](registry.state()))
    elif act == "pull":
        wanted, target = command.pull
        found = pull(registry, wanted, Path(target), online=online, entity=spec.entity)
        print(console.pull_text(found, target))
    elif act == "rollback":
        print(console.rollback_text(registry.rollback(command.rollback, reason=command.reason)), flush=True)
    elif act == "to":
        done = registry.promote(command.model, command.to, force=command.force, reason=command.reason)
        print(console.promotion_text(done, command.to), flush=True)
    if act == "sync" or (online and act in ("to", "rollback") and has_key()):
        asked = command.to or command.rollback
        sync(registry, project=spec.project, entity=spec.entity, asked=asked, force=command.force, announce=print)
    return 0


if __name__ == "__main__":
    run_program(main)
