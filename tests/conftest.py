"""What all tests share. The environment is set before the libraries that read it are imported."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.wandb_lab import Lab

# Few threads: the nets are tiny, processes are started that have as many again, and sums come out alike on any machine.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["WANDB_MODE"] = "disabled"  # what is about tracking makes an environment of its own
os.environ["WANDB_SILENT"] = "true"

ROOT = Path(__file__).parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos", choices=("sample", "all"), default="sample", help="how many faults tests/chaos tries")
    parser.addoption("--reliability", type=Path, help="the page that tests/chaos writes about them")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository: cifar10.npz and mnist/. Skips the test where there is none."""
    folder = ROOT.parent / "shared" / "data"
    if not (folder / "cifar10.npz").exists():
        pytest.skip("real data is not there: ../shared/data/cifar10.npz")
    return folder


@pytest.fixture
def lab(tmp_path: Path) -> "Iterator[Lab]":
    """A stand-in W&B server; its list of problems must be empty in the end."""
    from tests.support.wandb_lab import wandb_lab

    with wandb_lab(tmp_path / "wandb-server", "--protected-alias", "protected") as found:
        yield found
