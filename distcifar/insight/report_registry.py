"""The registry versions that hold weights of the runs of a report."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from distcifar.errors import RegistryError
from distcifar.insight.report_run import RunRecord
from distcifar.tracking.registry.log import State, fold, read_acts


@dataclass(frozen=True)
class Version:
    """A version of a registered model, and what points at it now."""

    registry: str
    version: str
    aliases: tuple[str, ...]
    run: str
    wandb: str  # (ENTITY/)PROJECT/ID of the run in W&B; empty: it is not there
    accuracy: float
    time: str
    who: str


def registry_rows(runs: Path, records: Sequence[RunRecord]) -> tuple[list[Version], list[str]]:
    """Versions made of these runs, newest first, and what could not be read."""
    names = {run.name for run in records}
    found: list[Version] = []
    problems: list[str] = []
    for log in sorted(runs.glob(".registry/*/log.jsonl")):
        try:
            found += [row for row in _versions(log.parent.name, fold(read_acts(log))) if row.run in names]
        except RegistryError as error:
            problems.append(str(error))
    return sorted(found, key=lambda row: row.time, reverse=True), problems


def _versions(registry: str, state: State) -> Iterable[Version]:
    for version in state.versions:
        act = state.newest(version)
        aliases = tuple(alias for alias, at in state.aliases.items() if at == version)
        run = Path(act.run).name
        yield Version(registry, version, aliases, run, act.wandb, act.test_accuracy, act.time, act.who)
