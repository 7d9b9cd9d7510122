"""Whatever dies, W&B ends up with each step of the run directory once: the real client against a stand-in server."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from distcifar.tracking.identity import Identity, read_identity
from distcifar.tracking.outcome import launch_lock
from distcifar.tracking.rows import iter_rows
from distcifar.tracking.ship import Shipping, read_status
from distcifar.tracking.shipping import METRICS, shipped_rows
from distcifar.tracking.tracker import Tracker
from tests.support.fake_run import FakeRun, Plan, words_of
from tests.support.wandb_lab import KEY, Lab

ROOT = Path(__file__).parents[2]
PATIENCE = 200.0  # seconds: the machine may be busy with other things
IDENTITY = Identity("run-abc123", "run", "lab", group="sweep")
STATES, MODELS = "local-team/lab/run-abc123-state", "local-team/lab/run-abc123-model"


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    """A run that has begun, in a directory with its W&B identity."""
    folder = tmp_path / "runs" / "run"
    found = FakeRun(folder)
    found.describe(IDENTITY)
    found.begin()
    return found


@pytest.fixture
def machine(lab: Lab, tmp_path: Path) -> dict[str, str]:
    """The environment of a machine with a key."""
    return lab.client(tmp_path / "home")


@contextmanager
def training(folder: Path) -> Iterator[None]:
    """While open the run is being trained: another process holds its lock."""
    with launch_lock(folder):
        yield


def start(folder: Path, environment: dict[str, str], **how: Any) -> subprocess.Popen[bytes]:
    """The shipper as a process, as Tracker starts it."""
    shipping = replace(Shipping("online", minutes=0.0, watched_pid=os.getpid()), **how)
    (folder / "wandb").mkdir(exist_ok=True)
    with open(folder / "wandb" / "shipper.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "distcifar.tracking.shipper", folder, json.dumps(asdict(shipping))],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            cwd=ROOT,
            start_new_session=True,
        )


def leave(shipper: subprocess.Popen[bytes]) -> int:
    """The training program leaves; the shipper's exit code once it has sent the rest."""
    assert shipper.stdin is not None
    shipper.stdin.close()
    return shipper.wait(PATIENCE)


@contextmanager
def shipped(folder: Path, environment: dict[str, str], **how: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A shipper beside what is done within; it is to have sent everything in the end."""
    shipper = start(folder, environment, **how)
    try:
        yield shipper
        assert leave(shipper) == 0, log_of(folder)
    finally:
        kill(shipper)


def kill(process: subprocess.Popen[bytes]) -> None:
    """As the kernel does: nothing of the process runs after that."""
    with suppress(ProcessLookupError):
        process.kill()
    process.wait()


def log_of(folder: Path) -> str:
    path = folder / "wandb" / "shipper.log"
    return path.read_text() if path.exists() else ""


def until(fact: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Waits for `fact`; what it is."""
    end = time.monotonic() + seconds
    while not (found := fact()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.1)
    return found


def rows_there(lab: Lab, run_id: str = IDENTITY.id) -> list[tuple[int, dict[str, Any]]]:
    """The rows that the server has, without what the client adds; none where it has no such run."""
    runs = [run for run in lab.state()["runs"] if run["id"] == run_id]
    rows = runs[0]["history"]["rows"] if runs else []
    return [(row["_step"], {k: v for k, v in row.items() if not k.startswith("_")}) for row in rows]


def assert_everything_is_there(lab: Lab, folder: Path, *, state: str = "finished") -> dict[str, Any]:
    """Each step once, in order and with its values; one run, in that state; which is returned."""
    identity = read_identity(folder)
    assert identity is not None
    found = lab.state()
    assert [run["id"] for run in found["runs"]] == [identity.id]
    assert rows_there(lab, identity.id) == list(shipped_rows(iter_rows(folder)))
    assert found["runs"][0]["state"] == state
    assert found["problems"] == []
    assert found["uncommitted_artifacts"] == []
    run: dict[str, Any] = found["runs"][0]
    return run


def versions(lab: Lab, collection: str) -> dict[str, list[str]]:
    """The aliases of each version."""
    return {found["version"]: sorted(found["aliases"]) for found in lab.collection(collection)["versions"]}


def test_a_run_that_was_followed_to_its_end_is_there_with_all_that_belongs_to_it(
    lab: Lab, run: FakeRun, machine: dict[str, str]
):
    with training(run.folder), shipped(run.folder, machine):
        run.go(20)
        until(lambda: len(rows_there(lab)) >= 10)
        run.go(20)
        run.finish()
    found = assert_everything_is_there(lab, run.folder)
    assert (found["display_name"], found["group"], found["exit_code"]) == ("run", "sweep", 0)
    print(json.dumps({k: v for k, v in found.items() if k != "history"}, indent=1))
    print(json.dumps(lab.state()["collections"], indent=1))
    print(log_of(run.folder))
    assert 0
