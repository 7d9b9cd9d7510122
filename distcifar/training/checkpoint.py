"""TrainState <-> a sealed directory (contract 7): safetensors and JSON, a manifest of sha256, no pickle.

step-00000264/
  state.safetensors  model, optimizer, average and sums as they were at that step
  state.json         progress, scaler, data digest
  model.safetensors  the best weights so far, to be used alone
  model.json         what they are: recipe, class names, input, normalisation
  manifest.json      format version, sha256 and size of each file above
"""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from distcifar.errors import CheckpointError
from distcifar.files import folder_aside, sha256_of, write_json
from distcifar.training.state import TrainState, Weights

FORMAT_VERSION = 1
FILES = ("state.safetensors", "state.json", "model.safetensors", "model.json")


@dataclass(frozen=True)
class Checkpoint:
    """The content of a verified checkpoint directory, tensors on the CPU."""

    folder: Path
    tensors: Weights
    scalars: dict[str, Any]
    chosen: Weights
    card: dict[str, Any]  # model.json

    def restore(self, state: TrainState) -> None:
        """Makes `state` the state that was saved. The caller has compared recipe and data digest."""
        state.load(self.tensors, self.scalars, self.chosen)


def checkpoint_name(step: int) -> str:
    """The directory name of the checkpoint at `step`; names sort like steps."""
    return f"step-{step:08d}"


def save_checkpoint(root: Path, state: TrainState, card: dict[str, Any]) -> Path:
    """Writes `state` as a sealed directory under `root` and returns it; `card` becomes model.json.

    A checkpoint of the same step is replaced. OSError (full disk, permissions) leaves nothing behind.
    """
    target = root / checkpoint_name(state.progress.step)
    with folder_aside(target) as folder:
        save_file(_contiguous(state.tensors()), folder / "state.safetensors")
        save_file(_contiguous(state.chosen_weights()), folder / "model.safetensors")
        write_json(folder / "state.json", state.scalars())
        write_json(folder / "model.json", card)
        seal(folder)
    for later in checkpoints(root):  # damaged, and of steps that this run has now left behind
        if _step_of(later) > state.progress.step:
            shutil.rmtree(later)
    return target


def save_model(target: Path, weights: Weights, card: dict[str, Any]) -> None:
    """Writes a sealed directory with `weights` as model.safetensors and `card` as model.json."""
    with folder_aside(target) as folder:
        save_file(_contiguous(weights), folder / "model.safetensors")
        write_json(folder / "model.json", card)
        seal(folder)


def prune_checkpoints(root: Path, *, best_step: int, keep: int = 2) -> None:
    """Removes all checkpoints but the newest `keep` and the one of the best step."""
    best = checkpoint_name(best_step)
    for folder in checkpoints(root)[keep:]:
        if folder.name != best:
            shutil.rmtree(folder)


def seal(folder: Path) -> None:
    """Writes manifest.json over the files in `folder`."""
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(folder.iterdir())}
    write_json(folder / "manifest.json", {"format_version": FORMAT_VERSION, "files": files})


def verify(folder: Path, files: tuple[str, ...] = FILES) -> None:
    """Raises CheckpointError naming the first file that is missing, damaged, or of another format."""

    def damaged(found: str) -> CheckpointError:
        return CheckpointError(
            found, "A checkpoint is loaded only if every digest matches", "Use another checkpoint of the run"
        )

    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        version = manifest["format_version"]
        seals = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(f"{folder / 'manifest.json'} cannot be read ({error})") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has format version {version!r}",
            f"This version of distcifar reads format {FORMAT_VERSION}",
            "Load it with the version that wrote it",
        )
    for name in files:
        path = folder / name
        if name not in seals or not path.is_file():
            raise damaged(f"{path} is missing")
        try:
            found = (path.stat().st_size, sha256_of(path))
        except OSError as error:
            raise damaged(f"{path} cannot be read ({error})") from error
        if found != seals[name]:
            raise damaged(f"{path} is damaged (its sha256 is not the manifest's)")


def load_checkpoint(folder: Path) -> Checkpoint:
    """Verifies and reads a checkpoint directory. Raises CheckpointError."""
    verify(folder)
    try:
        return Checkpoint(
            folder,
            load_file(folder / "state.safetensors"),
            json.loads((folder / "state.json").read_text()),
            load_file(folder / "model.safetensors"),
            json.loads((folder / "model.json").read_text()),
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


def newest_good(root: Path) -> tuple[Checkpoint | None, list[CheckpointError]]:
    """The newest checkpoint that verifies, and what was wrong with newer ones.

    Raises the newest one's CheckpointError if there are checkpoints and none is good: starting afresh would
    hide the loss.
    """
    problems: list[CheckpointError] = []
    for folder in checkpoints(root):
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
