"""Files are there whole or not at all, whenever the process that writes them is killed."""

import errno
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distcifar import files
from distcifar.files import ASIDE, folder_aside, sha256_of, sweep_aside, write_atomically, write_json

REWRITES_A_FILE = """
import sys, itertools
from pathlib import Path
from distcifar.files import write_atomically
path = Path(sys.argv[1])
for number in itertools.count():
    write_atomically(path, f"{number}\\n" * 20000)
"""

REPLACES_A_FOLDER = """
import sys, itertools
from pathlib import Path
from distcifar.files import folder_aside
target = Path(sys.argv[1])
for number in itertools.count():
    with folder_aside(target) as folder:
        for name in "abc":
            (folder / name).write_text(f"{number}\\n" * 5000)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run_and_kill(program: str, path: Path, look, *, seconds: float) -> int:
    """Starts `program` on `path`, calls `look` while it works, and kills it; the number of looks."""
    child = subprocess.Popen([sys.executable, "-c", program, str(path)])
    try:
        deadline = time.monotonic() + 60
        while not path.exists() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        looks, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            look()
            looks += 1
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    return looks


def test_a_reader_sees_an_old_or_a_new_file_though_the_writer_is_killed_at_any_moment(tmp_path: Path):
    path = tmp_path / "file"
    seen = set()

    def look() -> None:
        lines = path.read_text().splitlines()
        assert len(lines) == 20000
        assert len(set(lines)) == 1
        seen.add(lines[0])

    for round_ in range(6):
        seen.clear()
        path.unlink(missing_ok=True)
        run_and_kill(REWRITES_A_FILE, path, look, seconds=0.03 + 0.017 * round_)
        look()  # what the killed one has left
        assert seen
    assert all(name == "file" or name.startswith(ASIDE) for name in names(tmp_path))
    sweep_aside(tmp_path)
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("round_", range(6))
def test_a_folder_is_never_half_there_though_its_writer_is_killed_at_any_moment(tmp_path: Path, round_: int):
    """Old or new under its name; or, between two renames, away, and then whole aside."""
    target = tmp_path / "folder"
    run_and_kill(REPLACES_A_FOLDER, target, lambda: time.sleep(0.001), seconds=0.05 + 0.013 * round_)
    assert is_whole(target) if target.exists() else any(map(is_whole, tmp_path.glob(f"{ASIDE}*")))


def is_whole(folder: Path) -> bool:
    """Whether all files of one number are there."""
    texts = [path.read_text().splitlines() for path in folder.iterdir()]
    return [len(lines) for lines in texts] == [5000] * 3 and len({line for lines in texts for line in lines}) == 1


def test_text_bytes_and_json_are_written_as_they_are(tmp_path: Path):
    write_atomically(tmp_path / "text", "猫\n")
    write_atomically(tmp_path / "bytes", b"\xff\x00")
    write_json(tmp_path / "json", {"name": "猫", "list": [1, 2.5, None]})
    assert (tmp_path / "text").read_text() == "猫\n"
    assert (tmp_path / "bytes").read_bytes() == b"\xff\x00"
    text = (tmp_path / "json").read_text()
    assert json.loads(text) == {"name": "猫", "list": [1, 2.5, None]}
    assert "猫" in text
    assert text.endswith("}\n")


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path: Path, monkeypatch, function: str):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, function, full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_an_object_that_is_no_json_leaves_the_old_file(tmp_path: Path):
    write_json(tmp_path / "file", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "file", {"a": object()})
    assert json.loads((tmp_path / "file").read_text()) == {"a": 1}
    assert names(tmp_path) == ["file"]


def test_a_folder_takes_its_name_only_when_it_is_full(tmp_path: Path):
    target = tmp_path / "deep" / "folder"
    with folder_aside(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert names(target) == ["a"]
    assert names(target.parent) == ["folder"]


def test_a_folder_is_replaced_whole(tmp_path: Path):
    target = tmp_path / "folder"
    for name in ("old", "new"):
        with folder_aside(target) as folder:
            (folder / name).write_text(name)
    assert names(target) == ["new"]
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_after_an_error_within_the_old_folder_is_there_and_nothing_of_the_new(tmp_path: Path, error: type):
    target = tmp_path / "folder"
    with folder_aside(target) as folder:
        (folder / "old").write_text("old")
    with pytest.raises(error), folder_aside(target) as folder:
        (folder / "new").write_text("new")
        raise error
    assert names(target) == ["old"]
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("function", ["fsync", "rename"])
def test_after_an_error_of_the_disk_the_old_folder_is_there_and_nothing_of_the_new(
    tmp_path: Path, monkeypatch, function: str
):
    target = tmp_path / "folder"
    with folder_aside(target) as folder:
        (folder / "old").write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"), folder_aside(target) as folder:
        (folder / "new").write_text("new")
        monkeypatch.setattr(files.os, function, full)
    monkeypatch.undo()
    assert target.exists(), "the old folder is gone and the new one is not there"
    assert names(target) == ["old"]
    assert names(tmp_path) == ["folder"]


def test_sweeping_removes_what_was_left_aside_and_nothing_else(tmp_path: Path):
    (tmp_path / f"{ASIDE}1234-file").write_text("half")
    (tmp_path / f"{ASIDE}5678-folder").mkdir()
    (tmp_path / f"{ASIDE}5678-folder" / "a").write_text("half")
    (tmp_path / "aside").write_text("mine")
    (tmp_path / ".hidden").write_text("mine")
    sweep_aside(tmp_path)
    assert names(tmp_path) == [".hidden", "aside"]


def test_a_digest_is_that_of_sha256sum(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_of(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
