"""Who may begin in a sweep's folder, and what of it is replaced."""

from contextlib import nullcontext
from dataclasses import replace

import pytest

from distcifar.cluster.sweeps import launch
from distcifar.config import RunSpec
from distcifar.errors import RunError, StorageError
from distcifar.sweep.folder import read_results, read_sweep
from tests.unit.sweep.sweeps import made_up


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.setattr(launch, "connected", lambda run, cpus: nullcontext())
    monkeypatch.setattr(launch.ray, "cluster_resources", lambda: {"CPU": 2.0})


def test_overwrite_replaces_a_search_and_nothing_else(tmp_path):
    sweep = made_up(tmp_path / "s", trials=6).sweep
    other = replace(sweep, spec=replace(sweep.spec, trials=7))
    with pytest.raises(StorageError, match="--overwrite"), launch.sweep_on_ray(other, RunSpec()):
        pass
    assert read_results(sweep.folder)
    with launch.sweep_on_ray(other, RunSpec(overwrite=True)) as room:
        assert room.concurrent == 2
        assert not read_results(sweep.folder)
        assert read_sweep(sweep.folder).spec.trials == 7
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    place = replace(sweep, folder=tmp_path / "mine")
    with pytest.raises(StorageError, match="is no sweep"), launch.sweep_on_ray(place, RunSpec(overwrite=True)):
        pass
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_search_belongs_to_one_command(tmp_path):
    sweep = made_up(tmp_path / "s", trials=6).sweep
    with (
        launch.sweep_on_ray(sweep, RunSpec()),
        pytest.raises(RunError, match="another process"),
        launch.sweep_on_ray(sweep, RunSpec(overwrite=True)),
    ):
        pass
    assert read_results(sweep.folder)
