"""README.md of a model: what it is, how to load it, how it was trained, what was measured. It may be published.

So there are no paths, hosts or users in it; a text from outside (a class name, a data set's) cannot break its tables.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

Facts = Mapping[str, Any]

LOAD = """\
```python
import json

from distcifar.config import Recipe, from_dict
from distcifar.models import build_model
from safetensors.torch import load_file

recipe = from_dict(Recipe, json.load(open("recipe.json")))
model = build_model(recipe.model, channels={channels}, size={size}, num_classes={classes})
model.load_state_dict(load_file("model.safetensors"))
model.eval()
```
"""
VIEWS = {  # training/evaluate.py, predict
    "none": "plain",
    "flip": "mean of the image's and its mirror image's logits",
    "shift": "the image's logits; where in doubt, a mean with those of its mirror image and of both moved by a pixel",
}
TOO_GOOD = """\
> **Chosen on the test split.** The best epoch was picked by these very images: the figures are too good.

"""
# Fine-tuned nets are built without the weights that they began with, which the file replaces.
WITHOUT_FIRST_WEIGHTS = ("(recipe.model,", "(replace(recipe.model, pretrained=False, weights='', freeze=False),")


def model_card(recipe: dict[str, Any], facts: Facts, summary: Facts, card: Facts) -> str:
    """Markdown. The contents of recipe.json, run.json (of which nothing need be there), summary.json and model.json."""
    sections = [
        f"# {_plain(summary['recipe'])}: test accuracy {summary['test_accuracy']:.2%}",
        _introduction(recipe, summary, card),
        "## Loading",
        _loading(recipe, card),
        "## Measured",
        _measured(recipe, summary),
        _classes(summary, card),
        "## Training",
        _training(recipe, summary, card),
        "## Where it comes from",
        _origin(facts, summary),
        "## Limits",
        "It knows these classes only: whatever a picture shows, it names one of them. It was not tested on other"
        " pictures than its data set's.",
    ]
    return "\n\n".join(section.strip() for section in sections if section) + "\n"


def _introduction(recipe: Facts, summary: Facts, card: Facts) -> str:
    size, channels = card["input"]["size"], card["input"]["channels"]
    kind = {1: "grey", 3: "RGB"}.get(channels, f"{channels}-channel")
    return (
        f"An image classifier ({_plain(recipe['model']['name'])}, {summary['parameters']:,} parameters):"
        f" {len(card['class_names'])} classes, {kind} pictures of {size} x {size} pixels. Trained with distcifar."
    )


def _loading(recipe: Facts, card: Facts) -> str:
    model, given = recipe["model"], card["input"]
    code = LOAD.format(channels=given["channels"], size=given["size"], classes=len(card["class_names"]))
    if model.get("pretrained") or model.get("weights"):
        code = code.replace(*WITHOUT_FIRST_WEIGHTS).replace(
            "import json\n", "import json\nfrom dataclasses import replace\n"
        )
    mean, std = (", ".join(f"{value:.6g}" for value in card[name]) for name in ("mean", "std"))
    steps = [
        f"`images` are float32 [n, {given['channels']}, {given['size']}, {given['size']}]: pixels / 255"
        + _geometry(recipe["augment"])
        + f", then minus the mean ({mean}), divided by the standard deviation ({std}), channel by channel.",
        "`model(images).softmax(1)` has a share for each class, in the order of the table below and of `class_names`"
        " in [model.json](model.json).",
    ]
    return code + "\n" + " ".join(steps)


def _geometry(augment: Facts) -> str:
    """What evaluation does to a picture's size (data/pixels.py)."""
    words = f", the central {augment['center_crop']} pixels cut out" if augment["center_crop"] else ""
    side = augment["resize"] or augment["random_resized_crop"]
    return words + (f", resized to {side} x {side} (bilinear)" if side else "")


def _measured(recipe: Facts, summary: Facts) -> str:
    last, best = summary["selected_on"] == "last", f"the best {summary['selected_on']} {summary['select_metric']}"
    if summary["best_metric"] is not None:
        best += f", {summary['best_metric']:.4f}"
    rows = {
        "test accuracy": f"{summary['test_accuracy']:.2%} of {sum(map(sum, summary['confusion'])):,} images",
        "test loss": f"{summary['test_loss']:.4f} (cross-entropy)",
        "predictions": VIEWS[recipe["tta"]],
        "epoch": f"{summary['best_epoch']} of {summary['epochs']} ({'the last' if last else best})",
    }
    return (TOO_GOOD if summary["selected_on"] == "test" else "") + _table(("", ""), rows.items())


def _classes(summary: Facts, card: Facts) -> str:
    accuracies, images = summary["per_class_accuracy"], [sum(row) for row in summary["confusion"]]
    rows = []
    for number, (name, count) in enumerate(zip(card["class_names"], images, strict=True)):
        accuracy = accuracies[name]
        rows.append((number, name, count, "no test image" if accuracy is None else f"{accuracy:.2%}"))
    return _table(("number", "class", "test images", "accuracy"), rows)


def _training(recipe: Facts, summary: Facts, card: Facts) -> str:
    optim, data = recipe["optim"], recipe["data"]
    stages = "".join(f", then {stage['epochs']} at {stage['lr']:g}" for stage in recipe["then"])
    augment = [f"{name} {value}" for name, value in recipe["augment"].items() if value not in (0, "none", "zeros")]
    memory = f"betas {optim['betas']}" if optim["name"].startswith("adam") else f"momentum {optim['momentum']:g}"
    average = f"weights averaged over steps (decay {recipe['ema_decay']:g})"
    rows = {
        "data": f"{_dataset(recipe)}, {data['validation']:,} training images held out for validation",
        "data digest": card["data_digest"],
        "normalisation": data["normalize"],
        "augmentation": ", ".join(augment) or "none",
        "epochs": f"{recipe['epochs']}{stages} ({summary['steps']:,} steps, {summary['outcome']})",
        "batch size": recipe["batch_size"],
        "optimizer": f"{optim['name']}, {memory}, weight decay {optim['weight_decay']:g}",
        "learning rate": f"{optim['lr']:g} at most, {recipe['schedule']['name']}",
        "label smoothing": recipe["label_smoothing"] or None,
        "average": average if recipe["ema_decay"] else None,
        "precision": summary["precision"],
        "seed": recipe["seed"],
        "recipe digest": summary["recipe_digest"],
    }
    return _table(("", ""), rows.items()) + "\n\nEvery number of it: [recipe.json](recipe.json)."


def _origin(facts: Facts, summary: Facts) -> str:
    hardware, packages = facts.get("hardware", {}), facts.get("packages", {})
    commit, parent = facts.get("git_commit"), facts.get("parent")
    machine = [hardware.get("processor"), f"{hardware['cores']} cores" if "cores" in hardware else None]
    rows = {
        "begun": facts.get("started"),
        "trained by": f"{summary['workers']} worker(s) on {summary['device']}, {summary['seconds']:,.0f} s",
        "machine": ", ".join(map(str, filter(None, [*machine, *hardware.get("gpus", [])]))) or None,
        "Python": facts.get("python"),
        "packages": ", ".join(f"{name} {version}" for name, version in packages.items() if version) or None,
        "git commit": commit and commit.replace("+", " (with changes)"),
        "began from": parent and _parent(parent),
    }
    return _table(("", ""), rows.items())


def _parent(parent: Facts) -> str:
    """The checkpoint of another run from which this one went on, without the folders above it."""
    place, run = "/".join(PurePath(parent["checkpoint"]).parts[-3:]), parent.get("wandb")
    digests = f"recipe {parent['recipe_digest']}, sha256 of its manifest {parent['manifest_sha256']}"
    return f"{place} ({f'W&B run {run}, ' if run else ''}{digests})"


def _dataset(recipe: Facts) -> str:
    """The data set's name; of files and folders the last part."""
    return _plain(str(recipe["data"]["dataset"]).rstrip("/").rpartition("/")[2].removeprefix("npz:"))


def _table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    """A Markdown table; rows that end with None are left out."""
    lines = [head, ("---",) * len(head), *(tuple(map(_plain, row)) for row in rows if row[-1] is not None)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(value: object) -> str:
    """`value` in one line in which nothing means anything to Markdown or HTML."""
    line = "".join(char if char.isprintable() else " " for char in str(value))
    return re.sub(r"([\\`*_\[\]<>|~$&#])", r"\\\1", " ".join(line.split()))
