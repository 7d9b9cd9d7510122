"""HTML pages of this package: their templates, with every text escaped, and how they are written."""

import os
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from distcifar.errors import ConfigError, StorageError
from distcifar.files import write_atomically

if TYPE_CHECKING:
    from jinja2 import Environment


def page_environment() -> "Environment":
    """The templates beside this file, style.css.j2 among them; a name that is not given is an error."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    def text_of(name: str) -> str:
        return files("distcifar.insight").joinpath(name).read_text("utf-8")

    loader = FunctionLoader(text_of)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def write_page(page: str, path: Path) -> None:
    """Writes `page` to `path`, whole. Raises ConfigError where that is a folder, StorageError where it cannot be."""
    if os.path.isdir(path):
        raise ConfigError(f"{path} is a folder", "A report is one file", f"--out {path / 'report.html'}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page)
    except OSError as error:
        raise StorageError(
            f"The report cannot be written to {path}: {error.strerror}",
            "It needs a folder that may be written to, and a name that the file system takes",
            "Name another file: --out FILE",
        ) from error
