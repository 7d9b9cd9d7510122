"""Holds the set-up: what is locked, what make does, and what is said where it cannot go on."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
PINS = re.split(r"\n(?=[a-z0-9])", LOCK.partition("\n#    make lock\n")[2])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def normal(requirement):
    """The package's name as the lock writes it: "ray[default]>=2" -> "ray"."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def test_each_pin_has_one_version_and_hashes():
    assert len(PINS) > 100
    for pin in PINS:
        assert re.match(r"[a-z0-9-]+==\S+", pin), pin
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", pin), f"no hash: {pin}"


def test_the_lock_names_no_place_to_download_from():
    assert "://" not in LOCK
    assert not re.search(r"^\s*(--(extra-)?index|--find|-i |-f )", LOCK, re.MULTILINE)


def test_all_requirements_are_locked():
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["dev"]]
    wanted += PROJECT["build-system"]["requires"]
    missing = {normal(name) for name in wanted} - {pin.partition("==")[0] for pin in PINS}
    assert not missing, f"requirements.lock lacks {missing}: run make lock"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", "make train"),
        ("help", "make train"),
        ("setup", ".ci/setup"),
        ("test", "-m pytest"),
        ("lint", "-m mypy"),
        ("lock", "pip compile"),
        ("train", ".venv/bin/python jobs/train.py quick"),
        ("train DATA=../a.npz NAME=first RECIPE=cnn1", 'train.py cnn1 --source "../a.npz" --name "first"'),
    ],
)
def test_make_knows_what_to_do(arguments, expected):
    quiet = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    flags = [] if arguments in ("", "help") else ["--dry-run", "--always-make"]
    made = subprocess.run(
        ["make", *flags, *arguments.split()], cwd=ROOT, env={**quiet, "NAME": "of-the-shell"}, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert expected in made.stdout
    assert "of-the-shell" not in made.stdout


def test_ci_runs_the_tests_and_the_linters():
    commands = (ROOT / ".ci/run").read_text().splitlines()
    assert {"set -euo pipefail", "make test", "make lint"} <= set(commands)
    assert os.access(ROOT / ".ci/run", os.X_OK)


@pytest.fixture
def bare_machine(tmp_path):
    """A copy of what the set-up reads, and a PATH on which there is neither root nor sudo nor a compiler."""
    project, programs = tmp_path / "a project", tmp_path / "bin"
    programs.mkdir()
    shutil.copytree(ROOT / ".ci", project / ".ci")
    for name in ("requirements.lock", "pyproject.toml", "Makefile"):
        shutil.copy(ROOT / name, project)
    for name in ("bash", "cat", "dirname", "grep", "ln", "make", "mktemp", "rm", "sed", "tail"):
        (programs / name).symlink_to(shutil.which(name))
    (programs / "python3").symlink_to(Path(sys.executable).resolve())
    for name, script in {"id": "echo 1000", "sudo": "exit 1", "apt-get": "exit 100"}.items():
        (programs / name).write_text(f"#!{shutil.which('bash')}\n{script}\n")
        (programs / name).chmod(0o755)
    return project, programs


def test_without_root_the_missing_packages_are_named(bare_machine):
    project, programs = bare_machine
    made = subprocess.run(
        ["make", "setup"], cwd=project, env={"PATH": str(programs), "HOME": str(project)}, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert made.returncode != 0
    assert "pkg-config: command not found" in made.stderr
    assert "sudo apt-get update && sudo apt-get install -y --no-install-recommends g++ " in made.stderr
    assert "conda create -y -n distcifar -c conda-forge " in made.stderr
    assert not (project / ".venv").exists()


def test_no_file_names_a_registry_or_a_path_of_one_machine():
    # Put together here, so that this file does not name them.
    hosts = ["py" + "pi", "python" + "hosted", "npm" + "js", "ana" + "conda", "deb" + "ian", "pytorch" + r"\.org/whl"]
    folders = ["wo" + "rk", "ro" + "ot", "fa" + "rm"]
    names = re.compile(rf"//[\w.-]*({'|'.join(hosts)})|(?<![\w.}}-])/({'|'.join(folders)})/")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    found = []
    for path in map(Path, filter(None, listed.stdout.decode().split("\0"))):
        if (ROOT / path).is_file() and b"\0" not in (content := (ROOT / path).read_bytes()):
            lines = enumerate(content.decode(errors="replace").splitlines(), 1)
            found += [f"{path}:{number}: {line.strip()}" for number, line in lines if names.search(line)]
    assert not found, "\n".join(found)
