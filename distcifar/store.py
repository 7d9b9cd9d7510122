"""Files at a URL (s3://bucket/path, gs://..., file:///...), through pyarrow; tried again when a connection is cut.

An object is there whole or not at all; several of them become valid together by the one that is written last.
"""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from distcifar.errors import StorageError
from distcifar.files import ASIDE

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

T = TypeVar("T")
TRIES = 6
PAUSE_SECONDS = 0.5  # before the second try, doubled before each further one: sixteen seconds in all
CHUNK = 8 << 20  # bytes that are read or written at once


def is_url(place: str | Path) -> bool:
    """Whether `place` is a URL and not a path of this machine."""
    return "://" in str(place)


@dataclass(frozen=True)
class Stored:
    """An object as a listing has it."""

    name: str  # below the store's URL
    size: int
    changed_ns: int


@dataclass
class Store:
    """A place for files. Raises StorageError where it does not answer, or refuses, time after time."""

    url: str
    tries: int = TRIES
    pause: float = PAUSE_SECONDS
    _opened: "tuple[FileSystem, str] | None" = field(default=None, repr=False)

    @property
    def place(self) -> str:
        """The URL without its query, for the user."""
        return self.url.partition("?")[0]

    def below(self, name: str) -> "Store":
        """The place `name` within this one."""
        base, _, query = self.url.partition("?")  # endpoint_override, region, ...: pyarrow.fs.S3FileSystem
        return Store(f"{base.rstrip('/')}/{name}{'?' + query if query else ''}", self.tries, self.pause)

    def read(self, name: str) -> bytes | None:
        """The whole object; None where there is none."""

        def action(system: "FileSystem", path: str) -> bytes | None:
            try:
                while True:
                    with system.open_input_file(path) as file:
                        content = bytes(file.read_at(file.size(), 0))  # one request: parts could be of two objects
                    if (
                        len(content) == system.get_file_info(path).size
                    ):  # else it was replaced by a longer one meanwhile
                        return content
            except FileNotFoundError:
                return None

        return self._again(name, action)

    def read_at(self, name: str, offset: int, count: int) -> bytes:
        """At most `count` bytes of an object from `offset` on."""

        def action(system: "FileSystem", path: str) -> bytes:
            with system.open_input_file(path) as file:
                return bytes(file.read_at(count, offset))

        return self._again(name, action)

    def write(self, name: str, content: bytes | Path | BinaryIO) -> None:
        """`content`, or the file's, as the object `name`; the older one is there until the new one is whole.

        An open file may lose its name meanwhile. Raises FileNotFoundError for a path without a file.
        """
        if isinstance(content, Path):
            with open(content, "rb") as file:
                self.write(name, file)
            return

        def action(system: "FileSystem", path: str) -> None:
            source = BytesIO(content) if isinstance(content, bytes) else content
            source.seek(0)
            folder, _, last = path.rpartition("/")
            local = system.type_name == "local"  # where a file has its name before it is whole
            target = f"{folder}/{ASIDE}{uuid.uuid4().hex[:8]}-{last}" if local else path
            if local:
                system.create_dir(folder)
            with system.open_output_stream(target) as stream:
                while chunk := source.read(CHUNK):
                    stream.write(chunk)
            if local:
                system.move(target, path)

        self._again(name, action)

    def delete(self, name: str) -> None:
        """Removes an object; one that is not there is no error."""

        def action(system: "FileSystem", path: str) -> None:
            if system.get_file_info(path).is_file:
                system.delete_file(path)

        self._again(name, action)

    def delete_below(self, name: str) -> None:
        """Removes all objects whose names begin with `name`/."""

        def action(system: "FileSystem", path: str) -> None:
            try:
                system.delete_dir(path)
            except FileNotFoundError:
                return

        self._again(name, action)

    def listing(self) -> dict[str, Stored]:
        """All objects, at any depth, by name."""

        def action(system: "FileSystem", path: str) -> dict[str, Stored]:
            from pyarrow.fs import FileSelector, FileType

            found = system.get_file_info(FileSelector(path, allow_not_found=True, recursive=True))
            files = [info for info in found if info.type == FileType.File and not info.base_name.startswith(ASIDE)]
            names = [info.path[len(path) :].lstrip("/") for info in files]
            return {n: Stored(n, info.size, info.mtime_ns or 0) for n, info in zip(names, files, strict=True)}

        return self._again("", action)

    def _again(self, name: str, action: "Callable[[FileSystem, str], T]") -> T:
        for attempt in range(self.tries):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            system, root = self._open()
            try:
                return action(system, f"{root}/{name}" if name else root)
            except OSError as error:
                problem = error
        raise StorageError(
            f"{self.place}{'/' + name if name else ''}: {_first_line(problem)}",
            f"A place for files answers within {self.tries} tries",
            "Check the address, the network, and the credentials (for s3:// those that the AWS tools use)",
        ) from problem

    def _open(self) -> "tuple[FileSystem, str]":
        if self._opened is None:
            from pyarrow.fs import FileSystem  # a quarter of a second

            if urlsplit(self.url).password is not None:
                raise StorageError(
                    "The URL has a password in it",
                    "Run directories and W&B keep what was typed, for all to read",
                    "Leave it out, and give it as the AWS tools take it: AWS_ACCESS_KEY_ID, or ~/.aws/credentials",
                )
            try:
                system, path = FileSystem.from_uri(self.url)
            except (ValueError, OSError) as error:
                raise StorageError(
                    f"{self.url!r} is no place for files: {_first_line(error)}",
                    "A URL has a scheme that pyarrow knows, and letters without brackets or spaces",
                    "Write, for example, s3://bucket/runs",
                ) from error
            self._opened = system, path.rstrip("/")
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "tries": self.tries, "pause": self.pause, "_opened": None}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
