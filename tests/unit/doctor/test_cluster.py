"""A real cluster of two nodes: what dead drivers have left is found and removed, and nothing else is told."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distcifar.cluster.census import clock_skew
from tests.unit.doctor.faults import SECRET

ROOT = Path(__file__).parents[3]
# A driver that leaves a placement group, a detached actor and a key behind.
LEAKY = """
import ray, sys
ray.init(address=sys.argv[1], runtime_env={"env_vars": {"WANDB_API_KEY": sys.argv[2]}}, namespace="old")

@ray.remote(num_cpus=0)
class Keeper:
    def pid(self):
        import os
        return os.getpid()

keeper = Keeper.options(name="keeper", lifetime="detached").remote()
ray.get(keeper.pid.remote())
ray.get(ray.util.placement_group([{"CPU": 1}], name="trial", lifetime="detached").ready())
"""

CLUSTER = """
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
print("at", cluster.address, flush=True)
input()
cluster.shutdown()
"""
TOKEN = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5" * 64}


def test_the_clock_with_the_shortest_way_counts():
    """Ways of 4, 1 and 3 seconds there; the clock asked is 10 s ahead. The answer is given at the way's end."""
    ways, now = iter((4.0, 1.0, 3.0, 3.0, 3.0)), [100.0]

    def ask() -> float:
        now[0] += next(ways)
        return now[0] + 10

    assert clock_skew(ask, lambda: now[0]) == {"skew": 10.5, "uncertainty": 0.5}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A head and a second node, with a token and no dashboard, its Ray has known the token from the start."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], env=TOKEN, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    yield next(line.removeprefix("at ").strip() for line in process.stdout if line.startswith("at "))
    process.communicate("\n", timeout=60)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_leaks_are_found_and_removed_and_nothing_else_is_told(address: str, tmp_path: Path):
    def doctor(*words: str) -> dict[str, Any]:
        flags = ("--json", "--runs", str(tmp_path), "--data-root", str(tmp_path), "--address", address)
        done = subprocess.run(
            [sys.executable, str(ROOT / "jobs" / "doctor.py"), *flags, *words],
            capture_output=True,
            text=True,
            timeout=240,
            env=TOKEN | {"HOME": str(tmp_path), "RAY_TMPDIR": str(tmp_path)},  # --fix mends nothing of this machine
        )
        assert done.stdout, done.stderr
        assert SECRET[1:] not in done.stdout + done.stderr
        return json.loads(done.stdout)

    def of_cluster(document: dict[str, Any]) -> dict[str, str]:
        mine = {
            "nodes",
            "versions",
            "authentication",
            "clocks",
            "leaks",
            "placement groups",
            "detached actors",
            "secrets",
        }
        return {
            found["check"]: found["what"]
            for found in document["findings"]
            if found["check"] in mine
            or found["check"].endswith(" versions")
            or found["where"]
            or found["check"] == "cluster"
        }

    healthy = of_cluster(doctor())
    assert healthy.pop("clocks").startswith("within 0.")
    assert healthy.pop("locked versions") == "as in requirements.lock"
    assert healthy == {"nodes": "2 answered", "versions": "equal on all nodes", "leaks": "none of dead drivers"}

    subprocess.run([sys.executable, "-c", LEAKY, address, SECRET], check=True, timeout=120, env=TOKEN)
    ill = of_cluster(doctor())
    assert ill["placement groups"] == "1 of dead drivers: trial {'CPU': 1.0}"
    assert ill["detached actors"] == "1 of dead drivers: keeper (Keeper)"
    assert "carries WANDB_API_KEY in clear text" in ill["secrets"]

    mended = doctor("--fix")
    assert any("placement group trial" in done for done in mended["fixed"])
    left = of_cluster(mended)
    assert "placement groups" not in left
    assert left["detached actors"] == "1 of dead drivers: keeper (Keeper)", "made to outlive its driver"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_head_that_wants_a_token_is_told(address: str, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "doctor.py"), "--json", "--address", address, "--runs", str(tmp_path)],
        capture_output=True, text=True, timeout=240, env=TOKEN | {"RAY_AUTH_MODE": "disabled"},
    )  # fmt: skip
    told = [found for found in json.loads(done.stdout)["findings"] if found["check"] == "cluster"]
    assert done.returncode == 1
    assert "without its token" in told[0]["what"]
    assert "RAY_AUTH_MODE=token" in told[0]["remedy"]


# Asked of both nodes: one stays silent, on the other what is asked for fails.
SILENT = """
import json, os, sys, time
from pathlib import Path
from distcifar.cluster import census
from distcifar.cluster.session import connected
from distcifar.config import RunSpec

def ask(turn):
    try:
        Path(turn).mkdir()
    except FileExistsError:
        time.sleep(60)
    raise ModuleNotFoundError("No module named 'distcifar'")

with connected(RunSpec(address=sys.argv[1]), 0):
    print(json.dumps(census.on_each_node(ask, sys.argv[2], seconds=15)))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_node_that_does_not_answer_holds_up_nobody(address: str, tmp_path: Path):
    words = [sys.executable, "-c", SILENT, address, str(tmp_path / "turn")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=TOKEN, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    problems = sorted(answer["problem"] for answer in json.loads(done.stdout).values())
    assert problems == ["ModuleNotFoundError: No module named 'distcifar'", "no answer in 15 s"]
