"""A benchmark as a whole: in this process, small; what it leaves."""

import json
from pathlib import Path

import pytest

from distcifar.benchmark.run import run_benchmark
from distcifar.benchmark.settings import Settings
from distcifar.data.prepare import PreparedData
from distcifar.errors import ConfigError
from tests.support import one_thread


def test_a_part_leaves_a_json_file_and_a_picture(prepared: PreparedData, tmp_path: Path, capsys):
    root, out = str(prepared.folder.parent), str(tmp_path / "out")
    settings = Settings(quick=True, rounds=2, steps=2, root=root, out=out, threads=1)
    with one_thread():
        path = run_benchmark("saving", settings, {})
    found = json.loads(path.read_text())
    assert found["arguments"]["steps"] == 2
    checkpoints, standstill = found["comparisons"]
    assert [line["name"] for line in checkpoints["lines"]] == ["without a checkpoint", "with one"]
    for line in (*checkpoints["lines"], *standstill["lines"]):
        assert len(line["values"]) == 2
        assert 0 < line["lowest"] <= line["median"] <= line["highest"]
    assert path.with_suffix(".png").stat().st_size > 5000
    assert {file.name for file in path.parent.iterdir()} == {path.name, path.with_suffix(".png").name}
    assert "The loop stands still" in capsys.readouterr().out


def test_settings_that_cannot_be_meant_are_refused():
    with pytest.raises(ConfigError, match="rounds"):
        Settings(rounds=0)
