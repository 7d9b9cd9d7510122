"""The sweep's folder: half lines, full disks, another search under the same name, names of runs."""

import errno
import json
from dataclasses import replace

import pytest

from distcifar.errors import StorageError
from distcifar.sweep import folder as folders
from distcifar.sweep.folder import RESULTS, Result, Results, add_point, read_points, read_results, trial_of, write_sweep
from tests.unit.sweep.sweeps import made_up

RESULT = Result("000", 0, 1, 0.5, 0.5, 1.0, 1.0, "continue")


@pytest.mark.parametrize(
    ("run", "trial"), [("007", 7), ("007-e004-1f2a", 7), ("c007-2", 7), ("1234", 1234), ("1234-e010-abcd", 1234)]
)
def test_a_run_tells_its_trial(run, trial):
    assert trial_of(run) == trial


def test_half_a_line_is_cut_off_and_all_before_it_stays(tmp_path):
    Results(tmp_path).add(RESULT)
    path = tmp_path / RESULTS
    for half in ("{", json.dumps({"run": "000"})[:-1], '{"run": "0'):
        with open(path, "a") as file:
            file.write(half)
        assert read_results(tmp_path) == Results(tmp_path).all
        known = len(Results(tmp_path).all)
        Results(tmp_path).add(replace(RESULT, epoch=known + 1))
        assert [result.epoch for result in read_results(tmp_path)] == list(range(1, known + 2))


def test_a_full_disk_is_told_with_what_to_do(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders.os, "fsync", full)
    with pytest.raises(StorageError, match=r"No space left.*type the same command"):
        Results(tmp_path).add(RESULT)


def test_another_search_under_the_same_name_is_refused_and_the_same_one_goes_on(tmp_path):
    sweep = made_up(tmp_path / "s").sweep
    write_sweep(replace(sweep, spec=replace(sweep.spec, concurrent=1, confirm="1x1")))
    with pytest.raises(StorageError, match=r"another one.*trials.*--overwrite"):
        write_sweep(replace(sweep, spec=replace(sweep.spec, trials=25)))
    with pytest.raises(StorageError, match=r"another one.*data_digest"):
        write_sweep(replace(sweep, data_digest="b" * 64))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    sweep = made_up(tmp_path / "s").sweep
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(StorageError, match="is no sweep"):
        write_sweep(replace(sweep, folder=tmp_path / "other"))
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.txt"]


def test_points_come_back_as_they_were_proposed(tmp_path):
    point = {"optim.lr": 0.01, "model.hidden": (128, 64), "batch_size": 32, "augment.flip": "none"}
    add_point(tmp_path, 3, point)
    assert read_points(tmp_path) == {3: point}
