"""Nodes that go and come back under a run of --workers 1..2: it goes on with what is left, and grows again."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from distcifar.tracking.journal import read_events, read_rows
from tests.chaos.conftest import Record
from tests.chaos.programs import ENVIRONMENT, Program
from tests.chaos.table import Trial

pytestmark = pytest.mark.slow
EPOCHS = 150


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without CPUs of its own."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setitem(ENVIRONMENT, "RAY_AUTH_MODE", "disabled")
    found = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "resources": {"head": 1}}
    )
    yield found
    found.shutdown()


def workers_of(program: Program) -> list[int]:
    """The number of workers at each start so far."""
    starts = [event for event in read_events(program.folder) if event["kind"] in ("start", "continue")]
    return [int(event["text"].split(" with ")[1].split()[0]) for event in starts]


@pytest.mark.timeout(900)
def test_a_run_goes_on_with_the_nodes_that_are_left_and_grows_again(cluster: Cluster, tmp_path: Path, record: Record):
    second = cluster.add_node(num_cpus=1)
    words = ("--workers", "1..2", "--checkpoint-steps", "50", "--epochs", str(EPOCHS), "--address", cluster.address)
    program = Program(tmp_path, "elastic", *words)
    program.wait_until(lambda: program.step() >= 100, "step 100")
    assert workers_of(program) == [2]

    cluster.remove_node(second, allow_graceful=False)
    gone, reached = time.monotonic(), program.step()
    program.wait_until(lambda: workers_of(program)[-1] == 1, "one worker")
    resumed = [event for event in read_events(program.folder) if event["kind"] == "continue"][-1]["step"]
    program.wait_until(lambda: program.step() > max(reached, resumed), "a new step")
    record(
        Trial(
            "a node is lost, --workers 1..2",
            "goes on with one worker",
            True,
            reached - resumed,
            time.monotonic() - gone,
        )
    )

    cluster.add_node(num_cpus=1)
    back = time.monotonic()
    program.wait_until(lambda: workers_of(program)[-1] == 2, "two workers")
    resumed = [event for event in read_events(program.folder) if event["kind"] == "continue"][-1]["step"]
    program.wait_until(lambda: program.step() > resumed, "a new step")
    record(Trial("a node comes back", "grows to two workers", True, None, time.monotonic() - back))
    program.finish()
    steps = [row["step"] for row in read_rows(program.folder) if row["kind"] == "step"]
    assert steps == list(range(1, 56 * EPOCHS + 1)), "no row is missing or doubled"
