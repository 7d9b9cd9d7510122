"""`python jobs/train.py` as a process that is watched from outside, and killed."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import load_file

from distcifar.sealed import verify
from distcifar.tracking.journal import read_events, read_rows
from distcifar.training.checkpoint import checkpoints

REPOSITORY = Path(__file__).parents[2]
TRAIN = REPOSITORY / "jobs" / "train.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
PATIENCE = 240.0  # seconds for anything that is waited for


class Program:
    """One launch of a run; `words` are those of jobs/train.py, as `script` may be that runs in its place."""

    def __init__(
        self,
        place: Path,
        name: str,
        *words: str,
        script: Path = TRAIN,
        cpus: int = 1,
        environment: Mapping[str, str] = ENVIRONMENT,
    ) -> None:
        self.folder = place / "runs" / name
        self._errors = place / f"{name}.err"
        command = [sys.executable, str(script), "debug", "--name", name, *words, "--data-root", str(place / "data")]
        command += ["--runs", str(place / "runs"), "--cpus-per-worker", str(cpus)]
        self.started = time.monotonic()
        with open(self._errors, "a") as errors, open(place / f"{name}.out", "a") as out:
            self.process = subprocess.Popen(
                command, env=environment, cwd=place, stdout=out, stderr=errors, start_new_session=True
            )

    def wait(self) -> int:
        """The exit code."""
        return self.process.wait(PATIENCE)

    def finish(self) -> None:
        """Waits for the end, which is to be a good one."""
        assert self.wait() == 0, self.errors()

    def kill(self) -> None:
        """SIGKILL to the program itself, nothing else; waits until it and its workers are gone. It may have ended."""
        if self.process.poll() is not None:
            return
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait(PATIENCE)
        psutil.wait_procs(children, timeout=PATIENCE)

    def step(self) -> int:
        """The last step in the journal."""
        rows = read_rows(self.folder)
        return int(rows[-1]["step"]) if rows else 0

    def wait_until(self, ready: Callable[[], Any], what: str) -> None:
        """Returns once `ready()` holds, which is asked a hundred times a second."""
        deadline = time.monotonic() + PATIENCE
        while not ready():
            assert self.process.poll() is None or ready(), f"ended before {what}: {self.errors()}"
            assert time.monotonic() < deadline, f"waited in vain for {what}: {self.errors()}"
            time.sleep(0.01)

    def errors(self) -> str:
        return self._errors.read_text()[-3000:]


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint, which must be whole; 0 if there is none."""
    found = checkpoints(folder / "checkpoints")
    if not found:
        return 0
    verify(found[0])
    return int(found[0].name.removeprefix("step-"))


def numbers(folder: Path) -> list[dict[str, Any]]:
    """The metric rows without what depends on the clock."""
    rows = read_rows(folder)
    return [{k: v for k, v in row.items() if not k.startswith("perf/") and k != "seconds"} for row in rows]


def same_end(folder: Path, whole: Path) -> bool:
    """Whether both runs have the same weights, bit for bit, and the same rows."""
    expected, found = (load_file(run / "model" / "model.safetensors") for run in (whole, folder))
    same = expected.keys() == found.keys() and all(bool((found[key] == expected[key]).all()) for key in expected)
    return same and numbers(folder) == numbers(whole)


def resumed_at(folder: Path) -> int:
    """The step at which the last start of the run began."""
    starts = [event for event in read_events(folder) if event["kind"] in ("start", "continue")]
    return int(starts[-1]["step"])
