"""Two hosts with their own addresses, names and disks, joined by `ray start`: the same numbers as one, and one cut off.

Neither host's name resolves, and no variable names an interface: that is found (cluster/interfaces.py).
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from distcifar.tracking.journal import read_events
from distcifar.tracking.rows import last_row
from tests.support.two_hosts import Host, two_hosts, why_not

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# As cluster.yaml has it: a node without a sign of life is given up after about 12 s, not after half a minute.
ENVIRONMENT = {
    "PATH": f"{BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
    "RAY_health_check_period_ms": "2000", "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3", "RAY_health_check_initial_delay_ms": "2000",
}  # fmt: skip
# What ranks share exactly: no BatchNorm, no dropout; and no Adam, which makes rounding errors of tiny gradients large.
EXACT = ("--model.no-batchnorm", "--model.dropout", "0", "--optim.name", "sgd", "--optim.lr", "0.02")


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, ...]]:
    if reason := why_not():
        pytest.skip(reason)
    with two_hosts(tmp_path / "hosts") as found:
        yield found


@contextmanager
def ray_node(host: Host, head: Host) -> Iterator[subprocess.Popen[str]]:
    """`ray start` on a host, with one CPU; the first one is the head."""
    first = (
        ["--head", "--port=6379", "--include-dashboard=false"] if host is head else [f"--address={head.address}:6379"]
    )
    words = ["ray", "start", *first, f"--node-ip-address={host.address}", "--num-cpus=1", "--block"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = host.popen(words, env=ENVIRONMENT, cwd=host.shared, **quiet)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def command(head: Host, *words: str) -> list[str]:
    """jobs/train.py on the cluster, its folders on what the hosts share."""
    places = ["--runs", str(head.shared / "runs"), "--data-root", str(head.shared / "data")]
    return [sys.executable, str(ROOT / "jobs/train.py"), "debug", *words, *places, "--address", f"{head.address}:6379"]


def wait_for(done: Any, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.2)


def nodes(head: Host) -> int:
    told = head.run(["ray", "status", f"--address={head.address}:6379"], env=ENVIRONMENT, check=False)
    return told.count(" node_")


def workers_of(folder: Path) -> list[int]:
    """The number of workers at each start so far."""
    starts = [event for event in read_events(folder) if event["kind"] in ("start", "continue")]
    return [int(event["text"].split(" with ")[1].split()[0]) for event in starts]


def test_two_hosts_train_as_one_does(hosts: tuple[Host, ...], tmp_path: Path):
    head, other = hosts
    with ray_node(head, head), ray_node(other, head):
        wait_for(lambda: nodes(head) == 2, 90, "both nodes")
        words = (*EXACT, "--epochs", "2", "--workers", "2", "--name", "two", "--device", "cpu")
        print(head.run(command(head, *words), env=ENVIRONMENT, cwd=head.shared, timeout=300))
    summary = json.loads((head.shared / "runs/two/summary.json").read_text())
    system = [json.loads(line) for line in (head.shared / "runs/two/system.jsonl").read_text().splitlines()]
    assert {rank["host"] for line in system for rank in line["ranks"]} == {"host-1", "host-2"}
    places = ["--runs", str(tmp_path / "runs"), "--data-root", str(head.shared / "data"), "--wandb", "disabled"]
    one = [sys.executable, str(ROOT / "jobs/train.py"), "debug", *EXACT, "--epochs", "2", "--name", "one", *places]
    subprocess.run(one, check=True, capture_output=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"})
    alone = json.loads((tmp_path / "runs/one/summary.json").read_text())
    assert (summary["workers"], alone["workers"]) == (2, 1)
    assert summary["steps"] == alone["steps"]
    assert summary["test_loss"] == pytest.approx(alone["test_loss"], rel=1e-4)
    assert summary["test_accuracy"] == pytest.approx(alone["test_accuracy"], abs=0.005)


def test_a_host_that_is_cut_off_is_told_left_behind_and_taken_back(hosts: tuple[Host, ...], tmp_path: Path):
    head, other = hosts
    log = (tmp_path / "log").open("w+")
    with ExitStack() as ends:
        ends.enter_context(ray_node(head, head))
        second = ends.enter_context(ray_node(other, head))
        wait_for(lambda: nodes(head) == 2, 90, "both nodes")
        words = (
            "--workers",
            "1..2",
            "--epochs",
            "3000",
            "--checkpoint-steps",
            "50",
            "--name",
            "cut",
            "--device",
            "cpu",
        )
        folder = head.shared / "runs/cut"
        training = head.popen(command(head, *words), env=ENVIRONMENT, cwd=head.shared, stdout=log, stderr=log)
        ends.callback(training.kill)
        wait_for(lambda: folder.exists() and (last_row(folder) or {"step": 0})["step"] >= 100, 200, "step 100")
        assert workers_of(folder) == [2]
        other.cut()
        begun, reached = time.monotonic(), last_row(folder)["step"]
        wait_for(lambda: workers_of(folder)[-1] == 1, 150, "one worker")
        alone = time.monotonic() - begun
        wait_for(lambda: last_row(folder)["step"] > reached, 60, "a new step")
        print(f"cut off: one worker after {alone:.0f} s, a new step after {time.monotonic() - begun:.0f} s")
        second.kill()  # it gave up on the head as the head did on it
        other.join()
        begun = time.monotonic()
        ends.enter_context(ray_node(other, head))
        wait_for(lambda: workers_of(folder)[-1] == 2, 150, "two workers again")
        print(f"back: two workers after {time.monotonic() - begun:.0f} s")
    told = [event["text"] for event in read_events(folder) if event["kind"] == "node lost"]
    assert len(told) == 1
    assert f"host-2 ({other.address}) does not answer any more" in told[0]
    log.seek(0)
    screen = log.read()
    print(screen)
    assert "raylet" not in screen, "Ray's own words are for --verbose"
