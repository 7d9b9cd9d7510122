"""What a worker is told: plain values, without torch, that travel to other processes."""

import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from distcifar.config import Recipe, RunSpec
from distcifar.data.shared import opened_here
from distcifar.tracking.journal import note_event
from distcifar.tracking.startup import Marks

T = TypeVar("T")
Listener = Callable[[dict[str, Any]], None]  # is given each metrics row, and each event
Announce = Callable[[str], None]  # is given sentences for the user


@dataclass(frozen=True)
class Job:
    """All that a worker is told."""

    recipe: Recipe
    spec: RunSpec
    folder: Path  # the run directory, absolute; shared by all workers unless it is a copy of what lies at `store`
    data: Path  # the folder of the prepared betons, absolute
    data_digest: str
    launch: str  # a new name for each time that the user has typed the command
    startup: Marks = field(default_factory=Marks.of_this_process)  # what the command has done until now
    measure: bool = True  # at the end the test images, once; else the run stays one that could go on
    gated: bool = False  # of a search: no epoch begins before it is allowed (sweeps/gate.py)
    store: str = ""  # the run directory's URL, where each machine's workers have a copy of their own (copies.py)

    def opened_data(self, opener: Callable[[Path], T]) -> T:
        """What `opener` makes of the folder of the betons on this machine. It verifies them: DataError for damage.

        They may have to be fetched, or mended where they are a copy; the run's events tell of that.
        """

        def tell(text: str) -> None:
            note_event(self.folder, "data", f"{platform.node()}: {text}")

        spec = self.spec
        return opened_here(opener, self.recipe.data, spec.data_root, spec.data_copies, self.data, tell)
