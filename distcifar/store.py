"""Files at a URL (s3://bucket/path, gs://..., file:///...), through pyarrow; tried again when a connection is cut.

An object is there whole or not at all; several of them become valid together by the one that is written last.
"""

import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar
from urllib.parse import quote, urlsplit

from distcifar.errors import StorageError
from distcifar.files import ASIDE

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

T = TypeVar("T")
TRIES = 6
PATIENT_TRIES = 22  # ten minutes: eight of pauses, and the AWS client itself tries for six seconds each time
PAUSE_SECONDS = 0.5  # before the second try, doubled before each further one: sixteen seconds in all of TRIES
LONGEST_PAUSE = 30.0
CHUNK = 8 << 20  # bytes that are read or written at once
REFUSED = re.compile(  # pyarrow has no class of its own for what S3 answers; what may pass it has tried again already
    r"AWS Error (ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|NO_SUCH_\w+)"
    r"|HTTP status 4(?!08|29)\d\d|Bucket '.*' not found"
)


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
    """A place for files. Raises StorageError where it does not answer time after time, or refuses once.

    pause: seconds before the second try, doubled before each further one up to LONGEST_PAUSE. tell: is told, once for
    each thing that is asked for, that the second try has failed as well and more will follow.
    """

    url: str
    tries: int = TRIES
    pause: float = PAUSE_SECONDS
    tell: Callable[[str], None] | None = None
    _opened: "tuple[FileSystem, str] | None" = field(default=None, repr=False)

    @property
    def place(self) -> str:
        """The URL without its query, for the user."""
        return self.url.partition("?")[0]

    def below(self, name: str) -> "Store":
        """The place `name` within this one."""
        base, _, query = self.url.partition("?")  # endpoint_override, region, ...: pyarrow.fs.S3FileSystem
        url = f"{base.rstrip('/')}/{quote(name)}{'?' + query if query else ''}"
        return Store(url, self.tries, self.pause, self.tell)

    def patient(self, tell: Callable[[str], None]) -> "Store":
        """This place, for whoever would rather wait about ten minutes than do without it; `tell` is told so."""
        return replace(self, tries=PATIENT_TRIES, tell=tell)

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

        An open file may lose its name meanwhile. Raises FileNotFoundError for a path without a file, and StorageError
        for a file that cannot be read to its end: then the older object is gone, unless it was local or the file short.
        """
        if isinstance(content, Path):
            with open(content, "rb") as file:
                self.write(name, file)
            return
        aside = f"{ASIDE}{uuid.uuid4().hex[:8]}-"  # one for all tries

        def action(system: "FileSystem", path: str) -> None:
            if system.type_name == "local":
                _write_aside(system, path, aside, content)
            else:
                _in_thread(lambda: _write_object(system, path, content))

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
        asked = f"{self.place}{'/' + name if name else ''}"
        rule = f"A place for files answers within {self.tries} tries"
        for attempt in range(self.tries):
            if attempt:
                time.sleep(min(self.pause * 2 ** (attempt - 1), LONGEST_PAUSE))
            try:
                system, root = self._open()
                return action(system, f"{root}/{name}" if name else root)
            except OSError as error:
                problem = error
            if _is_refusal(problem):
                rule = "It has answered: what is refused once is not asked for again"
                break
            if attempt == 1 and self.tell:
                self.tell(f"{asked} does not answer: {_first_line(problem)}. Trying up to {self.tries} times")
        raise StorageError(
            f"{asked}: {_first_line(problem)}",
            rule,
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
            except (ValueError, NotImplementedError) as error:  # an OSError is the network's: S3 is asked for a region
                raise StorageError(
                    f"{self.url!r} is no place for files: {_first_line(error)}",
                    "A URL has a scheme that pyarrow knows, and letters without brackets or spaces",
                    "Write, for example, s3://bucket/runs",
                ) from error
            self._opened = system, path.rstrip("/")
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "tries": self.tries, "pause": self.pause, "tell": None, "_opened": None}


def _write_aside(system: "FileSystem", path: str, aside: str, content: bytes | BinaryIO) -> None:
    folder, _, last = path.rpartition("/")
    system.create_dir(folder)
    target = f"{folder}/{aside}{last}"
    try:
        with _opened(content) as source, system.open_output_stream(target) as stream:
            for chunk in _chunks(source):
                stream.write(chunk)
        system.move(target, path)
    except BaseException:
        with suppress(OSError):  # it was not even begun, or nothing can be done there at all
            system.delete_file(target)
        raise


def _write_object(system: "FileSystem", path: str, content: bytes | BinaryIO) -> None:
    """In a thread of its own, as an object has its name when its stream is closed: also by an exception."""
    with _opened(content) as source:
        chunks = _chunks(source)
        first = next(chunks, b"")  # a short file is read before anything is begun
        try:
            with system.open_output_stream(path) as stream:
                for chunk in chain([first], chunks):
                    stream.write(chunk)
        except StorageError:  # of the file: what was read of it is an object now
            with suppress(OSError):
                system.delete_file(path)
            raise


def _opened(content: bytes | BinaryIO) -> BinaryIO:
    """`content` to be read from its beginning; a file by a descriptor of its own: its owner may close it meanwhile."""
    if isinstance(content, bytes):
        return BytesIO(content)
    source = os.fdopen(os.dup(content.fileno()), "rb")
    source.seek(0)
    return source


def _chunks(source: BinaryIO) -> Iterator[bytes]:
    try:
        while chunk := source.read(CHUNK):
            yield chunk
    except OSError as error:
        raise StorageError(
            f"A file that is to be stored cannot be read to its end: {_first_line(error)}",
            "What is stored is whole",
            "Look after the disk that it is on",
        ) from error


def _in_thread(action: Callable[[], None]) -> None:
    """Does `action` beside this thread. Ctrl-C ends the waiting for it; it ends by itself, or with the program."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            action()
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="store", daemon=True).start()
    done.result()


def _is_refusal(error: OSError) -> bool:
    return isinstance(error, (FileNotFoundError, PermissionError)) or REFUSED.search(str(error)) is not None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
