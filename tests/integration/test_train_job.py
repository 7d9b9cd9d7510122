"""jobs/train.py as a user types it: what a run leaves, a stop that saves, continuing, and refusing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from distcifar.cluster.stopping import StopRequest
from distcifar.files import sha256_of
from distcifar.sealed import FILES, MODEL_FILES, verify
from distcifar.tracking.journal import read_rows
from distcifar.training.checkpoint import checkpoints

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(place: Path, *words: str) -> subprocess.Popen[str]:
    """`python jobs/train.py WORDS` with data and runs in `place`, one thread, bitwise repeatable."""
    command = [
        sys.executable, str(REPOSITORY / "jobs" / "train.py"), *words, "--data-root", str(place / "data"),
        "--runs", str(place / "runs"), "--cpus-per-worker", "1", "--deterministic",
    ]  # fmt: skip
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=ENVIRONMENT, cwd=place, **pipes)


def train(place: Path, *words: str) -> tuple[int, str, str]:
    program = start(place, *words)
    out, err = program.communicate(timeout=240)
    return program.returncode, out, err


def wait_for_step(folder: Path, step: int, program: subprocess.Popen[str]) -> None:
    """Returns once the run's journal has that step."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and program.poll() is None:
        rows = read_rows(folder)
        if rows and rows[-1]["step"] >= step:
            return
        time.sleep(0.05)
    pytest.fail(f"step {step} was not reached: {program.communicate()}")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def whole(place: Path) -> tuple[Path, str, str]:
    """A finished run that was never interrupted, and what it printed."""
    code, out, err = train(place, "debug", "--name", "whole")
    assert code == 0, err
    return place / "runs" / "whole", out, err


def numbers(folder: Path) -> list[dict[str, object]]:
    """The metric rows without what depends on the clock."""
    return [{k: v for k, v in row.items() if not k.startswith("perf/") and k != "seconds"} for row in read_rows(folder)]


def test_a_run_leaves_what_docs_runs_md_says(whole: tuple[Path, str, str]):
    folder, out, _ = whole
    names = {path.name for path in folder.iterdir()} - {"system.jsonl"}  # of runs that take more than a second
    assert names == {
        "recipe.json", "run.json", "metrics.jsonl", "metrics.csv", "events.jsonl", "summary.json", "curves.png",
        "samples.npz", "samples.png", "startup.json", "tracking.json", "checkpoints", "model",
    }  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test_accuracy"] > 0.8, "the synthetic set is learnable"
    assert summary["outcome"] == "finished"
    assert f"{summary['test_accuracy']:.2%}" in out
    facts = json.loads((folder / "run.json").read_text())
    assert facts["data_digest"] == summary["data_digest"]
    for checkpoint in checkpoints(folder / "checkpoints"):
        verify(checkpoint, FILES)
    verify(folder / "model", (*MODEL_FILES, "README.md"))
    assert summary["model_sha256"] == sha256_of(folder / "model" / "model.safetensors")


def test_a_start_is_told_by_its_stages(whole: tuple[Path, str, str]):
    folder, out, _ = whole
    startup = json.loads((folder / "startup.json").read_text())
    assert [stage["name"] for stage in startup["stages"]] == [
        "imports", "data check", "run folder", "libraries", "workers", "data", "model", "first batch", "first step",
    ]  # fmt: skip
    assert sum(stage["seconds"] for stage in startup["stages"]) == pytest.approx(startup["total"], abs=0.01)
    assert out.count(f"First step after {startup['total']:.1f} s\n") == 1


def test_a_start_imports_no_more_than_it_needs_and_compiles_nothing_again(place: Path, whole: tuple[Path, str, str]):
    """What is looked at is the process at the end of its first step; `whole` has left the kernel in numba's cache."""
    program = """
import os, runpy, sys
from distcifar.tracking import startup

def told(*_):
    from distcifar.data.kernel import fill_batch
    late = {"torch._dynamo", "torchvision", "ffcv", "wandb", "matplotlib", "PIL", "jinja2"}
    found = sorted(late & set(sys.modules)), len(fill_batch.stats.cache_misses), len(fill_batch.stats.cache_hits) > 0
    print(*found, flush=True)
    os._exit(0)

startup.describe = told
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    jobs = REPOSITORY / "jobs"
    words = ["debug", "--name", "lean", "--data-root", str(place / "data"), "--runs", str(place / "runs")]
    ended = subprocess.run(
        [sys.executable, "-c", program, str(jobs / "train.py"), *words], cwd=place, capture_output=True, text=True,
        env=ENVIRONMENT | {"PYTHONPATH": str(jobs)}, timeout=240, check=False,
    )  # fmt: skip
    assert ended.stdout.split("\n")[-2:] == ["[] 0 True", ""], ended.stderr


@pytest.mark.slow
def test_a_program_that_has_imported_the_compiler_ends_without_a_word(place: Path):
    """torchvision, which reads MNIST's files, imports it; its library told of thousands of leaks at the exit."""
    program = (
        "import runpy, sys, torchvision; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    jobs = REPOSITORY / "jobs"
    words = [
        "debug",
        "--epochs",
        "1",
        "--name",
        "clean",
        "--data-root",
        str(place / "data"),
        "--runs",
        str(place / "runs"),
    ]
    environment = ENVIRONMENT | {"PYTHONPATH": str(jobs)}
    ended = subprocess.run(
        [sys.executable, "-c", program, str(jobs / "train.py"), *words],
        env=environment, cwd=place, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert ended.returncode == 0
    assert ended.stderr == ""


def test_output_without_a_terminal_is_plain_lines(whole: tuple[Path, str, str]):
    _, out, err = whole
    assert "\x1b" not in out
    assert "\r" not in out
    assert [line[:9] for line in out.splitlines() if " best" in line and line.startswith("epoch")][:1] == ["epoch 1/2"]
    assert "ray" not in err.lower(), "Ray's noise is kept out"


def test_ctrl_c_saves_and_the_same_command_continues_bitwise(place: Path, whole: tuple[Path, str, str]):
    words = ("debug", "--name", "stopped")
    program = start(place, *words)
    wait_for_step(place / "runs" / "stopped", 5, program)
    program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=120)
    assert program.returncode == 130, err
    assert "jobs/train.py debug --name stopped" in out.split("To go on: ")[1]
    newest = checkpoints(place / "runs" / "stopped" / "checkpoints")[0]
    verify(newest)
    assert int(newest.name.removeprefix("step-")) == read_rows(newest.parents[1])[-1]["step"]
    same_end(place, words, whole[0])


@pytest.mark.slow
def test_kill_9_in_mid_run_and_the_same_command_ends_the_same(place: Path, whole: tuple[Path, str, str]):
    words = ("debug", "--name", "killed", "--checkpoint-steps", "10")
    program = start(place, *words)
    wait_for_step(place / "runs" / "killed", 33, program)
    program.kill()
    program.communicate()
    same_end(place, words, whole[0])


def same_end(place: Path, words: tuple[str, ...], whole: Path) -> None:
    """The continued run has the weights and rows of the one that was not interrupted."""
    code, _, err = train(place, *words)
    assert code == 0, err
    folder = place / "runs" / words[2]
    expected, found = (load_file(run / "model" / "model.safetensors") for run in (whole, folder))
    assert all((found[key] == expected[key]).all() for key in expected)
    assert numbers(folder) == numbers(whole)


def test_a_finished_run_is_not_overwritten_unasked(place: Path, whole: tuple[Path, str, str]):
    code, _, err = train(place, "debug", "--name", "whole")
    assert code == 2
    assert "finished" in err
    assert "--overwrite" in err


@pytest.mark.slow
def test_an_unfinished_run_is_not_continued_with_another_recipe(place: Path):
    program = start(place, "debug", "--name", "other")
    wait_for_step(place / "runs" / "other", 2, program)
    program.kill()
    program.communicate()
    code, _, err = train(place, "debug", "--name", "other", "--optim.lr", "0.003")
    assert code == 2
    assert "optim.lr: 0.01 -> 0.003" in err


@pytest.mark.slow
def test_diverged_training_is_told_with_step_rate_and_remedy(place: Path):
    code, _, err = train(place, "debug", "--name", "diverged", "--optim.name", "sgd", "--optim.lr", "100",
                         "--model.no-batchnorm", "--schedule.name", "constant")  # fmt: skip
    assert code == 3, err
    assert "At step" in err
    assert "learning rate was 100" in err
    assert "--optim.lr 10" in err
    assert "Traceback" not in err


def test_a_stop_request_is_seen_and_cleared(tmp_path: Path):
    request = StopRequest(tmp_path)
    assert not request.made()
    request.make()
    time.sleep(0.25)
    assert request.made()
    request.clear()
    assert not StopRequest(tmp_path).made()
