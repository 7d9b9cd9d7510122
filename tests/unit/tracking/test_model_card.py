"""A model's README: it loads what it says, tells the figures, and no text from outside breaks or spoils it."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distcifar.config import DataConfig, ModelConfig, Recipe, Stage, to_dict
from distcifar.tracking.model_card import model_card
from distcifar.training.checkpoint import save_model
from tests.support import NORM_CNN, differing_tensors, fresh, small_recipe

NAMES = ("cat", "a | b", "<b>dog</b>", "`鸟`")
FACTS = {
    "started": "2026-11-22T09:00:00+00:00",
    "git_commit": "0123abcd+",
    "python": "3.11.9",
    "data_folder": "/home/ada/data/cifar10-val5000",
    "packages": {"torch": "2.15.0", "ffcv": "1.0.2", "wandb": None},
    "hardware": {"host": "ada-laptop", "processor": "AMD EPYC", "cores": 2, "memory_bytes": 1, "gpus": ["RTX 4090"]},
    "parent": {
        "checkpoint": "/home/ada/runs/first/checkpoints/step-00000264",
        "manifest_sha256": "9f" * 32, "recipe_digest": "feed" * 4, "step": 264,
    },
}  # fmt: skip


def summary(**changes: Any) -> dict[str, Any]:
    found = {
        "recipe": "small", "test_accuracy": 0.8235, "test_loss": 0.77071, "selected_on": "validation",
        "select_metric": "accuracy", "best_metric": 0.8333, "best_epoch": 22, "epochs": 30, "steps": 900,
        "outcome": "finished", "seconds": 12.3, "images_per_s": 1.0, "parameters": 1010, "workers": 2,
        "device": "cpu", "precision": "fp32", "loader": "resident",
        "per_class_accuracy": {name: [0.5, 0.75, None, 1.0][i] for i, name in enumerate(NAMES)},
        "confusion": [[1, 1, 0, 0], [2, 6, 0, 0], [0, 0, 0, 0], [0, 0, 0, 7]],
        "recipe_digest": "b99ecfd7ca9e923a", "data_digest": "d" * 64,
    }  # fmt: skip
    return {**found, **changes}


def card(names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    return {
        "recipe_digest": "b99ecfd7ca9e923a", "data_digest": "d" * 64, "class_names": list(names),
        "input": {"channels": 3, "size": 8}, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25],
        "best_epoch": 22, "step": 900,
    }  # fmt: skip


def text(recipe: Recipe | None = None, facts: dict[str, Any] = FACTS, **changes: Any) -> str:
    return model_card(to_dict(recipe or small_recipe(model=NORM_CNN)), facts, summary(**changes), card())


def tables(markdown: str) -> dict[str, list[str]]:
    """First cell -> the others, of all rows of all tables; each row has as many cells as its table's head."""
    rows: dict[str, list[str]] = {}
    width = 0
    for line in markdown.splitlines():
        cells = re.split(r"(?<!\\)\|", line)[1:-1] if line.startswith("|") else []
        if not cells:
            width = 0
            continue
        width = width or len(cells)
        assert len(cells) == width, line
        first, *rest = (re.sub(r"\\(.)", r"\1", cell.strip()) for cell in cells)
        rows[first] = rest
    return rows


def run_code(markdown: str) -> dict[str, Any]:
    """What the card's own code leaves."""
    (code,) = re.findall(r"```python\n(.*?)```", markdown, flags=re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)
    return found


FINE_TUNED = ModelConfig(name="torchvision-resnet18", pretrained=True, freeze=True)


@pytest.mark.parametrize("model", [NORM_CNN, FINE_TUNED], ids=["cnn", "fine-tuned"])
def test_its_code_loads_the_model(model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A fine-tuned one too, for which no first weights are looked for."""
    state, _ = fresh(small_recipe(model=replace(model, pretrained=False, freeze=False)))
    recipe = small_recipe(model=model)
    save_model(tmp_path / "model", state, card(), {"README.md": text(recipe)})
    (tmp_path / "model/recipe.json").write_text(json.dumps(to_dict(recipe)))
    monkeypatch.chdir(tmp_path / "model")
    loaded = run_code((tmp_path / "model/README.md").read_text())["model"]
    assert differing_tensors(loaded.state_dict(), state.model.state_dict()) == []
    images = torch.randn(2, 3, 8, 8)
    state.model.eval()
    torch.testing.assert_close(loaded(images), state.model(images))


def test_figures_and_facts_are_told():
    found = tables(text(small_recipe(model=NORM_CNN, tta="flip", then=(Stage(epochs=3, lr=0.01),))))
    assert found["test accuracy"] == ["82.35% of 17 images"]
    assert found["test loss"] == ["0.7707 (cross-entropy)"]
    assert found["epoch"] == ["22 of 30 (the best validation accuracy, 0.8333)"]
    assert "mirror image" in found["predictions"][0]
    assert found["data digest"] == ["d" * 64]
    assert found["epochs"] == ["2, then 3 at 0.01 (900 steps, finished)"]
    assert found["trained by"] == ["2 worker(s) on cpu, 12 s"]
    assert found["machine"] == ["AMD EPYC, 2 cores, RTX 4090"]
    assert found["packages"] == ["torch 2.15.0, ffcv 1.0.2"]
    assert found["git commit"] == ["0123abcd (with changes)"]
    assert found["began from"][0].startswith("first/checkpoints/step-00000264 (recipe feedfeed")
    assert found["0"] == ["cat", "2", "50.00%"]
    assert found["2"] == ["<b>dog</b>", "0", "no test image"]


def test_of_facts_that_are_not_there_nothing_is_told():
    found = tables(text(facts={}))
    assert "trained by" in found
    assert not found.keys() & {"begun", "machine", "Python", "packages", "git commit", "began from"}


@pytest.mark.parametrize(("split", "warned"), [("test", True), ("validation", False), ("last", False)])
def test_a_choice_on_the_test_split_is_warned_of(split: str, warned: bool):
    assert ("> **Chosen on the test split.**" in text(selected_on=split)) == warned


def test_no_path_and_no_host_is_in_it():
    """A card is published with the model."""
    for dataset in ("npz:/home/ada/pets.npz", "/home/ada/pets/", "pets"):
        found = text(small_recipe(data=DataConfig(dataset=dataset, validation=24)))
        assert "pets" in tables(found)["data"][0]
        assert "ada" not in found


def test_what_evaluation_does_to_the_size_is_told():
    augment = {"random_resized_crop": 224, "center_crop": 200}
    recipe = to_dict(small_recipe())
    found = model_card(recipe | {"augment": recipe["augment"] | augment}, {}, summary(), card())
    assert "the central 200 pixels cut out, resized to 224 x 224" in found


@given(st.lists(st.text(max_size=12), min_size=4, max_size=4, unique=True))
def test_no_class_name_breaks_a_table_or_begins_something_else(names: list[str]):
    per_class = dict.fromkeys(names, 0.5)
    found = model_card(to_dict(small_recipe()), FACTS, summary(per_class_accuracy=per_class), card(tuple(names)))
    plain = text()
    assert found.count("\n") == plain.count("\n")
    assert [line for line in found.splitlines() if line.startswith(("#", "```", ">"))] == [
        line for line in plain.splitlines() if line.startswith(("#", "```", ">"))
    ]
    for number, name in enumerate(names):
        shown = " ".join("".join(char if char.isprintable() else " " for char in name).split())
        assert tables(found)[str(number)][0] == shown


@pytest.mark.parametrize(
    "name", ["<script>", "[a](http://b)", "![x](y)", "`c`", "**b**", "a_b_c", "$x$", "&amp;", "\\"]
)
def test_nothing_in_a_name_means_anything(name: str):
    names = (name, "b", "c", "d")
    found = model_card(to_dict(small_recipe()), {}, summary(per_class_accuracy=dict.fromkeys(names, 1.0)), card(names))
    (line,) = [line for line in found.splitlines() if line.startswith("| 0 |")]
    cell = line.split(" | ", 1)[1]
    assert re.search(r"(?<!\\)(\\\\)*[<\[*`_$&]", cell) is None
