"""Fetching another run's training state from W&B, in a process of its own: there the account's key is, and not here.

`python -m distcifar.tracking.shipping.fetch REFERENCE FOLDER` prints nothing but what went wrong, as JSON.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from distcifar.errors import TrackingError
from distcifar.files import ASIDE
from distcifar.tracking.shipping.process import command, with_package
from distcifar.tracking.wandb.artifacts import fetch_state, parse_reference

SCHEME = "wandb:"
MISTAKE = 2


@contextmanager
def fetched(reference: str, beside: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    """A run directory with the training state that `reference` names, while open; it lies next to `beside`.

    Raises TrackingError. Its digests are checked by whoever reads it.
    """
    parse_reference(reference)
    beside.parent.mkdir(parents=True, exist_ok=True)
    prefix = f"{ASIDE}{beside.name}~fetch-"
    for left in beside.parent.glob(f"{prefix}*"):  # by a process that was killed; the run is this one's now
        shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(prefix=prefix, dir=beside.parent) as folder:
        words = command("distcifar.tracking.shipping.fetch", reference, folder)
        done = subprocess.run(words, env=with_package(environment), stdout=subprocess.PIPE, text=True)
        if done.returncode == MISTAKE:
            raise TrackingError(*json.loads(done.stdout))
        if done.returncode:
            raise TrackingError(
                f"Fetching {reference} ended with {done.returncode}", "What was printed above says why", "Try it again"
            )
        yield Path(folder) / "run"


def main(argv: list[str]) -> int:
    """Fetches argv[0] into the folder argv[1]."""
    try:
        fetch_state(argv[0], Path(argv[1]))
    except TrackingError as error:
        print(json.dumps(error.args))
        return MISTAKE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
