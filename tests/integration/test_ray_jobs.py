"""`ray job submit` on a head that asks for a token: what users type there, and what nobody may do."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from distcifar.tracking.outcome import outcome
from distcifar.tracking.rows import last_row
from tests.support.wandb_lab import KEY, Lab, wandb_lab

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
REPOSITORY = Path(__file__).parents[2]
BINARIES = Path(sys.executable).parent
TOKEN = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
# No BatchNorm's running statistics, no dropout: and long enough to be stopped on the way.
TRAIN = ("jobs/train.py", "debug", "--workers", "2", "--deterministic")


@dataclass(frozen=True)
class Head:
    """A head of two CPUs on ports of its own, whose home is `home`; W&B is the lab."""

    home: Path
    session: Path
    port: int
    lab: Lab
    environment: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def runs(self) -> Path:
        return self.home / "distcifar" / "runs"

    def ray(self, *words: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
        """A `ray` command of a laptop that has the token."""
        return subprocess.run(
            [BINARIES / "ray", *words], env=self.environment, cwd=REPOSITORY, capture_output=True, text=True,
            timeout=timeout,
        )  # fmt: skip

    def submit(self, *words: str, options: tuple[str, ...] = (), **keywords: Any) -> subprocess.CompletedProcess[str]:
        """`ray job submit OPTIONS --working-dir . -- python WORDS`."""
        return self.ray("job", "submit", *options, "--working-dir", ".", "--", "python", *words, **keywords)

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs as the head tells them."""
        request = urllib.request.Request(f"{self.url}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    home = tmp_path_factory.mktemp("home")
    session = Path(tempfile.mkdtemp(prefix="ray"))  # short: Ray's sockets lie in it, and their paths hold 107 bytes
    with wandb_lab(home / "lab") as lab:
        found = Head(home, session, free_port(), lab, {})
        environment = lab.client(home) | {
            "PATH": f"{BINARIES}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_API_SERVER_ADDRESS": found.url,
        }  # fmt: skip
        del environment["WANDB_API_KEY"]  # it is where it belongs, in a file of the head's own:
        for path, text in (
            (home / ".ray" / "auth_token", TOKEN),
            (home / ".netrc", f"machine {lab.url.rpartition('/')[2]}\n  login user\n  password {KEY}\n"),
        ):
            path.parent.mkdir(exist_ok=True)
            path.touch(mode=0o600)
            path.write_text(text)
        found.environment.update(environment)
        words = ("start", "--head", "--port", str(free_port()), "--dashboard-port", str(found.port), "--num-cpus", "2",
                 "--dashboard-agent-listen-port", str(free_port()), "--temp-dir", str(session), "--block")  # fmt: skip
        process = subprocess.Popen(
            [BINARIES / "ray", *words], env=environment, cwd=home, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_for(lambda: answers(found), 120)
            yield found
        finally:
            children = psutil.Process(process.pid).children(recursive=True)
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)
            for child in psutil.wait_procs(children, timeout=10)[1]:
                child.kill()
            shutil.rmtree(session, ignore_errors=True)


def answers(head: Head) -> bool:
    try:
        return isinstance(head.jobs(), list)
    except OSError:
        return False


def wait_for(done: Any, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until, "it has not come"
        time.sleep(0.1)


@pytest.mark.parametrize(("method", "path"), [("POST", "/api/jobs/"), ("DELETE", "/api/jobs/x"), ("GET", "/api/jobs/")])
@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer " + "0" * 64}], ids=["none", "wrong"])
def test_without_the_token_nothing_is_done(head: Head, method: str, path: str, header: dict[str, str]):
    body = json.dumps({"entrypoint": f"touch {head.home}/taken"}).encode() if method == "POST" else None
    headers = {"Content-Type": "application/json", **header}
    request = urllib.request.Request(head.url + path, body, headers, method=method)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code in (401, 403)
    assert not (head.home / "taken").exists()


def test_a_stopped_job_goes_on_when_the_same_line_is_submitted_again(head: Head):
    words = (*TRAIN, "--epochs", "40", "--checkpoint-minutes", "0", "--checkpoint-epochs", "40")
    job = ("--submission-id", "first", "--no-wait")
    begun = head.submit(*words, options=job)
    assert begun.returncode == 0, begun.stdout + begun.stderr
    wait_for(lambda: any(last_row(path.parent) for path in head.runs.glob("*/recipe.json")), 120)
    (folder,) = (path.parent for path in head.runs.glob("*/recipe.json"))
    wait_for(lambda: last_row(folder)["step"] > 100, 60)
    reached = last_row(folder)["step"]
    assert head.ray("job", "stop", "first").returncode == 0
    newest = max(folder.glob("checkpoints/step-*")).name
    rows = last_row(folder)["step"]
    assert outcome(folder).kind == "preempted"
    assert reached <= int(newest.removeprefix("step-")) == rows, "a checkpoint of the last step, within Ray's 3 seconds"
    again = head.submit(*words)
    assert again.returncode == 0, again.stdout
    assert outcome(folder).kind == "finished"
    assert len(list(head.runs.glob("*/recipe.json"))) == 1
    whole = head.submit(*words, "--name", "whole")
    assert whole.returncode == 0, whole.stdout
    one, other = (load_file(head.runs / name / "model" / "model.safetensors") for name in (folder.name, "whole"))
    assert one.keys() == other.keys()
    assert all(bool((one[name] == other[name]).all()) for name in one), "bitwise"


def test_a_job_that_waits_says_who_holds_the_places(head: Head):
    long = (*TRAIN, "--epochs", "5000", "--wandb", "disabled", "--name")
    assert head.submit(*long, "long", options=("--submission-id", "long", "--no-wait")).returncode == 0
    wait_for(lambda: last_row(head.runs / "long"), 120)
    begun = time.monotonic()
    waiting = subprocess.Popen(
        [BINARIES / "ray", "job", "submit", "--submission-id", "waits", "--working-dir", ".", "--", "python", *TRAIN,
         "--epochs", "1", "--wandb", "disabled", "--name", "waits"],
        env=head.environment, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    line = next(line for line in waiting.stdout or () if "Waiting for places" in line)
    print(f"told after {time.monotonic() - begun:.0f} s: {line}")
    assert "2 worker(s) need 2 CPUs; the cluster has 2 CPUs of which 0 free" in line
    assert re.search(r"Held: 2 CPUs by python jobs/train\.py debug .*\(long\)", line)
    assert "ray job stop long" in line
    head.ray("job", "stop", "long")
    assert waiting.wait(timeout=200) == 0


def test_a_job_of_one_to_two_workers_waits_aloud_too_and_can_be_stopped(head: Head):
    """Ray asks for no places for it as long as another training has them all; and nobody could save anything."""
    assert head.submit(*TRAIN, "--epochs", "5000", "--wandb", "disabled", "--name", "all",
                       options=("--submission-id", "all", "--no-wait")).returncode == 0  # fmt: skip
    try:
        wait_for(lambda: last_row(head.runs / "all"), 120)
        words = ("jobs/train.py", "debug", "--workers", "1..2", "--wandb", "disabled", "--name", "some")
        assert head.submit(*words, options=("--submission-id", "some", "--no-wait")).returncode == 0
        wait_for(lambda: "Held: 2 CPUs by python jobs/train.py debug" in head.ray("job", "logs", "some").stdout, 90)
        begun = time.monotonic()
        head.ray("job", "stop", "some")
        assert time.monotonic() - begun < 20
        assert [job["status"] for job in head.jobs() if job["submission_id"] == "some"] == ["STOPPED"]
    finally:
        head.ray("job", "stop", "all")
    assert outcome(head.runs / "some").kind in ("preempted", "killed"), "Ray kills what has not ended after 3 seconds"


def test_the_doctor_looks_at_the_folders_of_jobs(head: Head):
    done = head.submit("jobs/doctor.py", "--json")
    assert f'"path": "{head.runs}"' in done.stdout
    assert "could not be looked at" not in done.stdout
    assert "requirements.lock" not in done.stdout


def test_a_mistake_ends_a_job_with_its_message_and_exit_code(head: Head):
    done = head.submit("jobs/train.py", "debug", "--optim.lr", "-1")
    assert done.returncode == 1, "Ray's own, for whatever has failed"
    assert "exit code 2" in done.stdout + done.stderr
    assert "lr is -1" in done.stdout
    assert "Traceback (most recent call last)" not in done.stdout
    uploaded = re.search(r"Uploading package .*\(([\d.]+)(K|M)iB\)", done.stdout + done.stderr)
    assert uploaded is None or uploaded[2] == "K" or float(uploaded[1]) < 5, "what is uploaded stays small"


@pytest.mark.parametrize(
    ("words", "result"),
    [
        (("jobs/prepare.py", "synthetic"), "data/*/train.beton"),
        (("jobs/tune.py", "debug", "--trials", "2", "--max-epochs", "2", "--confirm", "1x1", "--name", "s"),
         "runs/s/best.json"),
        (("jobs/benchmark.py", "tracking", "--quick"), "benchmarks/*.json"),
    ],
    ids=["prepare", "tune", "benchmark"],
)  # fmt: skip
def test_other_programs_are_submitted_the_same_way(head: Head, words: tuple[str, ...], result: str):
    done = head.submit(*words)
    assert done.returncode == 0, done.stdout
    assert list((head.home / "distcifar").glob(result))


def test_with_verbose_the_workers_lines_have_their_rank(head: Head):
    done = head.submit(*TRAIN, "--epochs", "1", "--wandb", "disabled", "--verbose")
    assert done.returncode == 0, done.stdout
    assert {"rank 0", "rank 1"} >= set(re.findall(r"\((rank \d) pid=", done.stdout)) != set()


def test_the_key_of_w_and_b_is_used_and_is_nowhere_but_in_its_file(head: Head):
    """After all that was done above."""
    assert any(run["state"] == "finished" for run in head.lab.state()["runs"]), "the key was used"
    own = {head.home / ".netrc"}
    places = [path for root in (head.session, head.home) for path in root.rglob("*") if path.is_file()]
    found = [path for path in places if path not in own and "lab" not in path.parts and KEY.encode() in read(path)]
    assert not found
    assert KEY not in json.dumps(head.jobs())
    for process in psutil.process_iter():
        told = read(Path(f"/proc/{process.pid}/environ")) + read(Path(f"/proc/{process.pid}/cmdline"))
        assert str(head.session).encode() not in told or KEY.encode() not in told, process


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has gone meanwhile, or is a socket
        return b""
