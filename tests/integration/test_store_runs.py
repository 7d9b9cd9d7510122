"""jobs/train.py with its runs in a bucket: machines that share nothing else, killed, cut off, and gone on with."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from distcifar.cluster.stored.mirror import Mirror
from distcifar.cluster.stored.places import runs_here
from distcifar.cluster.stored.pull import Follower
from distcifar.sealed import MODEL_FILES, verify
from distcifar.store import Store
from distcifar.tracking.journal import read_events, read_rows
from tests.support.object_store import ObjectStore, object_store

pytestmark = pytest.mark.slow  # the same without a training: tests/unit/cluster/stored/test_storage.py

TRAIN = Path(__file__).parents[2] / "jobs" / "train.py"
CLOCKS = ("seconds", "images_per_s")
LONG = ("--epochs", "12", "--checkpoint-steps", "20")  # some seconds, several checkpoints in each


@pytest.fixture(scope="module")
def s3() -> Iterator[ObjectStore]:
    with object_store() as found:
        yield found


class Machine:
    """A home of its own, in which a command is typed."""

    def __init__(self, home: Path, runs: str, data: str) -> None:
        self.home, self.runs, self.data = home, runs, data
        home.mkdir(parents=True)

    @property
    def copy(self) -> Path:
        """Where its copies of runs are."""
        return self.home / runs_here(self.runs).relative_to(Path.home()) if "://" in self.runs else Path(self.runs)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """`python jobs/train.py debug WORDS`, one thread, bitwise repeatable."""
        fonts = {"MPLCONFIGDIR": os.environ.get("MPLCONFIGDIR", str(Path("~/.config/matplotlib").expanduser()))}
        return subprocess.Popen(
            [sys.executable, str(TRAIN), "debug", *words, "--runs", self.runs, "--data-root", self.data,
             "--cpus-per-worker", "1", "--deterministic"],
            env={**os.environ, **fonts, "HOME": str(self.home), "OMP_NUM_THREADS": "1"},
            cwd=self.home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def train(self, *words: str) -> tuple[int, str, str]:
        program = self.start(*words)
        out, err = program.communicate(timeout=280)
        return program.returncode, out, err


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, data: str) -> Path:
    """The same run in a folder, never interrupted."""
    place = tmp_path_factory.mktemp("plain")
    code, _, err = Machine(place / "home", str(place / "runs"), data).train("--name", "a", *LONG)
    assert code == 0, err
    return place / "runs" / "a"


def fetched(url: str, folder: Path) -> Path:
    """All that is stored of a run, as a run directory."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    Follower(Mirror(folder, Store(url), "reader")).pull(whole=True)
    return folder


def require_alike(stored: Path, plain: Path) -> None:
    """The run that is stored has the numbers and the bits of the one that was not interrupted."""

    def numbers(folder: Path) -> list[dict[str, object]]:
        rows = read_rows(folder)
        return [{k: v for k, v in row.items() if not k.startswith("perf/") and k != "seconds"} for row in rows]

    def summary(folder: Path) -> dict[str, object]:
        return {k: v for k, v in json.loads((folder / "summary.json").read_text()).items() if k not in CLOCKS}

    assert numbers(stored) == numbers(plain)
    assert summary(stored) == summary(plain)
    verify(stored / "model", MODEL_FILES)
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (stored, plain))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    newest = max(path.name for path in (plain / "checkpoints").glob("step-*"))
    ours, theirs = (load_file(folder / "checkpoints" / newest / "state.safetensors") for folder in (stored, plain))
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def wait_until_stored(url: str, name: str, program: subprocess.Popen[str]) -> None:
    """Returns once there is an object whose name begins with `name`."""
    until = time.monotonic() + 200
    while time.monotonic() < until and program.poll() is None:
        if any(found.startswith(name) for found in Store(url).listing()):
            return
        time.sleep(0.05)
    pytest.fail(f"{name} is not stored: {program.communicate()}")


def wait_for_checkpoint(url: str, program: subprocess.Popen[str]) -> None:
    """Returns once one after the first step is stored whole."""
    until = time.monotonic() + 200
    while time.monotonic() < until and program.poll() is None:
        manifests = {name for name in Store(url).listing() if name.endswith("manifest.json")}
        if manifests - {"checkpoints/step-00000000/manifest.json"}:
            return
        time.sleep(0.05)
    pytest.fail(f"no checkpoint is stored: {program.communicate()}")


def kill(program: subprocess.Popen[str]) -> None:
    """As a power cut: nothing of it is left."""
    os.killpg(program.pid, signal.SIGKILL)
    program.communicate()


def test_killed_and_gone_on_with_elsewhere_it_is_the_run_that_was_not(
    s3: ObjectStore, tmp_path: Path, plain: Path, data: str
):
    runs = s3.url("killed")
    url = s3.url("killed/a")
    first = Machine(tmp_path / "first", runs, data).start("--name", "a", *LONG)
    wait_for_checkpoint(url, first)
    kill(first)
    other = Machine(tmp_path / "other", runs, data)
    code, out, err = other.train("--name", "a", *LONG)
    assert code == 0, err
    assert f"Results: s3://bucket/killed/a (curves.png, samples.png, metrics.csv, summary.json, model/); a copy in {other.copy}/a" in out  # fmt: skip # noqa: E501
    stored = fetched(url, tmp_path / "stored")
    require_alike(stored, plain)
    assert {"start", "continue"} <= {event["kind"] for event in read_events(stored)}
    names = {path.name for path in plain.iterdir()}
    assert {path.name for path in stored.iterdir()} == names


def test_killed_time_after_time_on_one_machine_after_the_other(s3: ObjectStore, tmp_path: Path, plain: Path, data: str):
    rng, runs, url = random.Random(7), s3.url("often"), s3.url("often/a")
    waited = 0
    for number in range(6):
        machine = Machine(tmp_path / f"machine-{number}", runs, data)
        program = machine.start("--name", "a", *LONG)
        if number == 5:
            out, err = program.communicate(timeout=280)
            assert program.returncode == 0, err
            waited += "still trains this run" in out
            break
        wait_until_stored(url, "launch.json", program)
        time.sleep(rng.uniform(0, 18))
        kill(program)
    assert waited, "the lease of a command that was killed is watched"
    require_alike(fetched(url, tmp_path / "stored"), plain)


def test_over_a_line_that_is_cut_again_and_again_it_is_the_same_run(
    s3: ObjectStore, tmp_path: Path, plain: Path, data: str
):
    rng, over, line = random.Random(3), threading.Event(), s3.line

    def cut() -> None:
        while not over.wait(rng.uniform(0.1, 0.6)):
            line.cut()

    line.cuts = 0
    thread = threading.Thread(target=cut)
    thread.start()
    program = Machine(tmp_path / "first", s3.url("cut", over_line=True), data).start("--name", "a", *LONG)
    wait_for_checkpoint(s3.url("cut/a"), program)
    line.down = True
    time.sleep(10)
    line.down = False
    _, err = program.communicate(timeout=280)
    over.set()
    thread.join()
    assert program.returncode == 0, err
    assert line.cuts
    require_alike(fetched(s3.url("cut/a"), tmp_path / "stored"), plain)


@pytest.mark.timeout(600)  # two minutes when nothing else runs
def test_two_workers_stop_and_go_on_with_nothing_shared_but_the_bucket(s3: ObjectStore, tmp_path: Path, data: str):
    words = ("--name", "a", "--epochs", "40", "--workers", "2")
    runs, url, bucket = s3.url("ray"), s3.url("ray/a"), s3.url("data")
    first = Machine(tmp_path / "first", runs, bucket)
    program = first.start(*words)
    wait_for_checkpoint(url, program)
    program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=120)
    assert program.returncode == 130, err
    assert "with a checkpoint in s3://bucket/ray/a/checkpoints" in out
    assert (first.copy / ".ranks" / "a" / "checkpoints").is_dir(), "workers have a copy of their own"
    stopped = fetched(url, tmp_path / "stopped")
    at = json.loads((stopped / "events.jsonl").read_text().splitlines()[-1])
    assert at["kind"] == "stopped"
    step = read_rows(stopped)[-1]["step"]
    assert (stopped / "checkpoints" / f"step-{step:08d}").is_dir()
    other = Machine(tmp_path / "other", runs, bucket)
    code, out, err = other.train(*words)
    assert code == 0, err
    assert "epoch 40/40" in out
    stored = fetched(url, tmp_path / "stored")
    rows = [row["step"] for row in read_rows(stored) if row["kind"] == "step"]
    assert rows == list(range(1, rows[-1] + 1))
    verify(other.copy / "a" / "model", MODEL_FILES)
    assert (stored / "curves.png").exists()
    whole = Machine(tmp_path / "whole", str(tmp_path / "runs"), bucket)
    code, _, err = whole.train(*words)
    assert code == 0, err
    require_alike(stored, tmp_path / "runs" / "a")
