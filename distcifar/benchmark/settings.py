"""What a benchmark is asked for: the fields of jobs/benchmark.py."""

from dataclasses import dataclass
from typing import Literal

from distcifar.config.values import Range, conform, require_ranges

Part = Literal["loader", "step", "startup", "scaling", "speedrun", "growth", "saving", "tracking", "simulation"]
RANGES = {
    "rounds": Range(1, 1000),
    "threads": Range(0, 1024),
    "images": Range(0),
    "runs": Range(0),
    "workers": Range(0),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure, on which data, how often."""

    recipe: tuple[str, ...] = ()
    """step, speedrun, startup: other recipes than cnn-day41 and resnet9-aug (speedrun: speedrun94)."""
    peer: tuple[str, ...] = ()
    """step, speedrun: further scripts to run beside ours (docs/benchmarks.md says what they are given and print)."""
    dataset: str = "cifar10"
    """Data set, as for jobs/prepare.py."""
    source: str = ""
    """Where it lies, instead of a download."""
    root: str = "data"
    """Folder of the prepared data sets."""
    out: str = "benchmarks"
    """Folder of the results: a JSON file and a picture each."""
    rounds: int = 5
    """Interleaved rounds; medians are told, with lowest and highest."""
    threads: int = 0
    """Worker threads and processes of all sides (0: the cores, at most 2 for the DataLoaders)."""
    images: int = 0
    """step: training images of an epoch (0: 10,240 on a CPU, all on a GPU)."""
    runs: int = 0
    """speedrun: seeds (0: 3 on a CPU, 100 on a GPU)."""
    workers: int = 0
    """scaling, growth: the most workers (0: one per GPU, or per core)."""
    steps: int = 40
    """saving, tracking: steps of a block."""
    batch_size: int = 64
    """saving, tracking: images in a step; a small one makes steps short, and the price easy to see."""
    compile: Literal["auto", "on", "off"] = "auto"
    """step: also measure the compiled step; auto: on a GPU."""
    full: bool = False
    """startup: also two workers through Ray."""
    quick: bool = False
    """A small run on made-up images that shows that all works; its figures mean nothing."""
    debug: bool = False
    """Show tracebacks of mistakes."""

    def __post_init__(self) -> None:
        conform(self)
        require_ranges(self, "", RANGES)
