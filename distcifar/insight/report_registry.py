"""The registry versions that hold weights of the runs of a report."""

from collections.abc import Iterable, Mapping, Sequence
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
    """Versions with the weights of these runs, newest first, and what could not be read.

    Not by the runs' names: a run may have been renamed, or its name have been given to another one.
    """
    weights = {str(run.summary["model_sha256"]): run.name for run in records if run.summary.get("model_sha256")}
    found: list[Version] = []
    problems: list[str] = []
    for log in sorted(runs.glob(".registry/*/log.jsonl")):
        try:
            found += _versions(log.parent.name, fold(read_acts(log)), weights)
        except RegistryError as error:
            problems.append(str(error))
    return sorted(found, key=lambda row: row.time, reverse=True), problems


def _versions(registry: str, state: State, weights: Mapping[str, str]) -> Iterable[Version]:
    for version in state.versions:
        act = state.newest(version)
        if act.digest not in weights:
            continue
        aliases = tuple(alias for alias, at in state.aliases.items() if at == version)
        yield Version(registry, version, aliases, weights[act.digest], act.wandb, act.test_accuracy, act.time, act.who)
