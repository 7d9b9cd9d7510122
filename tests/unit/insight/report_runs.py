"""Run directories as jobs/train.py leaves them, written in a moment; and an HTML page as a browser sees it."""

import json
import math
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from distcifar.config import to_dict
from distcifar.recipes import get_recipe
from distcifar.tracking.identity import Identity, write_identity

CLASSES = ("airplane", "cat", "dog", "ship")
VOID = {"meta", "img", "br", "link", "input", "hr", "base", "source", "track", "wbr", "col", "area", "embed"}


def write_run(
    folder, *, classes=CLASSES, epochs=3, steps=20, finished=True, validation=True, nan=False, accuracy=0.9, group=None,
    samples=False, events=(), reported=None, killed_at=0, **changes,
):  # fmt: skip
    """A run of the recipe `quick` with `changes`; `nan`: every second value of each curve is NaN; `killed_at`: no
    row after this step."""
    folder.mkdir(parents=True)
    recipe = to_dict(replace(get_recipe("quick"), epochs=max(1, epochs), reported_accuracy=reported, **changes))
    _write(folder, "recipe", recipe)
    spec = {"name": folder.name, "workers": 0, "runs": str(folder.parent), "wandb": "auto"}
    hardware = {"host": "node-1", "processor": "EPYC", "cores": 2, "memory_bytes": 8 * 2**30, "gpus": []}
    facts = {
        "started": "2026-11-22T09:04:49+00:00",
        "data_digest": "aa1d6b127fd1e19b",
        "git_commit": "5373a27a7be1" * 3,
    }
    _write(folder, "run", facts | {"spec": spec, "packages": {"torch": "2.15.0"}, "hardware": hardware})
    rows = list(_rows(epochs, steps, validation, nan))
    rows = [row for row in rows if not killed_at or row["step"] <= killed_at]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = [("start", "at step 0 with 2 worker(s)"), *events]
    lines = [
        {"time": f"2026-11-22T09:{10 + i}:00+00:00", "kind": kind, "text": text} for i, (kind, text) in enumerate(told)
    ]
    (folder / "events.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    if finished:
        _write(folder, "summary", _summary(classes, epochs, steps, accuracy) | {"model_sha256": f"of {folder.name}"})
    if group is not None:
        write_identity(folder, Identity(f"{folder.name}-abc123", folder.name, "distcifar", "", group))
    if samples:
        shown = np.random.default_rng(0).integers(0, 255, (6, 8, 8, 3), dtype=np.uint8)
        labels = np.arange(6) % len(classes)
        said = (labels + (np.arange(6) == 1)) % len(classes)  # the second picture is mistaken
        np.savez(
            folder / "samples.npz", images=shown, labels=labels, predictions=said, confidence=np.linspace(0.5, 1, 6)
        )
    return folder


def change(folder, name, **values):
    """Other `values` in the run's NAME.json; what is ... is taken out."""
    path = folder / f"{name}.json"
    changed = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in changed.items() if value is not ...}))


def _rows(epochs, steps, validation, nan):
    for step in range(1, epochs * steps + 1):
        loss = math.nan if nan and step % 2 else 2.3 * math.exp(-2.5 * step / (epochs * steps))
        yield {"kind": "step", "step": step, "epoch": step / steps, "train/loss": loss, "train/lr": 0.4 / step,
               "train/grad_norm": 1.0 + step % 3, "perf/images_per_s": 1000.0}  # fmt: skip
        if step % steps == 0:
            epoch = step // steps
            row = {"kind": "epoch", "step": step, "epoch": epoch, "train/loss": loss,
                   "train/accuracy": 0.5 + 0.1 * epoch / epochs, "train/lr": 0.4 / step,
                   "best_epoch": epoch, "seconds": 7.0 * epoch}  # fmt: skip
            measured = {"validation/loss": loss, "validation/accuracy": 0.6 + 0.2 * epoch / epochs}
            yield row | (measured if validation else {})


def _summary(classes, epochs, steps, accuracy):
    count = len(classes)
    right = round(100 * accuracy)
    confusion = [
        [right if a == b else (100 - right) * (b == (a + 1) % count) for b in range(count)] for a in range(count)
    ]
    return {
        "recipe": "quick", "test_accuracy": accuracy, "test_loss": 0.3, "selected_on": "validation",
        "select_metric": "accuracy", "best_metric": 0.8, "best_epoch": epochs, "epochs": epochs,
        "steps": epochs * steps,
        "outcome": "finished", "seconds": 83.0, "images_per_s": 1234.5, "parameters": 627_896, "workers": 2,
        "device": "cpu", "precision": "fp32", "loader": "resident", "recipe_digest": "0" * 16, "data_digest": "aa1d",
        "per_class_accuracy": {name: right / 100 for name in classes}, "confusion": confusion,
    }  # fmt: skip


def _write(folder: Path, name, value):
    (folder / f"{name}.json").write_text(json.dumps(value, ensure_ascii=False))


@dataclass
class Page(HTMLParser):
    """What a browser makes of a page: its elements, the text that is shown, and what it would load."""

    html: str
    tags: list = field(default_factory=list)
    loads: list = field(default_factory=list)
    text: str = ""
    titles: list = field(default_factory=list)
    elements: list = field(default_factory=list)
    open: list = field(default_factory=list)

    def __post_init__(self):
        super().__init__()
        self.feed(self.html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "xlink:href", "action", "data", "poster", "background", "ping"):
                self.loads.append(value)
            if name.startswith("on") or "url(" in (value or "") or "javascript:" in (value or ""):
                self.loads.append(value)
            if name == "title":
                self.titles.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if "style" in self.open:
            if "@import" in data or "url(" in data:
                self.loads.append(data)
        else:
            self.text += data

    @property
    def loads_from_outside(self):
        return [value for value in self.loads if not value.startswith("data:image/png;base64,")]
