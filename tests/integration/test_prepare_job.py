"""jobs/prepare.py as it is typed: tables, messages and exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def run(*words):
    command = [sys.executable, "jobs/prepare.py", *map(str, words)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_prepare_twice_damage_and_repair(tmp_path):
    first = run("synthetic", "--root", tmp_path)
    assert first.returncode == 0, first.stderr
    for part in ("pattern 9", "1,792", "mean 0.50", "is whole", "next: python jobs/train.py", "synthetic-val256"):
        assert part in first.stdout
    second = run("synthetic", "--root", tmp_path)
    assert second.returncode == 0
    assert "Reading" not in second.stdout
    beton = tmp_path / "synthetic-val256/train.beton"
    content = bytearray(beton.read_bytes())
    content[2106] ^= 4  # the pointer of the first image: FFCV would end the process
    beton.write_bytes(content)
    damaged = run("synthetic", "--root", tmp_path)
    assert damaged.returncode == 2
    assert "Traceback" not in damaged.stderr
    assert "train.beton is damaged: bytes 0-1048575 changed" in damaged.stderr
    assert f"python jobs/prepare.py synthetic --root {tmp_path} --validation 256 --repair" in damaged.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["cifar1O"], "Did you mean 'cifar10'"),
        (["cifar10", "--source", "nowhere.npz"], "--source nowhere.npz does not exist"),
        (["npz:nowhere.npz"], "nowhere.npz cannot be read: No such file"),
        (["synthetic", "--validation", "2048"], "At most 2047 can be held out"),
    ],
)
def test_mistakes_are_told_without_a_traceback(tmp_path, words, told):
    result = run(*words, "--root", tmp_path)
    assert result.returncode == 2
    assert told in result.stderr
    assert "Traceback" not in result.stderr


def test_help_shows_examples():
    result = run("--help")
    assert result.returncode == 0
    assert "python jobs/prepare.py cifar10 --source" in result.stdout
