"""Faults are tried and counted: a few of each in the default run, all of them with --chaos all (`make chaos`).

With all of them docs/reliability.md is written from what happened.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.table import Trial, write_table

RELIABILITY = Path(__file__).parents[2] / "docs" / "reliability.md"
TRIALS = pytest.StashKey[list[Trial]]()

Record = Callable[[Trial], None]


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TRIALS] = []


@pytest.fixture(scope="session")
def tries(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """tries(few, all_): how often to try a fault in this run."""
    everything = request.config.getoption("--chaos") == "all"
    return lambda few, all_: all_ if everything else few


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Iterator[Record]:
    """Takes each Trial for the table."""
    yield request.config.stash[TRIALS].append


def pytest_sessionfinish(session: pytest.Session) -> None:
    trials = session.config.stash[TRIALS]
    if session.config.getoption("--chaos") == "all" and trials:
        write_table(RELIABILITY, trials)
