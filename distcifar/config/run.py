"""RunSpec: where and how a recipe is trained. Nothing in it changes what the numbers mean."""

import re
from dataclasses import dataclass
from typing import Literal

from distcifar.config.values import conform, require, require_choice, require_range


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One launch of a recipe."""

    name: str = ""
    """Run name, the folder under --runs (made from recipe and time if empty)."""
    runs: str = "runs"
    """Folder of all run directories; on a cluster a path that every node shares."""
    data_root: str = "data"
    """Folder of the prepared data sets."""
    source: str = ""
    """Where the raw data set lies (npz file, archive or folder), instead of a download."""
    workers: int = 0
    """Training processes (0: one per GPU of the cluster, or one)."""
    cpus_per_worker: int = 0
    """CPU cores of each worker (0: the machine's cores divided among them)."""
    address: str = ""
    """A running Ray cluster, host:port (empty: this machine, or the cluster of this job)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes the GPU if there is one."""
    loader: Literal["auto", "resident", "streamed"] = "auto"
    """Images decoded once into device memory, or streamed through FFCV; auto by size."""
    loader_threads: int = 0
    """Threads that prepare batches on a CPU (0: the worker's cores)."""
    deterministic: bool = False
    """Bitwise repeatable on the same hardware; slower on a GPU."""
    compile: bool = False
    """torch.compile the model: pays from a few minutes of training on."""
    checkpoint_epochs: int = 1
    """Save a checkpoint every N epochs."""
    checkpoint_steps: int = 0
    """Also save every N optimizer steps (0: off)."""
    max_failures: int = 3
    """How often a run of several workers restarts after a worker's death."""
    overwrite: bool = False
    """Replace an existing run directory of that name."""
    verbose: bool = False
    """Show Ray's own messages."""
    debug: bool = False
    """Show tracebacks of mistakes."""

    def __post_init__(self) -> None:
        conform(self)
        require(
            self.name == "" or re.fullmatch(r"[\w][\w.\-]{0,99}", self.name) is not None,
            f"name is {self.name!r}",
            "A run name is a folder name: letters, digits, . _ - and at most 100 of them",
            "Choose, for example, --name first",
        )
        require_range("workers", self.workers, 0, 4096)
        require_range("cpus_per_worker", self.cpus_per_worker, 0, 1024)
        require_range("loader_threads", self.loader_threads, 0, 1024)
        require_range("checkpoint_epochs", self.checkpoint_epochs, 1)
        require_range("checkpoint_steps", self.checkpoint_steps, 0)
        require_range("max_failures", self.max_failures, 0)
        require_choice("device", self.device, ("auto", "cpu", "cuda"))
        require_choice("loader", self.loader, ("auto", "resident", "streamed"))
