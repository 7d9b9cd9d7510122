"""Several workers on real Ray clusters: the same numbers as one process, and messages instead of silent waits."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distcifar.cluster.session import Workers, embedded_cpus, fit_workers, require_head
from distcifar.config import RunSpec
from distcifar.errors import ResourceError

REPOSITORY = Path(__file__).parents[2]
TRAIN = str(REPOSITORY / "jobs" / "train.py")
# What ranks share exactly: no BatchNorm, no dropout; and no Adam, which makes rounding errors of tiny gradients large.
NO_NORM = ("--model.no-batchnorm", "--model.dropout", "0", "--epochs", "1", "--optim.name", "sgd", "--optim.lr", "0.02")


def run(place: Path, *words: str) -> dict[str, object]:
    """The summary of `python jobs/train.py debug WORDS`."""
    folders = ("--data-root", str(place / "data"), "--runs", str(place / "runs"))
    done = subprocess.run(
        [sys.executable, TRAIN, "debug", *words, *folders], capture_output=True, text=True, timeout=280, cwd=place
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    name = words[words.index("--name") + 1]
    return json.loads((place / "runs" / name / "summary.json").read_text())


def test_two_workers_train_as_one_does(tmp_path: Path):
    one = run(tmp_path, *NO_NORM, "--name", "one")
    two = run(tmp_path, *NO_NORM, "--name", "two", "--workers", "2")
    assert (one["workers"], two["workers"]) == (1, 2)
    assert two["steps"] == one["steps"]
    assert two["test_loss"] == pytest.approx(one["test_loss"], rel=1e-4)


@pytest.mark.slow
def test_three_workers_share_two_cores(tmp_path: Path):
    assert run(tmp_path, *NO_NORM, "--name", "three", "--workers", "3")["workers"] == 3


def test_a_dead_head_is_told_within_seconds():
    start = time.monotonic()
    with pytest.raises(ResourceError, match=r"127\.0\.0\.1:9.*ray start --head"):
        require_head("127.0.0.1:9")
    assert time.monotonic() - start < 10


def test_more_than_the_cluster_has_is_told_with_have_and_need():
    spec = RunSpec(workers=5, address="auto")
    with pytest.raises(ResourceError, match=r"4 CPUs and 0 GPUs; 5 workers need 5 CPUs.*--workers 4"):
        fit_workers(spec, {"CPU": 4.0})
    with pytest.raises(ResourceError, match=r"2 GPUs; 5 workers need 5 CPUs and 5 GPUs.*--workers 2"):
        fit_workers(spec, {"CPU": 64.0, "GPU": 2.0})


def test_workers_default_to_one_per_gpu_or_one():
    assert fit_workers(RunSpec(address="auto"), {"CPU": 16.0, "GPU": 4.0}) == Workers(4, 1, gpu=True)
    assert fit_workers(RunSpec(address="auto", device="cpu"), {"CPU": 16.0, "GPU": 4.0}) == Workers(1, 1, gpu=False)
    assert fit_workers(RunSpec(workers=2), {"CPU": 8.0}) == Workers(2, 4, gpu=False)


def test_an_embedded_cluster_shares_cores_up_to_a_limit():
    assert embedded_cpus(RunSpec(workers=3), 2) == 3
    assert embedded_cpus(RunSpec(workers=1), 2) == 2
    with pytest.raises(ResourceError, match="64 workers"):
        embedded_cpus(RunSpec(workers=64), 2)
