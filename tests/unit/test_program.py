"""Folders and names inside `ray job submit`, whose working directory is a copy that goes away."""

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distcifar.config import RunSpec
from distcifar.errors import ConfigError, DistcifarError
from distcifar.recipes import get_recipe

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """jobs/program.py, which the programs beside it import by its short name."""
    monkeypatch.syspath_prepend(JOBS)
    import program

    for name in (program.JOB, program.HOME, *program.VARIABLES):
        monkeypatch.delenv(name, raising=False)
    yield program
    sys.modules.pop("program")


def test_at_home_folders_are_what_was_typed(program):
    assert program.place("runs") == "runs"
    assert program.from_environment(RunSpec(), get_recipe("debug")) == RunSpec()


def test_in_a_job_relative_folders_are_below_a_home_that_stays(program, tmp_path, monkeypatch):
    monkeypatch.setenv(program.JOB, "{}")
    assert program.place("runs") == os.path.expanduser("~/distcifar/runs")
    monkeypatch.setenv(program.HOME, str(tmp_path))
    assert program.place("runs") == f"{tmp_path}/runs"
    assert program.place("/mnt/runs") == "/mnt/runs"
    assert program.place("s3://bucket/runs") == "s3://bucket/runs"
    spec = program.from_environment(RunSpec())
    assert (spec.runs, spec.data_root, spec.name) == (f"{tmp_path}/runs", f"{tmp_path}/data", "")


PROGRAMS = {
    "report.py a --runs s3://b/runs": False, "promote.py --list --runs=s3://b/runs": False,
    "best.py s3://b/sweep": False, "benchmark.py loader --root s3://b/data": False,
    "promote.py a --to x --reason https://tickets/1": True,
}  # fmt: skip


@pytest.mark.parametrize("line", PROGRAMS)
def test_a_url_is_refused_where_a_folder_is_needed_and_only_there(program, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, *words = line.split()
    asked = importlib.import_module(name.removesuffix(".py"))
    sys.modules.pop(asked.__name__)
    with pytest.raises(DistcifarError) as caught:
        asked.main(words)
    assert ("is a URL" not in str(caught.value)) == PROGRAMS[line]
    assert not list(tmp_path.glob("s3*"))


def test_in_a_job_the_same_line_is_the_same_run_until_it_is_finished(program, tmp_path, monkeypatch):
    monkeypatch.setenv(program.JOB, "{}")
    monkeypatch.setenv(program.HOME, str(tmp_path))
    recipe = get_recipe("debug")
    first = program.from_environment(RunSpec(), recipe)
    assert first.name.startswith("debug-")
    (tmp_path / "runs" / first.name).mkdir(parents=True)
    assert program.from_environment(RunSpec(), recipe) == first, "stopped: it goes on"
    (tmp_path / "runs" / first.name / "summary.json").write_text("{}")
    assert program.from_environment(RunSpec(), recipe).name == f"{first.name}-2"
    for other in (RunSpec(name="mine"), RunSpec(resume="runs/x")):
        assert program.from_environment(other, recipe).name == other.name


def test_the_address_of_a_job_server_is_none_of_a_head(program, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    assert program.from_environment(RunSpec()).address == ""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert program.from_environment(RunSpec()).address == "127.0.0.1:6379"


def test_variables_have_the_type_of_what_they_set(program, monkeypatch):
    monkeypatch.setenv("DISTCIFAR_WAIT_MINUTES", "20")
    monkeypatch.setenv("DISTCIFAR_DEVICE", "cuda")
    spec = program.from_environment(RunSpec())
    assert (spec.wait_minutes, spec.device) == (20.0, "cuda")
    assert program.from_environment(RunSpec(device="cpu")).device == "cpu", "what was typed counts"
    monkeypatch.setenv("DISTCIFAR_WAIT_MINUTES", "long")
    with pytest.raises(ConfigError, match="DISTCIFAR_WAIT_MINUTES is 'long'"):
        program.from_environment(RunSpec())
