"""jobs/train.py --estimate as a user types it, and a run that tells how far it was off."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distcifar.cluster.estimates.estimate import estimate
from distcifar.cluster.estimates.figures import Measured
from distcifar.config import RunSpec, from_dict
from distcifar.recipes import RECIPES

TRAIN = Path(__file__).parents[2] / "jobs" / "train.py"
# From a small process, since a child's peak is never told as less than that of the process that has started it.
MEASURED = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def train(place: Path, *words: str) -> tuple[str, int]:
    """What `jobs/train.py WORDS` prints, and its peak of memory in bytes."""
    command = [sys.executable, "-c", MEASURED, sys.executable, str(TRAIN), *words, "--wandb", "disabled"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=place, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout, int(done.stderr.splitlines()[-1]) * 1024


@pytest.mark.slow
def test_an_estimate_trains_nothing_and_the_run_after_it_tells_its_error(tmp_path: Path):
    words = ("debug", "--cpus-per-worker", "1")
    out, _ = train(tmp_path, *words, "--estimate")
    assert "Measuring a few steps" in out
    assert "not measured" in out
    assert out.splitlines()[-1].startswith("To start it: ")
    assert "--estimate" not in out.splitlines()[-1]
    runs = tmp_path / "runs"
    assert [path.name for path in runs.iterdir()] == [".estimates"]
    (kept,) = (runs / ".estimates").iterdir()
    measured = from_dict(Measured, json.loads(kept.read_text()))
    foretold = estimate(RECIPES["debug"], RunSpec(), measured.work, measured.figures, 1, on_gpu=False)

    out, peak = train(tmp_path, *words, "--name", "run")
    run = runs / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["estimated_seconds"] == pytest.approx(foretold.training, abs=1e-3)
    assert json.loads((run / "run.json").read_text())["estimate"]["seconds"] == summary["estimated_seconds"]
    assert "estimated" in out
    assert f"({summary['seconds'] / summary['estimated_seconds'] - 1:+.0%})" in out
    assert 0.75 < peak / foretold.host_bytes < 1.33, "memory within a third"
    left = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    left += sum(path.stat().st_size for path in (tmp_path / "data").rglob("*") if path.is_file())
    assert 0.75 < left / foretold.disk_bytes <= 1.0, "the disk is enough, by a third at most"
    assert len(list((run / "checkpoints").iterdir())) <= foretold.checkpoints
