"""Folders of Ray's sessions: those of this user alone, where a living raylet keeps them."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from distcifar.doctor import gather, ray_here
from distcifar.doctor.fixes import remove_leftovers, remove_sessions
from tests.unit.doctor.faults import aged, bench, written

NAMES = ("session_2026-01-01_00-00-00_1_1", "session_2026-01-01_00-00-00_1_2")


def sessions(folder: Path) -> list[Path]:
    """Of two dead heads."""
    for name in NAMES:
        aged(written(folder / name / "logs" / "debug_state.txt", "x"), 3600)
        aged(folder / name, 3600)
    return [folder / name for name in NAMES]


def test_other_users_sessions_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As on a login node whose /tmp/ray is everyone's."""
    sessions(tmp_path)
    assert len(ray_here.dead_sessions(tmp_path, time.time())) == 2
    another = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: another)
    assert ray_here.session_facts(tmp_path, time.time()) == {"path": str(tmp_path), "dead": [], "bytes": 0}


def test_a_log_that_cannot_be_looked_at_is_passed_over(tmp_path: Path):
    first, second = sessions(tmp_path)
    for session in (first, second):
        (session / "logs" / "loop").symlink_to("loop")
        aged(session, 3600)
    assert ray_here.dead_sessions(tmp_path, time.time()) == [first, second]
    assert ray_here.session_facts(tmp_path, time.time())["bytes"] > 0


def test_what_cannot_be_removed_does_not_keep_the_others(tmp_path: Path):
    removed, said = shutil.rmtree, []

    def guarded(path: Path, **options: Any) -> None:
        if Path(path).name in (NAMES[0], ".aside-a"):
            raise PermissionError(13, "Permission denied", str(path))
        removed(path, **options)

    with bench(tmp_path) as place:
        sessions(place.ray_temp)
        for name in (".aside-a", ".aside-b"):
            (place.runs / name).mkdir()
            aged(place.runs / name, 2 * 86400)
        place.patch.setattr(shutil, "rmtree", guarded)
        remove_sessions(place.place(), "", said.append)
        remove_leftovers(place.place(), "", said.append)
        assert [path.name for path in place.ray_temp.iterdir()] == [NAMES[0]]
        assert [path.name for path in place.runs.iterdir()] == [".aside-a"]
    assert sum("stays: " in sentence and "Permission denied" in sentence for sentence in said) == 2


def test_sessions_are_where_the_living_raylet_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And on a node where its own raylet does, whatever this machine's environment says."""
    inner = "--python_worker_command=python worker.py --temp-dir=/elsewhere"
    words = ["raylet", "-c", "print('up', flush=True); input()", inner, f"--temp_dir={tmp_path / 'big disk'}"]
    with subprocess.Popen(words, executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as raylet:
        assert raylet.stdout
        raylet.stdout.readline()
        process = psutil.Process(raylet.pid)
        found = [ray_here.living_temp(), ray_here.living_temp([psutil.Process(), process])]
        monkeypatch.setattr(psutil.Process, "parents", lambda _: [process])
        monkeypatch.setattr(gather, "_machine", lambda node: {"sessions": node.sessions, "note": node.ray_temp})
        node = gather.gather_node(gather.Place({}, tmp_path))
        raylet.kill()
    assert found == [tmp_path / "big disk"] * 2
    assert node == {"sessions": tmp_path / "big disk", "note": Path("/tmp/ray")}
    assert ray_here.living_temp([psutil.Process()]) is None
    assert gather.Place({}, tmp_path).sessions == Path("/tmp/ray")
