"""Where a benchmark works: what was asked for, a scratch folder, the data, the device, other processes."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from distcifar.benchmark.settings import Settings
from distcifar.cluster import ENVIRONMENT
from distcifar.config import DataConfig, Recipe
from distcifar.data.build import OpenData, open_data
from distcifar.data.prepare import PreparedData, prepare
from distcifar.errors import RunError
from distcifar.recipes import get_recipe
from distcifar.world import World

REPOSITORY = Path(__file__).parents[2]
SKIPPED = 77  # exit code of a peer that cannot do what it is asked for
POLL_SECONDS = 0.02
DATALOADER_WORKERS = 2  # the common script's


@dataclass(frozen=True)
class Place:
    """What every measurement is given."""

    settings: Settings
    scratch: Path
    environment: Mapping[str, str]  # of the processes that are started
    announce: Callable[[str], None]

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU, which is then what is measured."""
        return torch.cuda.is_available()

    @property
    def world(self) -> World:
        """This process alone, on the device that is measured."""
        return World(device=torch.device("cuda", 0) if self.on_gpu else torch.device("cpu"))

    @property
    def threads(self) -> int:
        """Threads of each side's data path."""
        return self.settings.threads or len(os.sched_getaffinity(0))

    @property
    def data(self) -> DataConfig:
        """The data set that was asked for, split as usual."""
        return DataConfig(dataset=self.settings.dataset)

    def recipe(self, name: str, **changes: Any) -> Recipe:
        """The recipe of that name on the data that was asked for (--quick: debug's, whatever the name)."""
        recipe = get_recipe("debug" if self.settings.quick else name)
        data = recipe.data if self.settings.quick else replace(recipe.data, dataset=self.settings.dataset)
        return replace(recipe, data=data, **changes)

    def prepare(self, data: DataConfig) -> PreparedData:
        """The prepared files of `data`."""
        source = "" if data.dataset == "synthetic" else self.settings.source
        return prepare(data, Path(self.settings.root).absolute(), source, announce=self.announce)

    def open(self, recipe: Recipe, *, mode: str = "auto") -> tuple[PreparedData, OpenData]:
        """The recipe's data, and loaders of them for this process."""
        prepared = self.prepare(recipe.data)
        return prepared, open_data(recipe, prepared.folder, self.world, mode=mode, threads=self.threads)

    def run(self, command: Sequence[str], *, ours: bool = True, extra: Mapping[str, str] | None = None) -> "Finished":
        """Runs a program to its end. ours: with the environment that jobs/train.py sets as well."""
        return finish(self.start(command, ours=ours, extra=extra))

    def start(self, command: Sequence[str], *, ours: bool = True, extra: Mapping[str, str] | None = None) -> "Started":
        """The program, just started; its output goes to files, so that it never waits for a reader."""
        environment = {**self.environment, **(ENVIRONMENT if ours else {}), **(extra or {})}
        number = len(list(self.scratch.glob("*.out")))
        out, err = (self.scratch / f"process-{number}.{name}" for name in ("out", "err"))
        with out.open("w") as stdout, err.open("w") as stderr:
            begun = time.perf_counter()
            process = subprocess.Popen(
                command, env=environment, cwd=None if ours else self.scratch, stdout=stdout, stderr=stderr
            )
        return Started(process, tuple(command), out, err, begun)


@dataclass(frozen=True)
class Started:
    """A running program."""

    process: subprocess.Popen[bytes]
    command: tuple[str, ...]
    out: Path
    err: Path
    begun: float


@dataclass(frozen=True)
class Finished:
    """How a program ended, and what it took."""

    code: int
    output: str
    errors: str
    seconds: float  # from the start to the end
    cpu_seconds: float  # of it and of the processes that it waited for
    peak_bytes: int  # its largest resident set, without other processes


def finish(started: Started) -> Finished:
    """Waits for the program. RunError if it failed; one that skips (exit code SKIPPED) has not."""
    pid, peak = started.process.pid, 0
    try:
        while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
            peak = max(peak, _peak_bytes(pid))
            time.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - started.begun
        _, status, usage = os.wait4(pid, 0)
    except BaseException:
        started.process.kill()
        started.process.wait()
        raise
    code = started.process.returncode = os.waitstatus_to_exitcode(status)
    cpu_seconds = usage.ru_utime + usage.ru_stime
    found = Finished(code, started.out.read_text(), started.err.read_text(), seconds, cpu_seconds, peak)
    if code not in (0, SKIPPED):
        raise RunError(
            f"{' '.join(started.command)} ended with exit code {code}: {last_line(found.errors)}",
            "Both sides of a comparison must come to their end",
            "Run it alone to see what is wrong with it",
        )
    return found


def _peak_bytes(pid: int) -> int:
    """The largest resident set so far: rusage's would be that of the process that started it, if that was larger."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0  # it has just ended


def last_line(text: str) -> str:
    """The last line that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "nothing was said")


def python(*words: str) -> list[str]:
    """A command with this Python."""
    return [sys.executable, *words]


def train_command(recipe: Recipe, place: Place, *words: str) -> list[str]:
    """jobs/train.py with `recipe`'s name and data, without W&B, into the scratch folder."""
    data, settings = recipe.data, place.settings
    source = ["--source", settings.source] if settings.source and data.dataset != "synthetic" else []
    return python(
        str(REPOSITORY / "jobs" / "train.py"), recipe.name, "--data.dataset", data.dataset,
        "--data.validation", str(data.validation), "--data.train-first", str(data.train_first),
        "--data-root", settings.root, *source, "--runs", str(place.scratch / "runs"),
        "--wandb", "disabled", *words,
    )  # fmt: skip
