"""What Ray uploads of a working directory: by Ray's own rules, so that nothing is told that is not so."""

from collections.abc import Callable, Iterator
from pathlib import Path

from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import _get_excludes, get_excludes_from_ignore_files

Excluded = Callable[[Path], bool]


def uploaded_files(folder: Path) -> Iterator[Path]:
    """The files that `ray job submit --working-dir folder` sends: without what .gitignore and .rayignore name.

    Ray's own walk (packaging.py) also makes the archive; this one is its order and its rules, and can be left early.
    """
    yield from _walk(folder, [_get_excludes(folder, get_runtime_env_default_excludes())])


def _walk(path: Path, excluded: list[Excluded]) -> Iterator[Path]:
    excluded = [*excluded, *get_excludes_from_ignore_files(path, include_gitignore=True, logger=_Silent())]
    if any(excludes(path) for excludes in excluded):
        return
    if path.is_dir():
        for below in sorted(path.iterdir()):
            yield from _walk(below, excluded)
    elif path.is_file():
        yield path


class _Silent:
    """Ray tells its log of each ignore file."""

    def info(self, *_: object) -> None:
        """Says nothing."""
