"""Starting Ray on this machine."""

from typing import Any

import pytest

from distcifar.cluster import session
from distcifar.errors import ResourceError


def slow_start(monkeypatch: pytest.MonkeyPatch, failures: int) -> list[int]:
    """Ray whose first `failures` starts take too long; grows with each start."""
    tries: list[int] = []

    def init(**_: Any) -> None:
        tries.append(len(tries))
        if len(tries) <= failures:
            raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(session.ray, "init", init)
    monkeypatch.setattr(session.ray, "shutdown", lambda: None)
    return tries


def test_a_head_that_is_slow_to_start_is_started_again(monkeypatch: pytest.MonkeyPatch):
    tries = slow_start(monkeypatch, failures=1)
    session.start_head(num_cpus=2)
    assert len(tries) == 2


def test_a_head_that_does_not_start_is_told_without_a_traceback(monkeypatch: pytest.MonkeyPatch):
    slow_start(monkeypatch, failures=9)
    with pytest.raises(ResourceError, match="did not start"):
        session.start_head(num_cpus=2)
