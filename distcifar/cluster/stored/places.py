"""Where run directories are on this machine: where --runs says, or the copies of those at a URL."""

import hashlib
from pathlib import Path

from distcifar.errors import ConfigError
from distcifar.files import write_atomically
from distcifar.store import is_url

HOME = "~/.cache/distcifar/runs"


def runs_here(runs: str) -> Path:
    """The folder of run directories that --runs names: itself, or where this machine has copies of those at a URL."""
    if not is_url(runs):
        return Path(runs)
    return Path(HOME).expanduser() / hashlib.sha256(runs.rstrip("/").encode()).hexdigest()[:8]


def require_folder(place: str) -> str:
    """`place`, for what reads and writes a folder of this machine. Raises ConfigError where it is a URL."""
    if is_url(place):
        raise ConfigError(
            f"{place!r} is a URL",
            "Runs at one are for train.py alone",
            f"What this machine trained there is in {runs_here(place)}; else copy it: aws s3 sync URL/NAME runs/NAME",
        )
    return place


class Marks:
    """The tokens that the copy in `folder` has pushed with: if the store's last one is among them, it has all of it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder.with_name(f".{folder.name}~copy")

    def read(self) -> list[str]:
        return self._path.read_text().split() if self._path.exists() else []

    def write(self, tokens: list[str]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, "\n".join(tokens))
