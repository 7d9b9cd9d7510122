"""How far a trial of several workers may go: a number in its run directory that all of them see."""

import time
from pathlib import Path

from distcifar.cluster.stopping import StopRequest
from distcifar.files import write_atomically

POLL_SECONDS = 0.05


class Gate:
    """The workers wait here between two epochs: a search decides first whether there is to be another one."""

    def __init__(self, folder: Path) -> None:
        self._path, self._stop = folder / "allowed", StopRequest(folder)

    def allow(self, epochs: int) -> None:
        """Lets the training come to the end of epoch `epochs`."""
        write_atomically(self._path, str(epochs))

    def wait(self, epoch: int) -> None:
        """Returns when an epoch after `epoch` is allowed, or the training is to stop instead."""
        while int(self._path.read_text()) <= epoch and not self._stop.made():
            time.sleep(POLL_SECONDS)
