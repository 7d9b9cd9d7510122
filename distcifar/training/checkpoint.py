"""TrainState <-> a sealed directory (contract 7): safetensors and JSON, a manifest of sha256, no pickle.

step-00000264/
  state.safetensors  model, optimizer, average and sums as they were at that step
  state.json         progress, scaler, data digest, number of workers
  model.safetensors  the best weights so far, to be used alone
  model.json         what they are: class names, input, normalisation
  recipe.json        the recipe that they were trained with
  manifest.json      format version, sha256 and size of each file above

A state is captured between two steps, as a copy on the CPU; the copy is written whenever there is time
(training/saving.py). sealed.py makes and checks the manifest.
"""

import json
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from distcifar.config import to_dict
from distcifar.errors import CheckpointError
from distcifar.files import folder_aside, write_atomically, write_json
from distcifar.sealed import seal, verify
from distcifar.training.state import TrainState, Weights


def checkpoint_name(step: int) -> str:
    """The directory name of the checkpoint at `step`; names sort like steps."""
    return f"step-{step:08d}"


@dataclass(frozen=True)
class Snapshot:
    """A copy of a TrainState between two steps, on the CPU: nothing of it changes any more."""

    tensors: Weights
    scalars: dict[str, Any]
    chosen: Weights
    card: dict[str, Any]  # model.json
    recipe: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.scalars["progress"]["step"])

    @property
    def size_bytes(self) -> int:
        """What it takes on the disk, nearly."""
        return sum(t.numel() * t.element_size() for t in (*self.tensors.values(), *self.chosen.values())) + 100_000

    def restore(self, state: TrainState) -> None:
        """Makes `state` the state that was copied. The caller has compared recipe and data digest."""
        state.load(self.tensors, self.scalars, self.chosen)


@dataclass(frozen=True)
class Checkpoint(Snapshot):
    """The snapshot in a verified checkpoint directory."""

    folder: Path


def capture(state: TrainState, card: dict[str, Any], *, workers: int = 1) -> Snapshot:
    """Copies `state`; `card` becomes model.json, `workers` is noted. The loop stands still meanwhile."""
    # The best weights are a copy already, which is replaced and never changed.
    chosen = state.best if state.best is not None else _copied(state.chosen_weights())
    scalars = state.scalars() | {"workers": workers}
    return Snapshot(_copied(state.tensors()), scalars, chosen, card, to_dict(state.recipe))


def write_checkpoint(root: Path, snapshot: Snapshot) -> Path:
    """Writes `snapshot` as a sealed directory under `root` and returns it.

    A checkpoint of the same step is replaced. OSError (full disk, permissions) leaves nothing behind.
    """
    target = root / checkpoint_name(snapshot.step)
    root.mkdir(exist_ok=True)  # not its parents: a run directory that has vanished is not made anew with half a history
    with folder_aside(target) as folder:
        save_file(_contiguous(snapshot.tensors), folder / "state.safetensors")
        write_json(folder / "state.json", snapshot.scalars)
        _write_model(folder, snapshot.chosen, snapshot.card, snapshot.recipe)
        seal(folder)
    for later in checkpoints(root):  # damaged, and of steps that this run has now left behind
        if _step_of(later) > snapshot.step:
            _remove(later)
    return target


def save_checkpoint(root: Path, state: TrainState, card: dict[str, Any]) -> Path:
    """`capture` and `write_checkpoint` at once."""
    return write_checkpoint(root, capture(state, card))


def save_model(target: Path, state: TrainState, card: dict[str, Any], texts: Mapping[str, str] = {}) -> str:
    """Writes a sealed directory with the chosen weights, what they are, and their recipe; the weights' sha256.

    texts: further files by name.
    """
    with folder_aside(target) as folder:
        _write_model(folder, state.chosen_weights(), card, to_dict(state.recipe))
        for name, text in texts.items():
            write_atomically(folder / name, text)
        return seal(folder)["model.safetensors"]


def _write_model(folder: Path, weights: Weights, card: dict[str, Any], recipe: dict[str, Any]) -> None:
    save_file(_contiguous(weights), folder / "model.safetensors")
    write_json(folder / "model.json", card)
    write_json(folder / "recipe.json", recipe)


def prune_checkpoints(root: Path, *, best_steps: Collection[int], keep: int = 2) -> None:
    """Removes all checkpoints but the newest `keep` and those of `best_steps`."""
    names = {checkpoint_name(step) for step in best_steps}
    for folder in checkpoints(root)[keep:]:
        if folder.name not in names:
            _remove(folder)


def _remove(checkpoint: Path) -> None:
    """Removes it, whatever it is: a damage may have left a plain file of that name."""
    if checkpoint.is_dir() and not checkpoint.is_symlink():
        shutil.rmtree(checkpoint)
    else:
        checkpoint.unlink()


def load_checkpoint(folder: Path) -> Checkpoint:
    """Verifies and reads a checkpoint directory. Raises CheckpointError."""
    verify(folder)
    try:
        return Checkpoint(
            load_file(folder / "state.safetensors"),
            json.loads((folder / "state.json").read_text()),
            load_file(folder / "model.safetensors"),
            json.loads((folder / "model.json").read_text()),
            json.loads((folder / "recipe.json").read_text()),
            folder,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} cannot be read ({error})", "Its files must be readable", "Use another checkpoint"
        ) from error


def checkpoints(root: Path) -> list[Path]:
    """The checkpoint directories under `root`, newest first; they may be damaged."""
    if not root.is_dir():
        return []
    found = [p for p in root.iterdir() if re.fullmatch(r"step-[0-9]{8,}", p.name)]
    return sorted(found, key=_step_of, reverse=True)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def newest_good(root: Path, *, but: Collection[int] = ()) -> tuple[Checkpoint | None, list[CheckpointError]]:
    """The newest checkpoint that verifies, and what was wrong with newer ones.

    Those of steps `but` are taken only if there is no other, the oldest of them first.

    Raises the newest one's CheckpointError if there are checkpoints and none is good: starting afresh would
    hide the loss.
    """
    problems: list[CheckpointError] = []
    found = checkpoints(root)
    passed = [folder for folder in found if _step_of(folder) in but]
    for folder in [folder for folder in found if folder not in passed] + passed[::-1]:
        try:
            return load_checkpoint(folder), problems
        except CheckpointError as error:
            problems.append(error)
    if problems:
        raise problems[0]
    return None, []


def _contiguous(weights: Weights) -> Weights:
    """safetensors writes plain row-major tensors; channels_last ones are copied."""
    return {name: value.detach().contiguous() for name, value in weights.items()}


def _copied(weights: Weights) -> Weights:
    return {name: value.detach().to("cpu", copy=True) for name, value in weights.items()}
