"""RunSpec: where and how a recipe is trained. Nothing in it changes what the numbers mean."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from distcifar.config.values import Range, conform, require, require_range, require_ranges

RANGES = {
    "workers": Range(0, 4096),
    "cpus_per_worker": Range(0, 1024),
    "loader_threads": Range(0, 1024),
    "microbatch": Range(0),
    "checkpoint_epochs": Range(1),
    "checkpoint_steps": Range(0),
    "checkpoint_minutes": Range(0),
    "keep_last": Range(1),
    "keep_best": Range(0),
    "max_failures": Range(0),
    "hang_seconds": Range(0),
    "wait_minutes": Range(0),
    "upload_minutes": Range(0),
    "keep_uploads": Range(1),
}
WANDB_NAME = r"[\w][\w.\-]{0,127}"


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One launch of a recipe."""

    name: str = ""
    """Run name, the folder under --runs (made from recipe and time if empty)."""
    runs: str = "runs"
    """Folder of all run directories; on a cluster a path that every node shares, or a URL (s3://bucket/runs)."""
    data_root: str = "data"
    """Folder of the prepared data sets; also a URL (s3://bucket/data), from which each node takes its own copy."""
    data_copies: str = ""
    """Folder on each node's own disk for copies of the data (empty: for a URL ~/.cache/distcifar/data, else none)."""
    source: str = ""
    """Where the raw data set lies (npz file, archive or folder), instead of a download."""
    workers: int = 0
    """Training processes (0: one per GPU of the cluster, or one). MIN..MAX: as many as there are places for."""
    min_workers: int = 0
    """Go on with down to N workers when nodes are lost, and grow again up to --workers (0: a fixed number)."""
    cpus_per_worker: int = 0
    """CPU cores of each worker (0: the machine's cores divided among them)."""
    address: str = ""
    """A running Ray cluster, host:port (empty: this machine, or the cluster of this job)."""
    wait_minutes: float = 0.0
    """Wait up to N minutes for nodes that an autoscaler starts (0: a cluster that is too small is refused at once)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes the GPU if there is one."""
    loader: Literal["auto", "resident", "streamed"] = "auto"
    """Images decoded once into device memory, or streamed through FFCV; auto by size."""
    loader_threads: int = 0
    """Threads that prepare batches on a CPU (0: the worker's cores)."""
    deterministic: bool = False
    """Bitwise repeatable on the same hardware; slower on a GPU."""
    balance: Literal["auto", "on", "off"] = "auto"
    """Parts of a batch by the workers' measured speed; auto: where their GPUs are of different models."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile the training step; auto: on a GPU, where the run is long enough to gain by it."""
    microbatch: int = 0
    """At most N images in one forward pass of a worker; more are split and their gradients added (0: no limit)."""
    checkpoint_epochs: int = 1
    """Save a checkpoint every N epochs (and at the best one, the last one, and at every stop)."""
    checkpoint_steps: int = 0
    """Also save every N optimizer steps (0: off)."""
    checkpoint_minutes: float = 10.0
    """Also save when the last checkpoint is N minutes old (0: off)."""
    keep_last: int = 2
    """Keep the newest N checkpoints; the best one is always kept."""
    keep_best: int = 1
    """Keep the checkpoints of the N best epochs."""
    resume: str = "auto"
    """auto: go on with an unfinished run of that name; never: refuse to; PATH or wandb:ENTITY/PROJECT/RUN[:ALIAS]: from
    another run's checkpoint."""
    branch: bool = False
    """With --resume PATH: start a new run from there with a changed recipe."""
    max_failures: int = 10
    """How often a run of several workers is restarted; after three failures at one step it stops anyway."""
    hang_seconds: float = 300.0
    """A worker without a sign of life for N seconds is named and its run restarted (0: never)."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Record in W&B; auto: online where there is a key, else offline, to be sent later by jobs/report.py sync."""
    project: str = "distcifar"
    """W&B project."""
    entity: str = ""
    """W&B team or account (empty: the key's own)."""
    group: str = ""
    """W&B group of runs that belong together."""
    upload: Literal["none", "model", "state", "data"] = "state"
    """W&B artifacts: none, the final model, also training state to go on from elsewhere, also the prepared images."""
    upload_minutes: float = 10.0
    """Send training state every N minutes at most; the newest and the best are always sent in the end."""
    keep_uploads: int = 2
    """Keep the newest N training states in W&B; the best one is always kept."""
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
        for name, allowed in (("project", WANDB_NAME), ("entity", f"({WANDB_NAME})?"), ("group", r"[^/\\#?%:]{0,128}")):
            require(
                re.fullmatch(allowed, getattr(self, name)) is not None,
                f"{name} is {getattr(self, name)!r}",
                "W&B takes letters, digits, . _ - in names of projects and entities, and at most 128 of them",
                f"Correct --{name}",
            )
        require_ranges(self, "", RANGES)
        require_range("min_workers", self.min_workers, 0, self.workers)
        require(
            not self.branch or self.resume not in ("auto", "never"),
            f"branch is set and resume is {self.resume!r}",
            "A branch starts from a checkpoint of another run",
            "Give --resume runs/NAME as well",
        )


def spelled_out(words: Sequence[str]) -> list[str]:
    """A command line with each `--workers 1..4` as the two flags that it is short for."""
    found: list[str] = []
    for before, word in zip(("", *words), words, strict=False):
        span = re.fullmatch(r"(\d+)\.\.(\d+)" if before == "--workers" else r"--workers=(\d+)\.\.(\d+)", word)
        if span is None:
            found.append(word)
        else:
            found += [span[2] if before == "--workers" else f"--workers={span[2]}", "--min-workers", span[1]]
    return found
