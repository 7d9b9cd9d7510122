"""Fetch a file of known md5: resumed where it broke off, tried again, never taken for whole before its md5 is right."""

import time
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock

from distcifar.data.digests import file_digest
from distcifar.data.progress import progress
from distcifar.errors import DataError

_TIMEOUT_S = 30
_RANGE_NOT_SATISFIABLE = 416


def fetch(urls: Sequence[str], target: Path, md5: str, *, tries: int = 3, pause_s: float = 1.0) -> None:
    """Brings the file of that md5 to `target` from the first of `urls` that answers; nothing if it is there.

    What has arrived lies in `<target>.part` and is kept for the next try or the next call. Each URL is tried
    `tries` times, after pauses of 1, 2, 4 ... times `pause_s` seconds. Raises DataError if none delivers it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with FileLock(target.with_name(f".{target.name}.lock")):  # two preparations may need one archive
        if target.exists() and file_digest(target, "md5") == md5:
            return
        reason = "nothing was tried"
        for attempt in range(tries * len(urls)):
            if attempt:
                time.sleep(pause_s * 2 ** min(attempt - 1, 4))
            url = urls[attempt % len(urls)]
            try:
                _resume(url, part)
            except (OSError, HTTPException) as error:
                reason = f"{url}: {error}"
                if not (isinstance(error, HTTPError) and error.code == _RANGE_NOT_SATISFIABLE):
                    continue  # else the part is as long as the file, or longer: its md5 tells
            if file_digest(part, "md5") == md5:
                part.rename(target)
                return
            reason = f"{url}: what arrived has another md5 than {md5}"
            part.unlink()
    have = part.stat().st_size if part.exists() else 0
    raise DataError(
        f"{target.name} could not be downloaded ({reason}; {have} bytes are here)",
        f"It is read from {urls[0]} (md5 {md5})",
        f"Run this again where there is a network: it goes on from byte {have}",
    )


def _resume(url: str, part: Path) -> None:
    """Appends to `part` what it lacks. Raises OSError or HTTPException if the connection breaks off."""
    have = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"User-Agent": "distcifar"} | ({"Range": f"bytes={have}-"} if have else {}))
    with urlopen(request, timeout=_TIMEOUT_S) as response:
        resumed = response.status == 206  # a server without ranges answers 200 and begins anew
        length = response.headers.get("Content-Length")
        missing = int(length) if length else None
        with (
            part.open("ab" if resumed else "wb") as file,
            progress(f"Downloading {url.rsplit('/', 1)[-1]}", missing, in_bytes=True) as advance,
        ):
            received = 0
            while chunk := response.read(1 << 18):
                file.write(chunk)
                advance(len(chunk))
                received += len(chunk)
    if missing is not None and received < missing:
        raise OSError(f"the connection closed {missing - received} bytes before the end")
