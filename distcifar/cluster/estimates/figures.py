"""What was measured for an estimate, kept in RUNS/.estimates for the runs that follow, a file for each kind of machine.

A run notes in run.json what is foretold of it, and tells in its summary how far that was off.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distcifar.cluster.estimates.estimate import Figures, Workload, estimate
from distcifar.cluster.facts import hardware
from distcifar.cluster.stored.places import runs_here
from distcifar.config import Recipe, RunSpec, from_dict, to_dict
from distcifar.errors import ConfigError, StorageError
from distcifar.files import write_json
from distcifar.tracking.startup import read_startup

# Of the specification, what changes the speed of a step.
SPEED = ("workers", "device", "cpus_per_worker", "loader", "loader_threads", "deterministic", "compile", "microbatch")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A recipe's counts and times on one kind of machine."""

    recipe: str
    date: str  # UTC, ISO 8601
    machine: str
    ranks: int
    on_gpu: bool
    work: Workload
    figures: Figures


def machine_of(facts: dict[str, Any], device: str) -> str:
    """The kind of machine in words: its GPU, or its processor. facts: run.json's hardware."""
    if facts["gpus"] and device != "cpu":
        return str(facts["gpus"][0])
    return f"{facts['cores']} cores of {facts['processor'] or 'an unknown processor'}"


def kind(recipe: Recipe, spec: RunSpec) -> str:
    """A short name for all trainings whose steps take the same time: of any seed and length."""
    alike = replace(recipe, seed=0, epochs=1, then=(), early_stop=0)
    text = json.dumps([alike.digest(), *(getattr(spec, name) for name in SPEED)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def keep(runs: Path, name: str, measured: Measured) -> None:
    """Writes what was measured of trainings of the kind `name`. Raises StorageError."""
    folder = _folder(runs)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{name}-{_short(measured.machine)}.json", to_dict(measured))
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written: {error.strerror or error}",
            "What was measured is kept there for the runs that follow",
            "Choose a folder that you may write, with --runs DIR",
        ) from error


def known(runs: Path, name: str) -> list[Measured]:
    """What was measured of trainings of the kind `name`, on any machine. Files of another version are passed over."""
    found = []
    for path in sorted(_folder(runs).glob(f"{name}-*.json")):
        try:
            found.append(from_dict(Measured, json.loads(path.read_text())))
        except (OSError, ValueError, TypeError, ConfigError):
            continue
    return found


def foretold(recipe: Recipe, spec: RunSpec) -> dict[str, Any]:
    """For run.json: what is known before the start of how long this run will take here; {} where nothing is."""
    runs = runs_here(spec.runs)
    if spec.address or not _folder(runs).is_dir():  # a cluster's machines are not this one
        return {}
    here = machine_of(hardware(), spec.device)
    measured = next((each for each in known(runs, kind(recipe, spec)) if each.machine == here), None)
    if measured is None:
        return {}
    found = estimate(recipe, spec, measured.work, measured.figures, measured.ranks, on_gpu=measured.on_gpu)
    return {"estimate": {"seconds": round(found.training, 3), "start": found.start, "measured": measured.date}}


def _folder(runs: Path) -> Path:
    return runs / ".estimates"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def measured_link(folder: Path, machine: str) -> tuple[float, float] | None:
    """Seconds of a byte and of a message of an all-reduce on `machine`, from the newest `jobs/benchmark.py scaling`.

    folder: of the benchmarks' results. None where none was measured with several workers on such a machine.
    """
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stem[-15:], reverse=True):  # PART-DATE
        try:
            told = json.loads(path.read_text())
            on_gpu = "cuda" if told["hardware"]["gpus"] else "cpu"
            models = [each["facts"]["step_time"] for each in told["comparisons"] if "step_time" in each["facts"]]
            here = machine_of(told["hardware"], on_gpu) == machine
            links = [(float(model["per_byte"]), float(model["per_hop"])) for model in models]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # of another version, or no benchmark's
        for link in links:
            if here and any(link):
                return link
    return None


def last_start(runs: Path, workers: int) -> float | None:
    """What the newest run below `runs` with so many workers took from the command to its first step."""
    told = sorted(runs.glob("*/startup.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    starts = (read_startup(path.parent) for path in told)
    return next((float(start["total"]) for start in starts if start and start["workers"] == workers), None)
