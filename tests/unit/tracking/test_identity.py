"""Which W&B run a run directory is: names that W&B takes, whatever the run is called, and for its whole life."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from distcifar.errors import DistcifarError
from distcifar.tracking.identity import FILE, Identity, new_identity, read_identity, write_identity
from distcifar.tracking.wandb.artifacts import parse_reference

NAMES = st.text(min_size=1, max_size=100)


@given(NAMES)
@example("first")
@example("猫と犬")
@example("a.b.c")
@example("..")
@example("-" * 100)
@example("x" * 100)
@example("lr=0.1, wd=5e-4")
@example("ümläut run")
@example("a/b\\c:d?e%f#g\n")
def test_an_id_is_what_wandb_takes_for_runs_and_artifacts(name: str):
    found = new_identity(name, "project")
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*-[0-9a-f]{6}", found.id)
    assert len(found.id) <= 64
    assert found.name == name
    for kind in ("state", "model"):
        assert re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", found.artifact(kind))


@given(NAMES)
def test_an_id_can_be_typed_after_resume(name: str):
    found = new_identity(name, "project", "team")
    assert parse_reference(f"wandb:{found.path}:best") == ("team/project", found.id, "best")
    assert parse_reference(f"wandb:{found.path}") == ("team/project", found.id, "latest")


def test_the_start_of_an_id_tells_which_run_it_is():
    assert new_identity("first", "p").id.startswith("first-")
    assert new_identity("lr=0.1", "p").id.startswith("lr-0-1-")
    assert new_identity("猫", "p").id.startswith("run-")


def test_two_runs_of_one_name_are_two_runs():
    assert len({new_identity("first", "p").id for _ in range(200)}) == 200


@given(NAMES, st.text(max_size=20), st.text(max_size=20))
def test_an_identity_comes_back_from_its_file(name: str, entity: str, group: str):
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        identity = new_identity(name, "project", entity, group)
        write_identity(Path(folder), identity)
        assert read_identity(Path(folder)) == identity


def test_a_run_without_the_file_has_no_identity(tmp_path: Path):
    assert read_identity(tmp_path) is None


def test_the_path_leaves_out_an_entity_that_is_not_given():
    assert Identity("id", "n", "p").path == "p/id"
    assert Identity("id", "n", "p", "team").path == "team/p/id"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"id": "a"}', '{"id": "a", "name": "b", "project": "c", "x": 1}']
)
def test_a_damaged_file_is_told_and_not_replaced(tmp_path: Path, text: str):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(DistcifarError, match=re.escape(FILE)):
        read_identity(tmp_path)
    assert (tmp_path / FILE).read_text() == text


def test_the_file_can_be_read_by_others(tmp_path: Path):
    write_identity(tmp_path, Identity("a-1", "猫", "p", "e", "g"))
    text = (tmp_path / FILE).read_text()
    assert json.loads(text) == {"id": "a-1", "name": "猫", "project": "p", "entity": "e", "group": "g"}
    assert "猫" in text
