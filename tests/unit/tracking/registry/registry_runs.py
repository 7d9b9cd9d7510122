"""Finished runs with real, sealed models of a few bytes."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from distcifar.files import sha256_of, write_json
from distcifar.sealed import seal
from distcifar.tracking.registry.registry import Registry

DATA = "d" * 64
CLASSES = ("cat", "dog", "椅子")


def registry(runs: Path, name: str = "model") -> Registry:
    return Registry(runs, name)


def make_run(
    runs: Path,
    name: str,
    accuracy: Any = 0.9,
    *,
    weights: int | None = None,
    recipe: str = "quick",
    classes: tuple[str, ...] = CLASSES,
    data: str = DATA,
    wandb: str = "",
    **summary: Any,
) -> Path:
    """A run directory. weights: a number that they are made from; without it, from the name. None drops a key."""
    folder, model = runs / name, runs / name / "model"
    model.mkdir(parents=True)
    seed = sum(map(ord, name)) * 7919 + len(name) if weights is None else weights
    tensor = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed))
    save_file({"head.weight": tensor}, model / "model.safetensors")
    write_json(model / "model.json", {"class_names": list(classes), "data_digest": data})
    write_json(model / "recipe.json", {"name": recipe})
    (model / "README.md").write_text(f"# {recipe}\n")
    seal(model)
    write_json(folder / "run.json", {"data_digest": data})
    if wandb:
        *entity, project, key = wandb.split("/")
        identity = {"id": key, "name": name, "project": project, "entity": "".join(entity), "group": ""}
        write_json(folder / "tracking.json", identity)
    facts = {
        "recipe": recipe,
        "test_accuracy": accuracy,
        "selected_on": "validation",
        "data_digest": data,
        "model_sha256": sha256_of(model / "model.safetensors"),
        **summary,
    }
    write_json(folder / "summary.json", {key: value for key, value in facts.items() if value is not None})
    return folder


def log_lines(runs: Path, name: str = "model") -> list[dict[str, Any]]:
    """The lines of a registry's log."""
    return [json.loads(line) for line in (runs / ".registry" / name / "log.jsonl").read_text().splitlines()]


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
