"""jobs/benchmark.py as a user types it, and the memory that a CIFAR training takes on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

JOBS = Path(__file__).parents[2] / "jobs"
MOST_BYTES = 1.5e9
# From a small process, since a child's peak is never told as less than that of the process that has started it.
MEASURED = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def benchmark(place: Path, *words: str, timeout: int = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(JOBS / "benchmark.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=place, timeout=timeout, env=dict(os.environ))


def test_a_mistake_is_told_in_one_message(tmp_path: Path):
    wrong = benchmark(tmp_path, "loader", "--rounds", "0")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: rounds is 0")
    assert benchmark(tmp_path, "stepp").returncode == 2
    assert benchmark(tmp_path, "all", "--rounds", "0").stderr.startswith("error: rounds is 0"), "all is a part as well"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_of_it_in_small(tmp_path: Path):
    """Every part comes to its end with figures that are there: about five minutes on two idle cores."""
    done = benchmark(tmp_path, "all", "--quick", "--rounds", "1", "--steps", "4", "--runs", "2", timeout=3500)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "benchmarks").glob("all-*.json")
    found = json.loads(path.read_text())
    titles = [comparison["title"] for comparison in found["comparisons"]]
    wanted = (
        "Data path", "debug: training step", "debug: steady epoch", "debug: whole command", "Workers",
        "From the command to the first step", "debug: test accuracy", "debug: timed region",
        "Time of an epoch by images", "Peak memory by images", "Memory over the epochs", "Checkpoints", "W&B",
    )  # fmt: skip
    assert set(wanted) <= set(titles)
    for comparison in found["comparisons"]:
        for line in comparison["lines"]:
            assert 0 < line["lowest"] <= line["median"] <= line["highest"], (comparison["title"], line)
    goals = [goal for comparison in found["comparisons"] for goal in comparison["goals"]]
    assert {goal["than"] for goal in goals} >= {"plain PyTorch", "eager fp32 channels_last"}
    assert path.with_suffix(".png").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("loader", ["resident", "streamed"])
def test_a_cifar_training_on_a_cpu_takes_less_than_a_gigabyte_and_a_half(
    shared_data: Path, tmp_path: Path, loader: str
):
    """One epoch of `quick` on all 49,000 images: memory is reached in the first steps and in the evaluations."""
    source, root = ["--source", str(shared_data / "cifar10.npz")], str(tmp_path / "data")
    prepare = [sys.executable, str(JOBS / "prepare.py"), "cifar10", *source, "--validation", "1000", "--root", root]
    subprocess.run(prepare, check=True, capture_output=True)
    command = [
        sys.executable, str(JOBS / "train.py"), "quick", *source, "--data-root", root, "--runs", str(tmp_path / "runs"),
        "--epochs", "1", "--loader", loader, "--device", "cpu", "--wandb", "disabled",
    ]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", MEASURED, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stderr.splitlines()[-1]) * 1024 < MOST_BYTES
