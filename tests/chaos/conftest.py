"""Faults are tried and counted: a few of each in the default run, all of them with --chaos all (`make chaos`).

With --reliability docs/reliability.md that page is written from what happened.
"""

from collections.abc import Callable

import pytest

from tests.chaos.table import Trial, write_table

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
def record(request: pytest.FixtureRequest) -> Record:
    """Takes each Trial for the table."""
    return request.config.stash[TRIALS].append


def pytest_sessionfinish(session: pytest.Session) -> None:
    trials = session.config.stash[TRIALS]
    path = session.config.getoption("--reliability")
    if path is not None:
        write_table(path, trials)
