"""Whatever dies, W&B ends up with each step of the run directory once: the real client against a stand-in server."""

import json
import os
import pty
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from distcifar.errors import CheckpointError
from distcifar.sealed import FILES, verify
from distcifar.tracking.identity import Identity, read_identity
from distcifar.tracking.outcome import launch_lock
from distcifar.tracking.rows import iter_rows
from distcifar.tracking.shipping.content import shipped_rows
from distcifar.tracking.shipping.ship import Shipping, read_status
from distcifar.tracking.shipping.tracker import Tracker
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
            [sys.executable, "-m", "distcifar.tracking.shipping.shipper", folder, json.dumps(asdict(shipping))],
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


def assert_everything_is_there(
    lab: Lab, folder: Path, *, state: str = "finished", drafts: bool = False
) -> dict[str, Any]:
    """Each step once, in order and with its values; one run, in that state; which is returned.

    drafts: a kill in the middle of an upload may have left one, which W&B removes by itself.
    """
    identity = read_identity(folder)
    assert identity is not None
    found = lab.state()
    assert [run["id"] for run in found["runs"]] == [identity.id]
    assert rows_there(lab, identity.id) == list(shipped_rows(iter_rows(folder)))
    assert found["runs"][0]["state"] == state
    assert found["problems"] == []
    assert drafts or found["uncommitted_artifacts"] == []
    run: dict[str, Any] = found["runs"][0]
    return run


def versions(lab: Lab, collection: str) -> dict[str, list[str]]:
    """The aliases of each version."""
    return {found["version"]: sorted(found["aliases"]) for found in lab.collection(collection)["versions"]}


SYNC = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from distcifar.tracking.shipping.sync import sync_runs
found = sync_runs([Path(sys.argv[1])], announce=lambda text: print(text, file=sys.stderr), project="lab")
print(json.dumps([asdict(result) | {"folder": ""} for result in found]))
"""


def syncing(folder: Path, environment: dict[str, str]) -> "subprocess.Popen[str]":
    """`report.py sync RUN` as a process."""
    words = [sys.executable, "-c", SYNC, str(folder)]
    return subprocess.Popen(words, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def synced(folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """What `report.py sync RUN` says of the run."""
    out, err = syncing(folder, environment).communicate(timeout=PATIENCE)
    assert out, err
    (found,) = json.loads(out)
    return dict(found)


def launched(folder: Path, plan: Plan, environment: dict[str, str]) -> "subprocess.Popen[str]":
    """A whole program that trains, with its own tracker and shipper."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    pipe = subprocess.PIPE
    words = words_of(folder, plan)
    return subprocess.Popen(words, env=environment, cwd=ROOT, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def assert_key_is_nowhere(*places: Path) -> None:
    """The account's key is in no file, whatever its kind."""
    files = [path for place in places for path in place.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 5
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_a_run_that_was_followed_to_its_end_is_there_with_all_that_belongs_to_it(
    lab: Lab, run: FakeRun, machine: dict[str, str], tmp_path: Path
):
    with training(run.folder), shipped(run.folder, machine):
        run.go(20)
        until(lambda: len(rows_there(lab)) >= 10)
        run.go(20)
        run.finish()
    found = assert_everything_is_there(lab, run.folder)
    assert (found["display_name"], found["group"], found["exit_code"]) == ("run", "sweep", 0)
    config, summary = found["config"], found["summary"]
    assert (config["epochs"], config["data"]["dataset"], config["run"]["data_digest"]) == (2, "synthetic", "d" * 64)
    assert (summary["outcome"], summary["test/accuracy"], summary["test/per_class/class 3"]) == ("finished", 0.75, 0.65)
    rows = [values for _, values in shipped_rows(iter_rows(run.folder))]
    assert summary["train/loss"] == {"min": min(row["train/loss"] for row in rows)}
    assert summary["validation/accuracy"] == {"max": max(row.get("validation/accuracy", 0) for row in rows)}
    tables = {name: value["nrows"] for name, value in summary.items() if isinstance(value, dict) and "nrows" in value}
    assert tables == {"test/classes": 10, "test/confusion": 100, "test/samples": 4, "events": 2}
    assert found["used_artifacts"] == ["local-team/lab/synthetic-dddddddddddd:v0"]
    newest = [aliases for aliases in versions(lab, STATES).values() if "latest" in aliases]
    assert newest == [["epoch-5", "latest"]]
    assert ["best", f"epoch-{run.best}"] in versions(lab, STATES).values()
    assert versions(lab, MODELS) == {"v0": ["best", "latest"]}
    assert "system.proc.memory.rssMB" in found["system_metric_keys"]
    assert_key_is_nowhere(run.folder, tmp_path / "home")


@pytest.mark.slow
def test_the_images_are_sent_only_if_they_are_asked_for(
    lab: Lab, run: FakeRun, machine: dict[str, str], tmp_path: Path
):
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    (prepared / "train.beton").write_bytes(bytes(1000))
    facts = json.loads((run.folder / "run.json").read_text()) | {"data_folder": str(prepared)}
    run.go(20)
    run.finish()
    for upload, files in (("state", ["data.json"]), ("data", ["data.json", "prepared/train.beton"])):
        (run.folder / "run.json").write_text(json.dumps(facts | {"spec": {"upload": upload}}))
        assert synced(run.folder, machine)["missing"] == []
        newest = lab.collection("local-team/lab/synthetic-dddddddddddd")["versions"][-1]
        assert sorted(newest["files"]) == files


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_a_shipper_killed_at_any_moment_loses_and_doubles_nothing(
    lab: Lab, run: FakeRun, machine: dict[str, str], seed: int
):
    rng = random.Random(seed)
    with training(run.folder):
        for attempt in range(5 if seed else 1):
            shipper = start(run.folder, machine)
            if attempt == 0:
                run.go(3)
                until(lambda: rows_there(lab))
            end = time.monotonic() + rng.uniform(0.5, 8.0 if seed else 2.0)
            while time.monotonic() < end:
                run.go(rng.randrange(1, 6))
                if not rng.randrange(20) and run.step > 16:  # a resume from an older checkpoint
                    run.back_to(8 * rng.randrange(1, run.step // 8 + 1))
                time.sleep(0.05)
            kill(shipper)
        with shipped(run.folder, machine):
            run.go(8 - run.step % 8)
            run.finish()
    reached = max(step for step, _ in rows_there(lab))
    if reached == run.step:  # else W&B has rows that the run, cut back, has not reached again
        found = assert_everything_is_there(lab, run.folder, drafts=True)
        rows = [values for _, values in shipped_rows(iter_rows(run.folder))]
        assert found["summary"]["train/loss"] == {"min": min(row["train/loss"] for row in rows)}
    assert [step for step, _ in rows_there(lab)] == list(range(1, reached + 1))
    assert lab.run(IDENTITY.id)["summary"]["outcome"] == "finished"
    aliases = sorted(alias for names in versions(lab, STATES).values() for alias in names)
    assert [alias for alias in aliases if alias in ("best", "latest")] == ["best", "latest"]
    (latest,) = [found for found in lab.collection(STATES)["versions"] if "latest" in found["aliases"]]
    assert latest["metadata"]["step"] == run.step


@pytest.mark.slow
def test_rows_that_were_cut_back_are_there_once_and_the_curve_does_not_go_back(
    lab: Lab, run: FakeRun, machine: dict[str, str]
):
    with training(run.folder), shipped(run.folder, machine):
        run.go(43)
        until(lambda: len(rows_there(lab)) >= 40)
        first = {step: values for step, values in rows_there(lab) if step <= 40}
        run.back_to(16, salt=3)
        run.go(10)
        time.sleep(4)
        run.go(40)
        run.finish()
    rows = rows_there(lab)
    assert [step for step, _ in rows] == list(range(1, 67))
    assert {step: values for step, values in rows if step <= 40} == first
    assert lab.run(IDENTITY.id)["state"] == "finished"
    (latest,) = [found for found in lab.collection(STATES)["versions"] if "latest" in found["aliases"]]
    assert latest["metadata"]["step"] == 64


ENDS = {
    "killed": (signal.SIGKILL, 137),
    "stopped": (signal.SIGINT, 130),
    "preempted": (signal.SIGTERM, 143),
    "failed": (None, 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENDS)
def test_however_a_program_ends_wandb_is_told_and_the_run_goes_on_as_the_same_one(
    lab: Lab, machine: dict[str, str], tmp_path: Path, kind: str
):
    number, code = ENDS[kind]
    folder, plan = tmp_path / "runs" / "first", Plan(steps=20_000, rate=50)
    program = launched(folder, plan if number else replace(plan, steps=200, end="fail"), machine)
    try:
        until(lambda: lab.state()["runs"] and lab.state()["runs"][0]["history"]["lines"] > 5)
        if number:
            program.send_signal(number)
        words = program.communicate(timeout=PATIENCE)[0]
    finally:
        kill(program)
    identity = read_identity(folder)
    assert identity is not None
    until(lambda: lab.run(identity.id)["exit_code"] is not None)
    found = lab.run(identity.id)
    assert (found["exit_code"], found["summary"]["outcome"]) == (code, kind)
    assert found["state"] == "failed"
    assert rows_there(lab, identity.id) == list(shipped_rows(iter_rows(folder)))
    steps = max(row["step"] for row in iter_rows(folder)) + 40
    again = launched(folder, replace(plan, steps=steps - steps % 8), machine)
    try:
        words += again.communicate(timeout=PATIENCE)[0]
    finally:
        kill(again)
    assert "report.py sync" not in words, words
    found = assert_everything_is_there(lab, folder, drafts=kind == "killed")
    assert (found["exit_code"], found["summary"]["outcome"]) == (0, "finished")
    assert KEY not in words
    assert_key_is_nowhere(folder, tmp_path / "home")


@pytest.mark.slow
def test_a_command_typed_again_right_after_a_kill_does_not_get_in_the_way_of_the_shipper_before_it(
    lab: Lab, machine: dict[str, str], tmp_path: Path
):
    folder, plan = tmp_path / "runs" / "first", Plan(steps=20_000, rate=50)
    for _ in range(2):
        program = launched(folder, plan, machine)
        lines = max((row["step"] for row in iter_rows(folder)), default=0)
        try:
            until(lambda lines=lines: lab.state()["runs"] and lab.state()["runs"][0]["history"]["lines"] > lines + 5)
        finally:
            kill(program)
    steps = max(row["step"] for row in iter_rows(folder)) + 240
    program = launched(folder, replace(plan, steps=steps - steps % 8), machine)
    try:
        words = program.communicate(timeout=PATIENCE)[0]
    finally:
        kill(program)
    assert "report.py sync" not in words, words
    found = assert_everything_is_there(lab, folder, drafts=True)
    assert (found["exit_code"], found["summary"]["outcome"]) == (0, "finished")


def test_without_a_key_nobody_is_asked_and_the_run_can_be_sent_later(
    lab: Lab, run: FakeRun, machine: dict[str, str], tmp_path: Path
):
    def files() -> list[Path]:
        return list((run.folder / "wandb").glob("offline-run-*/*.wandb"))

    lonely = lab.client(tmp_path / "offline", online=False)
    with training(run.folder):
        run.go(20)
        killed = start(run.folder, lonely, mode="auto")
        until(files)
        kill(killed)
        first = files()
        time.sleep(1.1)  # the client names its folder by the second: a quick start would give it the same name
        with shipped(run.folder, lonely, mode="auto"):
            until(lambda: files() and files() != first)
            run.go(28)
            run.finish()
    assert len(files()) == 1  # made anew, not one for each attempt
    assert read_status(run.folder)["mode"] == "offline"
    assert lab.state()["runs"] == []
    result = synced(run.folder, machine)
    assert (result["missing"], result["state"], result["rows"]) == ([], "finished", 48)
    assert_everything_is_there(lab, run.folder)
    there = {found["collection"]: found["versions"] for found in lab.state()["collections"]}
    assert synced(run.folder, machine)["missing"] == []
    assert_everything_is_there(lab, run.folder)
    assert {found["collection"]: found["versions"] for found in lab.state()["collections"]} == there
    assert len(files()) == 1
    assert_key_is_nowhere(run.folder, tmp_path / "home")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_sync_that_is_killed_leaves_nothing_doubled_or_missing(
    lab: Lab, run: FakeRun, machine: dict[str, str], seed: int
):
    run.go(160)
    run.finish()
    rng = random.Random(seed)
    for _ in range(3):
        process = syncing(run.folder, machine)
        until(lambda process=process: process.poll() is not None or lab.state()["runs"])
        time.sleep(rng.uniform(0.0, 3.0))
        process.kill()
        process.communicate()
    assert synced(run.folder, machine)["missing"] == []
    assert_everything_is_there(lab, run.folder, drafts=True)
    there = {name: versions(lab, name) for name in (STATES, MODELS)}
    assert ["epoch-20", "latest"] in [[a for a in names if a != "best"] for names in there[STATES].values()]
    assert [alias for names in there[STATES].values() for alias in names].count("best") == 1
    assert len(there[STATES]) <= 3
    assert there[MODELS] == {"v0": ["best", "latest"]}
    assert synced(run.folder, machine)["missing"] == []
    assert {name: versions(lab, name) for name in (STATES, MODELS)} == there


@pytest.mark.slow
def test_a_run_that_goes_on_is_sent_as_far_as_it_is_and_stays_a_running_one(
    lab: Lab, run: FakeRun, machine: dict[str, str], tmp_path: Path
):
    lonely = lab.client(tmp_path / "offline", online=False)
    with training(run.folder), shipped(run.folder, lonely, mode="auto"):
        run.go(20)
        until(lambda: list((run.folder / "wandb").glob("offline-run-*")))
        assert synced(run.folder, machine)["missing"] == []
        found = assert_everything_is_there(lab, run.folder, state="running")
        assert found["summary"]["outcome"] == "running"
        assert list((run.folder / "wandb").glob("offline-run-*"))  # that of the other process
        run.go(20)
        run.finish()
    assert synced(run.folder, machine)["state"] == "finished"
    assert_everything_is_there(lab, run.folder)


KEYS = {
    "wrong": ("w" * 40, "online"),
    "short": ("short", "online"),
    "short, any mode": ("short", "auto"),
    "none": ("", "online"),
}


@pytest.mark.parametrize("kind", [*(pytest.param(kind, marks=pytest.mark.slow) for kind in list(KEYS)[1:]), "wrong"])
def test_a_key_that_is_not_taken_is_told_and_the_run_is_not_lost(
    lab: Lab, run: FakeRun, machine: dict[str, str], kind: str
):
    key, mode = KEYS[kind]
    run.go(8)
    shipper = start(run.folder, machine | {"WANDB_API_KEY": key}, mode=mode)
    try:
        until(lambda: read_status(run.folder).get("problem") or read_status(run.folder).get("mode") == "offline")
        run.go(8)
        assert leave(shipper) == (0 if mode == "auto" else 1), log_of(run.folder)
    finally:
        kill(shipper)
    if mode == "online":
        assert "key" in read_status(run.folder)["problem"].lower()
    assert lab.state()["runs"] == []


@pytest.mark.slow
def test_sync_without_a_key_asks_nothing_also_on_a_terminal(lab: Lab, run: FakeRun, tmp_path: Path):
    run.go(8)
    master, terminal = pty.openpty()
    words = [sys.executable, "-c", SYNC, str(run.folder)]
    environment = lab.client(tmp_path / "home", online=False) | {"WANDB_BASE_URL": lab.url}
    process = subprocess.Popen(words, env=environment, cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal)
    try:
        process.wait(PATIENCE)
        assert "There is no W&B key" in os.read(master, 100_000).decode()
    finally:
        kill(process)
        os.close(master)
        os.close(terminal)
    assert lab.state()["runs"] == []


FAULTS: list[dict[str, Any]] = [
    {"kind": "status", "status": 503, "match": "."},
    {"kind": "status", "status": 500, "match": "storage"},
    {"kind": "status", "status": 503, "match": "Artifact"},
    {"kind": "stall", "match": "."},
    {"kind": "drop", "match": "."},
    {"kind": "ratelimit", "match": "."},
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault['kind']} {fault['match']}")
@pytest.mark.parametrize("moment", ["start", "middle", "end"])
def test_a_server_that_is_ill_for_a_while_ends_up_with_everything(
    lab: Lab, run: FakeRun, machine: dict[str, str], fault: dict[str, Any], moment: str
):
    with training(run.folder):
        if moment == "start":
            lab.fault(**fault, seconds=20)
        shipper = start(run.folder, machine)
        try:
            run.go(20)
            if moment != "start":
                until(lambda: len(rows_there(lab)) > 10)
            if moment == "middle":
                lab.fault(**fault, seconds=20)
            run.go(20)
            time.sleep(5)
            run.go(20)
            run.finish()
            if moment == "end":
                lab.fault(**fault, seconds=20)
            code = leave(shipper)
        finally:
            kill(shipper)
    assert code in (0, 1), log_of(run.folder)
    lab.fault()
    if code:
        assert synced(run.folder, machine)["missing"] == []
    assert_everything_is_there(lab, run.folder, drafts=True)
    assert {tuple(found) for found in versions(lab, MODELS).values()} == {("best", "latest")}


@pytest.mark.slow
def test_a_server_that_is_dead_at_the_start_gets_everything_when_it_is_back(
    lab: Lab, run: FakeRun, machine: dict[str, str]
):
    lab.stop()
    with training(run.folder):
        shipper = start(run.folder, machine)
        try:
            run.go(20)
            until(lambda: read_status(run.folder).get("problem"))
            lab.restart()
            until(lambda: len(rows_there(lab)) >= 18)
            run.finish()
            assert leave(shipper) == 0, log_of(run.folder)
        finally:
            kill(shipper)
    assert_everything_is_there(lab, run.folder, drafts=True)


@pytest.mark.slow
def test_a_server_that_is_dead_at_the_end_is_not_waited_for_and_gets_the_rest_by_sync(
    lab: Lab, run: FakeRun, machine: dict[str, str]
):
    told: list[str] = []
    with training(run.folder):
        tracker = Tracker(run.folder, Shipping("online", minutes=0.0, watched_pid=os.getpid()), machine, told.append)
        run.go(20, tracker.listen)
        until(lambda: len(rows_there(lab)) > 10)
        assert tracker._process is not None
        processes = [psutil.Process(tracker._process.pid), *psutil.Process(tracker._process.pid).children()]
        lab.stop()
        try:
            run.go(20)
            run.finish()
            begun = time.monotonic()
            tracker.close(10.0)
            assert time.monotonic() - begun < 20
            assert any("report.py sync" in text for text in told)
            tracker._process.wait(PATIENCE)
            assert psutil.wait_procs(processes, PATIENCE)[1] == []  # W&B's own process has gone with it
        finally:
            kill(tracker._process)
            lab.restart()
    assert synced(run.folder, machine)["missing"] == []
    assert_everything_is_there(lab, run.folder, drafts=True)


@pytest.mark.slow
def test_a_client_whose_service_dies_is_begun_anew(lab: Lab, run: FakeRun, machine: dict[str, str]):
    with training(run.folder), shipped(run.folder, machine) as shipper:
        run.go(20)
        until(lambda: len(rows_there(lab)) > 10)
        for child in psutil.Process(shipper.pid).children():
            if child.name() == "wandb-core":
                child.kill()
        run.go(20)
        until(lambda: len(rows_there(lab)) > 30)
        run.finish()
    assert_everything_is_there(lab, run.folder, drafts=True)


@pytest.mark.slow
def test_the_stop_button_asks_the_training_to_stop_and_nothing_is_lost(lab: Lab, run: FakeRun, machine: dict[str, str]):
    with training(run.folder), shipped(run.folder, machine):
        run.go(20)
        until(lambda: len(rows_there(lab)) > 10)
        body = json.dumps({"run": IDENTITY.id}).encode()
        urllib.request.urlopen(urllib.request.Request(f"{lab.url}/_stop", body, method="POST")).read()
        until((run.folder / "stop").exists)
        run.go(20)
        run.save()
        run.journal.event("stopped", "at step 40", signal="")
    found = assert_everything_is_there(lab, run.folder, state="failed")
    assert (found["exit_code"], found["summary"]["outcome"]) == (130, "stopped")
    (run.folder / "stop").unlink()
    with training(run.folder), shipped(run.folder, machine):  # the same command again: W&B still says `stopped`
        run.begin()
        run.go(20)
        time.sleep(25)
        assert not (run.folder / "stop").exists()
        run.finish()
    assert_everything_is_there(lab, run.folder)


@pytest.mark.slow
def test_old_states_go_and_the_best_and_the_latest_stay(lab: Lab, run: FakeRun, machine: dict[str, str]):
    def steps_there() -> set[int]:
        found = [found for found in lab.state()["collections"] if found["collection"] == STATES]
        return {version["metadata"]["step"] for found in found for version in found["versions"]}

    with training(run.folder), shipped(run.folder, machine, keep_states=1):
        for _ in range(6):
            run.go(8)
            until(lambda: run.step in steps_there())
    found = {version["metadata"]["step"]: version["aliases"] for version in lab.collection(STATES)["versions"]}
    assert set(found) == {8 * run.best, run.step}
    assert "best" in found[8 * run.best]
    assert "latest" in found[run.step]


FETCH = """
import json, sys
from pathlib import Path
from distcifar.errors import TrackingError
from distcifar.tracking.wandb.artifacts import fetch_state
for reference, into, most in json.loads(sys.argv[1]):
    Path(into).mkdir(parents=True)
    try:
        print(json.dumps([str(fetch_state(reference, Path(into), most_bytes=most)), ""]))
    except TrackingError as error:
        print(json.dumps(["", str(error)]))
"""
LOG = """
import json, sys, wandb
run = wandb.init(project="lab", id="maker", settings=wandb.Settings(console="off", silent=True, x_disable_stats=True))
for name, kind, entries in json.loads(sys.argv[1]):
    artifact = wandb.Artifact(name, type=kind)
    for i, (path, content) in enumerate(entries.items()):
        if content.startswith("file://"):
            artifact.add_reference(content, name=path)
        else:
            with artifact.new_file(f"plain{i}") as file:
                file.write(content + path)
            entry = artifact.manifest.entries.pop(f"plain{i}")
            entry.path = path
            artifact.manifest.entries[path] = entry
    run.log_artifact(artifact).wait(60)
run.finish()
"""


def fetched(wanted: list[tuple[str, Path, int]], environment: dict[str, str]) -> list[tuple[str, str]]:
    """For each reference, folder and size the run directory that is fetched, or what was wrong."""
    words = json.dumps([(reference, str(into), most) for reference, into, most in wanted])
    done = subprocess.run(
        [sys.executable, "-c", FETCH, words],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


HERE = "wandb:local-team/lab/run-abc123"
MOST = 10**9


def test_a_state_comes_back_as_the_run_directory_that_it_is_of(
    lab: Lab, run: FakeRun, machine: dict[str, str], tmp_path: Path
):
    run.go(40)
    assert synced(run.folder, machine)["missing"] == []
    away = lab.client(tmp_path / "another home")
    steps = {"": 40, ":latest": 40, ":best": run.best * 8, ":epoch-5": 40, ":v0": run.best * 8}
    wanted = [(HERE + alias, tmp_path / f"into{alias}", MOST) for alias in steps]
    for step, (folder, problem) in zip(steps.values(), fetched(wanted, away), strict=True):
        assert problem == ""
        checkpoint = f"checkpoints/step-{step:08d}"
        inside = {f"{checkpoint}/{name}" for name in (*FILES, "manifest.json")}
        assert files_of(Path(folder)) == inside | {"metrics.jsonl", "run.json", "tracking.json"}
        verify(Path(folder) / checkpoint)
        for name in FILES:
            assert (run.folder / checkpoint / name).read_bytes() == (Path(folder) / checkpoint / name).read_bytes()
        assert list(iter_rows(Path(folder))) == [row for row in run.rows if row["step"] <= step]
    bad = {
        f"{HERE}:nothing": "cannot be fetched",
        "wandb:local-team/lab/unknown": "cannot be fetched",
        "wandb:local-team/lab/a/b/c": "has the form",
        "wandb:../x": "cannot be fetched",
    }
    wanted = [(reference, tmp_path / f"none{i}", MOST) for i, reference in enumerate(bad)]
    for words, (folder, problem) in zip(bad.values(), fetched(wanted, away), strict=True):
        assert (folder, words in problem) == ("", True), problem
    ((_, problem),) = fetched([(HERE, tmp_path / "small", 1000)], away)
    assert "at most 1,000 are taken" in problem
    assert_key_is_nowhere(*tmp_path.glob("into*"), tmp_path / "another home")


@pytest.mark.slow
def test_from_a_dead_server_nothing_is_fetched(lab: Lab, machine: dict[str, str], tmp_path: Path):
    lab.stop()
    try:
        ((folder, problem),) = fetched([(HERE, tmp_path / "dead", MOST)], machine)
    finally:
        lab.restart()
    assert folder == ""
    assert "cannot be fetched" in problem


HOSTILE = {
    "up": {"../escaped": "x"},
    "deep": {"checkpoint/../../escaped": "x"},
    "absolute": {"/tmp/h5-escaped": "x"},
    "extra": {"checkpoint/state.json": "{}", "checkpoint/run.sh": "x"},
    "nested": {"checkpoint/sub/state.json": "{}"},
    "newline": {"run/metrics.jsonl\n": "{}"},
    "upper": {"checkpoint/STATE.json": "{}"},
    "reference": {"checkpoint/state.json": "file:///etc/hostname"},
    "half": {"run/run.json": "{}"},
    "strange": {"checkpoint/state.json": '{"progress": {"step": "../../x"}}', "run/run.json": "{}"},
}


@pytest.mark.slow
def test_what_is_no_training_state_is_not_downloaded(lab: Lab, machine: dict[str, str], tmp_path: Path):
    made = [(f"{name}-state", "train-state", entries) for name, entries in HOSTILE.items()]
    made.append(("typed-state", "model", {"checkpoint/state.json": "{}"}))
    words = [sys.executable, "-c", LOG, json.dumps(made)]
    done = subprocess.run(words, env=machine, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    there = {found["collection"].rpartition("/")[2] for found in lab.state()["collections"]}
    assert there >= {name for name, _, _ in made}
    away = lab.client(tmp_path / "away")
    names = [*HOSTILE, "typed"]
    wanted = [(f"wandb:local-team/lab/{name}", tmp_path / "refused" / name, MOST) for name in names]
    for name, (folder, problem) in zip(names, fetched(wanted, away), strict=True):
        assert (folder, bool(problem)) == ("", True), name
        if name not in ("half", "strange"):
            assert files_of(tmp_path / "refused" / name) == set(), name
    assert not [*tmp_path.rglob("*escaped*"), *Path("/tmp").glob("h5-escaped*")]


@pytest.mark.slow
def test_content_that_was_changed_on_the_server_is_found(
    lab: Lab, run: FakeRun, machine: dict[str, str], tmp_path: Path
):
    run.go(8)
    assert synced(run.folder, machine)["missing"] == []
    weights = (run.folder / "checkpoints" / "step-00000008" / "state.safetensors").read_bytes()
    blobs = [path for path in (tmp_path / "wandb-server").rglob("*") if path.is_file() and path.stat().st_size < 10**6]
    (blob,) = [path for path in blobs if path.read_bytes() == weights]
    blob.write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    ((folder, problem),) = fetched([(HERE, tmp_path / "into", MOST)], lab.client(tmp_path / "away"))
    if not problem:  # the client has believed it
        with pytest.raises(CheckpointError):
            verify(Path(folder) / "checkpoints" / "step-00000008")


@pytest.mark.slow
def test_a_server_that_does_not_answer_holds_up_no_step(
    lab: Lab, run: FakeRun, machine: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("distcifar.tracking.shipping.tracker.LOOK_SECONDS", 0.3)
    lab.fault(kind="stall", match=".", seconds=600)
    told: list[str] = []
    tracker = Tracker(run.folder, Shipping("online", minutes=0.0, watched_pid=os.getpid()), machine, told.append)
    calls: list[float] = []

    def listen(row: dict[str, Any]) -> None:
        begun = time.perf_counter()
        tracker.listen(row)
        calls.append(time.perf_counter() - begun)

    with training(run.folder):
        end = time.monotonic() + 5
        while time.monotonic() < end or tracker._starts < 3:
            run.go(5, listen)
            if tracker._process is not None and tracker._starts < 3:
                kill(tracker._process)  # it is started again, which is the most that `listen` ever does
        tracker.close(1.0)
    lab.fault()
    slowest = sorted(calls, reverse=True)
    print(f"the slowest of {len(calls)} calls: {[round(1000 * took, 1) for took in slowest[:5]]} ms")
    assert slowest[3] < 0.05  # all but the three that start a process
    assert slowest[0] < 0.5
    assert any("report.py sync" in text for text in told)


@pytest.mark.slow
def test_a_run_that_ends_without_a_new_row_is_told_to_wandb(lab: Lab, run: FakeRun, machine: dict[str, str]):
    run.go(16)
    with shipped(run.folder, machine):
        pass
    assert lab.run(IDENTITY.id)["summary"]["outcome"] == "killed"
    told: list[str] = []
    with training(run.folder):
        tracker = Tracker(run.folder, Shipping("online", watched_pid=os.getpid()), machine, told.append)
        run.begin()
        tracker.listen({"kind": "continue"})
        run.finish()
        tracker.close(PATIENCE)
    assert_everything_is_there(lab, run.folder)
    assert any(lab.url in text for text in told)


@pytest.mark.slow
def test_sync_says_what_is_wrong_with_a_directory_and_takes_it_when_it_is_mended(
    lab: Lab, run: FakeRun, machine: dict[str, str]
):
    run.go(8)
    for name in ("run.json", "tracking.json", "recipe.json"):
        text = (run.folder / name).read_text()
        (run.folder / name).write_text("{")
        assert synced(run.folder, machine)["missing"], name
        (run.folder / name).write_text(text)
    assert synced(run.folder, machine)["missing"] == []
    assert_everything_is_there(lab, run.folder, state="failed")
