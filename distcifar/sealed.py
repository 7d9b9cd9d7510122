"""Sealed directories (contract 7): a manifest with the sha256 of each file, written last and checked before reading.

Checkpoints and model directories, wherever they come from. Format 1 numbered the optimizer's tensors; it was never
released and is not read.
"""

import json
from pathlib import Path

from distcifar.errors import CheckpointError
from distcifar.files import sha256_of, write_json

FORMAT_VERSION = 2
MODEL_FILES = ("model.safetensors", "model.json", "recipe.json")
FILES = ("state.safetensors", "state.json", *MODEL_FILES)


def seal(folder: Path) -> dict[str, str]:
    """Writes manifest.json over the files in `folder`; the sha256 of each by its name."""
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(folder.iterdir())}
    write_json(folder / "manifest.json", {"format_version": FORMAT_VERSION, "files": files})
    return {name: str(entry["sha256"]) for name, entry in files.items()}


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
