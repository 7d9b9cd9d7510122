"""What ten thousand runs, and a registry of as many versions, cost who looks for one of them or adds one."""

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from distcifar.benchmark.simulated_ranks import Seconds, require, timed
from distcifar.cluster.run_folder import claim_run, only_launch, run_folder
from distcifar.config import DataConfig, Recipe, RunSpec, to_dict
from distcifar.errors import RegistryError
from distcifar.files import sha256_of, write_json
from distcifar.insight.report_run import all_runs, find_runs, read_run
from distcifar.sealed import seal
from distcifar.tracking.registry.gates import find_model
from distcifar.tracking.registry.log import Act
from distcifar.tracking.registry.registry import Registry

RECIPE = Recipe(name="simulated", data=DataConfig(dataset="synthetic", validation=256))
DATA, CLASSES = "d" * 64, ("cat", "dog")
GROUPS = 10
ALIAS = "staging"
NEW = "new"


def run_cost(count: int, runs: Path) -> Seconds:
    """Finding, listing, reading and claiming runs in a folder of so many."""
    for number in range(count):
        make_run(runs / f"run-{number:05d}", group=f"group-{number % GROUPS}")
    last, spec = f"run-{count - 1:05d}", RunSpec(runs=str(runs), name=NEW, wandb="disabled")
    listed, listing = timed(lambda: all_runs(runs))
    named, naming = timed(lambda: find_runs([last], runs))
    members, grouping = timed(lambda: find_runs([], runs, "group-1"))
    _, reading = timed(lambda: read_run(named[0]))
    _, answering = timed(lambda: _ask_for_nobody(runs))
    _, claiming = timed(lambda: claim(spec))
    grouped = len(range(1, count, GROUPS))
    require((len(listed), len(members)) == (count, grouped), f"{len(listed)} runs of {count} are listed")
    require((runs / NEW / "run.json").exists(), f"{runs / NEW} is no run directory")
    return {
        "all are listed": listing,
        "one is found by its name": naming,
        "those of a W&B group are found": grouping,
        "one is read for a report": reading,
        "a name that is no run is answered": answering,
        "a new name is claimed": claiming,
    }


def make_run(folder: Path, *, group: str = "") -> None:
    """A small finished run directory, by the names of docs/runs.md. Nothing is flushed: what counts is the reading."""
    folder.mkdir(parents=True)
    row = {"kind": "epoch", "step": 10, "epoch": 1, "train/loss": 1.0, "train/accuracy": 0.5, "train/lr": 0.1,
           "validation/loss": 1.0, "validation/accuracy": 0.5, "best_epoch": 1, "seconds": 2.0}  # fmt: skip
    event = {"time": "2025-01-01T00:00:00+00:00", "kind": "finished", "text": "test accuracy 0.5000"}
    identity = {"id": folder.name, "name": folder.name, "project": "p", "entity": "", "group": group}
    files: dict[str, Any] = {
        "recipe.json": to_dict(RECIPE), "run.json": {"data_digest": DATA}, "tracking.json": identity,
        "summary.json": summary(), "metrics.jsonl": row, "events.jsonl": event,
    }  # fmt: skip
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value) + "\n")


def summary(**more: Any) -> dict[str, Any]:
    """A finished run's, as far as reports and the registry ask for it."""
    return {
        "recipe": RECIPE.name, "test_accuracy": 0.5, "selected_on": "validation", "data_digest": DATA,
        "outcome": "finished", "best_epoch": 1, **more,
    }  # fmt: skip


def claim(spec: RunSpec) -> None:
    """As a launch does it."""
    folder = run_folder(RECIPE, spec)
    with only_launch(folder):
        claim_run(RECIPE, spec, folder, {"data_digest": DATA})


def _ask_for_nobody(runs: Path) -> None:
    with suppress(RegistryError):
        require(not find_model("nobody", runs), "A run is found that nobody has made")


def registry_cost(count: int, runs: Path) -> Seconds:
    """Reading a log of so many versions, asking who holds an alias, promoting one more."""
    registry = Registry(runs, "model")
    registry.folder.mkdir(parents=True)
    (registry.folder / "log.jsonl").write_text("".join(json.dumps(asdict(act)) + "\n" for act in acts(count)))
    make_model(runs / NEW)
    state, reading = timed(registry.state)
    holder, asking = timed(lambda: state.holder(ALIAS))
    promoted, promoting = timed(lambda: registry.promote(NEW, ALIAS))
    require(holder is not None and holder.version == f"v{count}", f"The holder after {count} versions is {holder}")
    require(promoted.version == f"v{count + 1}", f"{promoted.version} comes after {count} versions")
    return {"its log is read": reading, "who holds an alias": asking, "a model is promoted": promoting}


def acts(count: int) -> list[Act]:
    """So many promotions to one alias, each of another model."""
    return [
        Act(
            time="2025-01-01T00:00:00+00:00", act="promote", alias=ALIAS, version=f"v{number + 1}",
            before=f"v{number}" if number else "", digest=f"{number:064x}", recipe=RECIPE.name, run=f"run-{number:05d}",
            wandb="", test_accuracy=0.5, data_digest=DATA, class_names=CLASSES, who="user@host",
            forced=False, reason="",
        )
        for number in range(count)
    ]  # fmt: skip


def make_model(run: Path) -> None:
    """A finished run with a whole, sealed model of a few bytes."""
    make_run(run)
    model = run / "model"
    model.mkdir()
    save_file({"head.weight": torch.zeros(2, 3)}, model / "model.safetensors")
    write_json(model / "model.json", {"class_names": list(CLASSES), "data_digest": DATA})
    write_json(model / "recipe.json", to_dict(RECIPE))
    seal(model)
    write_json(run / "summary.json", summary(model_sha256=sha256_of(model / "model.safetensors")))
