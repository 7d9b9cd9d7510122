"""Training scripts that are run beside ours, and ours by the same rules: a request in JSON, an answer in one line.

docs/benchmarks.md describes both for who writes a peer.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distcifar.benchmark.place import (
    DATALOADER_WORKERS,
    REPOSITORY,
    SKIPPED,
    Finished,
    Place,
    Started,
    finish,
    last_line,
    python,
)
from distcifar.config import Recipe, RunSpec, to_dict
from distcifar.data.beton import read_all
from distcifar.data.pixels import normalisation
from distcifar.data.prepare import PreparedData
from distcifar.errors import ConfigError, RunError
from distcifar.files import write_json

VERSION = 1
OWN_PEERS = ("plain", "ffcv_pipeline", "lightning_fit")  # tests/peers


@dataclass(frozen=True)
class Answer:
    """A peer's line, and what its process took."""

    peer: str
    seconds: float  # the timed region: training and evaluations, without imports, reading data and warm-up
    epochs: int
    accuracy: float  # on the test images, 0-1
    images: int  # of an epoch
    epoch_seconds: tuple[float, ...]  # the steps of each epoch, without its evaluation
    line: dict[str, Any]  # all that it said
    process: Finished

    @property
    def images_per_s(self) -> float:
        """Of a steady epoch: the first, which warms up, does not count where there are more."""
        steady = self.epoch_seconds[1:] or self.epoch_seconds
        return self.images * len(steady) / sum(steady)


def peer_scripts(place: Place, names: Sequence[str] = OWN_PEERS) -> list[Path]:
    """Our own peers of these names (--quick: one), and those asked for. ConfigError for one that is not there."""
    own = names[:1] if place.settings.quick else names
    scripts = [REPOSITORY / "tests" / "peers" / f"{name}.py" for name in own]
    scripts += [Path(path).absolute() for path in place.settings.peer]
    for script in scripts:
        if not script.is_file():
            raise ConfigError(f"The peer {script} is not there", "A peer is a Python script", "Correct the path")
    return scripts


def request(recipe: Recipe, prepared: PreparedData, place: Place, *, epochs: int) -> dict[str, Any]:
    """What a peer is told: the images as plain arrays, the recipe, and how many threads it may use."""
    data = place.scratch / f"{prepared.folder.name}.npz"
    if not data.exists():
        splits = {"train": prepared.train, "val": prepared.val, "test": prepared.test}
        arrays: dict[str, Any] = {}
        for split, path in splits.items():
            if path is not None:
                arrays[f"{split}_x"], arrays[f"{split}_y"] = read_all(path, prepared.manifests[split])
        np.savez(data, **arrays)
    mean, std = normalisation(recipe.data.normalize, prepared.manifest.mean, prepared.manifest.std)
    return {
        "version": VERSION,
        "data": str(data),
        "betons": str(prepared.folder),
        "mean": list(mean),
        "std": list(std),
        "recipe": to_dict(recipe),
        "epochs": epochs,
        "seed": recipe.seed,
        "threads": min(DATALOADER_WORKERS, place.threads),
    }


def run_peer(script: Path, wanted: dict[str, Any], place: Place) -> Answer | None:
    """The answer of a script; None where it says that this is not for it, and the reason has been told."""
    finished = place.run(python(str(script), _written(wanted, place)), ours=False)
    if finished.code == SKIPPED:
        place.announce(f"{script.name} is left out: {last_line(finished.errors)}")
        return None
    return answered(finished, str(script))


def able_peers(scripts: Sequence[Path], wanted: dict[str, Any], place: Place) -> dict[str, Path]:
    """Those of `scripts` that answer, by the names that they give themselves; each is run once, which warms caches."""
    answers = [(run_peer(script, {**wanted, "epochs": 1}, place), script) for script in scripts]
    return {answer.peer: script for answer, script in answers if answer is not None}


def run_ours(recipe: Recipe, folder: Path, place: Place, spec: RunSpec | None = None, **more: Any) -> Answer:
    """Our own engine in a process of its own (ours.py), by the peers' rules."""
    return answered(finish(start_ours(recipe, folder, place, spec, **more)), "ours")


def start_ours(recipe: Recipe, folder: Path, place: Place, spec: RunSpec | None = None, **more: Any) -> Started:
    """Its process, started. more: fields of ours.Order."""
    order = {"recipe": to_dict(recipe), "folder": str(folder), "spec": to_dict(spec or RunSpec()), **more}
    return place.start(python("-m", "distcifar.benchmark.ours", _written({"threads": place.threads, **order}, place)))


def answered(finished: Finished, who: str) -> Answer:
    """The last line of JSON that names a peer. RunError for a wrong or missing one."""
    for text in reversed(finished.output.splitlines()):
        try:
            line = json.loads(text)
            if "peer" in line:
                return _answer(line, finished)
        except (ValueError, TypeError, KeyError):
            continue
    raise RunError(
        f"{who} has printed no line of results",
        'It ends with a line such as {"peer": "mine", "seconds": 9.5, "epochs": 3, "images": 45000, "accuracy": 0.7}',
        "docs/benchmarks.md describes it",
    )


def _answer(line: dict[str, Any], finished: Finished) -> Answer:
    epochs, seconds = int(line["epochs"]), float(line["seconds"])
    each = tuple(float(value) for value in line.get("epoch_seconds", [seconds / epochs] * epochs))
    if not (math.isfinite(seconds) and seconds > 0 and all(value > 0 for value in each)):
        raise ValueError(f"seconds is {seconds}")
    return Answer(
        str(line["peer"]), seconds, epochs, float(line["accuracy"]), int(line["images"]), each, line, finished
    )


def _written(wanted: dict[str, Any], place: Place) -> str:
    path = place.scratch / f"request-{len(list(place.scratch.glob('request-*.json')))}.json"
    write_json(path, wanted)
    return str(path)
