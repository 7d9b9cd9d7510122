"""The Dockerfile by rules (hadolint's, where it has them), its context, its health check, and its step with the set-up.

Each rule is a function of the instructions that names what breaks it; the table shows each a file that does. That the
lines work is tried by tests/integration/test_image.py.
"""

import json
import os
import platform
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text()


@dataclass(frozen=True)
class Instruction:
    word: str
    rest: str


def instructions(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile: comments out, continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines()
    return [Instruction(word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in joined)]


def of(found: list[Instruction], *words: str) -> Iterator[str]:
    return (each.rest for each in found if each.word in words)


def bases_are_pinned(found: list[Instruction]) -> Iterator[str]:
    defaults = dict(rest.split("=", 1) for rest in of(found, "ARG") if "=" in rest)
    stages = set()
    for rest in of(found, "FROM"):
        base, *named = rest.split(" AS ")
        base = re.sub(r"\$\{(\w+)\}", lambda name: defaults.get(name[1], ""), base)
        if base not in stages and (":" not in base or base.endswith(":latest")):
            yield f"FROM {rest}: no version"
        stages.update(named)


def packages_come_whole_and_leave_no_lists(found: list[Instruction]) -> Iterator[str]:
    for rest in of(found, "RUN"):
        if "apt-get" in rest:
            parts = ("apt-get update", "apt-get install -y --no-install-recommends", "rm -rf /var/lib/apt/lists/*")
            if any(part not in rest for part in parts) or "upgrade" in rest:
                yield f"RUN {rest}: update, install -y --no-install-recommends and rm of the lists in one RUN"


def installs_are_hashed_and_keep_no_cache(found: list[Instruction]) -> Iterator[str]:
    for rest in of(found, "RUN"):
        for command in re.split(r"&&|;|\{|\}", rest):
            installs = re.search(r"pip (install|wheel)\b.* -r |^\s*install .*-r ", command)
            if installs and ("--require-hashes" not in command or ("pip " in command and "--no-cache" not in command)):
                yield f"{command.strip()}: --require-hashes and --no-cache"


def nothing_comes_from_elsewhere(found: list[Instruction]) -> Iterator[str]:
    yield from (f"ADD {rest}: COPY, or a package" for rest in of(found, "ADD"))
    yield from (
        f"{rest}: a download" for rest in of(found, "RUN") if re.search(r"\b(curl|wget|git clone)\b|https?://", rest)
    )


def it_runs_as_a_user(found: list[Instruction]) -> Iterator[str]:
    users = list(of(found, "USER"))
    if not users or users[-1].split(":")[0] in ("root", "0"):
        yield f"USER {users[-1:]}: the last one is not root"
    yield from (f"RUN {rest}: sudo" for rest in of(found, "RUN") if re.search(r"\bsudo\b", rest))


def no_secret_is_named(found: list[Instruction]) -> Iterator[str]:
    for rest in of(found, "ARG", "ENV"):
        if re.search(r"(?i)key|token|secret|passw|credential", rest):
            yield f"{rest}: a secret in an image is no secret"


def programs_are_lists_of_words(found: list[Instruction]) -> Iterator[str]:
    """A shell in between takes the signals: no checkpoint at `docker stop`."""
    for rest in of(found, "CMD", "ENTRYPOINT"):
        if not rest.startswith("["):
            yield f"{rest}: words in brackets"


def it_tells_its_health(found: list[Instruction]) -> Iterator[str]:
    checks = list(of(found, "HEALTHCHECK"))
    if len(checks) != 1 or "--interval=" not in checks[0] or "--timeout=" not in checks[0] or "CMD [" not in checks[0]:
        yield f"HEALTHCHECK {checks}: one, with interval, timeout and a list of words"


def no_port_is_open(found: list[Instruction]) -> Iterator[str]:
    yield from (f"EXPOSE {rest}: the dashboard is for this machine" for rest in of(found, "EXPOSE"))


def only_what_the_package_needs_is_copied(found: list[Instruction]) -> Iterator[str]:
    wanted = {"requirements.lock", ".ci/opencv", ".ci/health.py", "pyproject.toml", "README.md", "distcifar", "jobs"}
    for rest in of(found, "COPY"):
        *sources, _ = rest.split()
        if not sources[0].startswith("--from=") and not set(sources) <= wanted:
            yield f"COPY {rest}: {sorted(set(sources) - wanted)}"


def folders_are_whole_paths(found: list[Instruction]) -> Iterator[str]:
    yield from (f"WORKDIR {rest}: from the root" for rest in of(found, "WORKDIR") if not rest.startswith("/"))
    yield from (f"RUN {rest}: WORKDIR instead" for rest in of(found, "RUN") if re.match(r"cd\b", rest))


BROKEN: list[tuple[Callable[[list[Instruction]], Iterator[str]], str]] = [
    (bases_are_pinned, "FROM ubuntu"),
    (bases_are_pinned, "ARG BASE=ubuntu:latest\nFROM ${BASE}"),
    (packages_come_whole_and_leave_no_lists, "RUN apt-get update"),
    (
        packages_come_whole_and_leave_no_lists,
        "RUN apt-get update && apt-get install -y g++ && rm -rf /var/lib/apt/lists/*",
    ),
    (installs_are_hashed_and_keep_no_cache, "RUN pip install --no-cache -r requirements.lock"),
    (installs_are_hashed_and_keep_no_cache, "RUN pip install --require-hashes -r requirements.lock"),
    (nothing_comes_from_elsewhere, "ADD x /x"),
    (nothing_comes_from_elsewhere, "RUN curl -O x"),
    (it_runs_as_a_user, "USER 1000\nUSER root"),
    (it_runs_as_a_user, "FROM a:1"),
    (it_runs_as_a_user, "USER 1000\nRUN sudo true"),
    (no_secret_is_named, "ARG WANDB_API_KEY"),
    (no_secret_is_named, "ENV A=1 RAY_AUTH_TOKEN=x"),
    (programs_are_lists_of_words, "CMD python jobs/train.py"),
    (it_tells_its_health, "FROM a:1"),
    (it_tells_its_health, "HEALTHCHECK CMD true"),
    (no_port_is_open, "EXPOSE 8265"),
    (only_what_the_package_needs_is_copied, "COPY . ."),
    (only_what_the_package_needs_is_copied, "COPY jobs .netrc /x/"),
    (folders_are_whole_paths, "WORKDIR build"),
    (folders_are_whole_paths, "RUN cd /x && make"),
]
RULES = list(dict.fromkeys(rule for rule, _ in BROKEN))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_dockerfile_keeps_the_rule(rule):
    assert not list(rule(instructions(TEXT)))


@pytest.mark.parametrize(("rule", "text"), BROKEN)
def test_the_rule_sees_what_breaks_it(rule, text: str):
    assert list(rule(instructions(text)))


def test_the_parser_joins_lines_and_drops_comments():
    found = instructions("# a\nRUN a \\\n # b\n   && c\ncmd [1]\n")
    assert found == [Instruction("RUN", "a  && c"), Instruction("CMD", "[1]")]


def test_each_variant_is_one_argument_away():
    found = instructions(TEXT)
    (base,) = of(found, "ARG")
    assert re.fullmatch(r"BASE=nvidia/cuda:13\.\d+\.\d+-base-ubuntu24\.04", base)
    assert "--build-arg BASE=ubuntu:24.04" in TEXT
    assert [rest.split(" AS ")[0] for rest in of(found, "FROM")] == ["ubuntu:24.04", "ffcv", "ffcv", "${BASE}"]
    assert "python3.12/site-packages" in TEXT, "Ubuntu 24.04's Python"


def test_the_image_is_set_up_as_ci_setup_does_it():
    """The same packages of the system, the same tools, and the lock without what only developing needs."""
    script = (ROOT / ".ci/setup").read_text()
    packages = re.search(r'apt_packages="([^"]+)"', script)[1]
    compiling, running = [rest for rest in of(instructions(TEXT), "RUN") if "apt-get" in rest]
    assert f"ca-certificates {packages} " in compiling
    assert {"pip_install_pinned setuptools", "pip_install_pinned uv"} <= set(
        re.findall(r"pip_install_pinned \w+", script)
    )
    assert "{ pin setuptools; pin uv; }" in TEXT
    assert re.search(r"pin\(\) \{ sed -n \"(/\^\$1==/,/# via/p)\"", TEXT)[1] in script
    for flags in ("--no-deps --no-build-isolation", "--require-hashes"):
        assert flags in script
        assert flags in TEXT
    assert {"g++", "openssl", "python3-dev"} <= set(running.split()), "torch.compile runs them"


def test_what_is_left_out_of_the_lock_is_for_developing():
    left_out = set(re.search(r"'/\^\(([\w|-]+)\)==/", TEXT)[1].split("|"))
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    tools = {re.match(r"[\w-]+", name)[0] for name in groups["dev"]}
    assert left_out == tools - {"setuptools"} | {"ffcv"}, "setuptools: triton and torch ask for it; ffcv: its own stage"


def test_the_cut_of_the_lock_leaves_whole_pins(tmp_path: Path):
    """The Dockerfile's own sed, on the lock as it is."""
    cut = re.search(r"sed -E '[^']+'", TEXT)[0]
    left = subprocess.run(f"{cut} requirements.lock", shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    names = re.findall(r"^([\w-]+)==", left.stdout, re.MULTILINE)
    everything = re.findall(r"^([\w-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert set(everything) - set(names) == set(re.search(r"'/\^\(([\w|-]+)\)==/", TEXT)[1].split("|"))
    pins = [line for line in left.stdout.splitlines() if re.match(r"[\w-]+==", line)]
    assert all(line.endswith("\\") for line in pins), "each goes on with its hashes"


def test_the_context_is_what_is_copied():
    """Docker's own rule order: the last line that matches decides."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    copied = {s for rest in of(instructions(TEXT), "COPY") for s in rest.split()[:-1] if not s.startswith(("--", "/"))}
    assert {line[1:] for line in lines if line.startswith("!")} == copied


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A place for signs of life; the check itself runs in this project's environment."""
    (tmp_path / "runs/a/ranks").mkdir(parents=True)
    return tmp_path


def check(site: Path, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, ROOT / ".ci/health.py", *words],
        cwd=site,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return done.returncode, done.stdout + done.stderr


def leave_sign(site: Path, rank: int, *, pid: int, age: float, host: str = "") -> None:
    path = site / f"runs/a/ranks/{rank}.json"
    sign = {"rank": rank, "host": host or platform.node(), "pid": pid, "stage": "step", "step": 7}
    path.write_text(json.dumps(sign))
    then = time.time() - age
    os.utime(path, (then, then))


def test_health_is_told_of_a_training_that_goes_on_and_of_none(site: Path):
    assert check(site) == (0, "healthy\n")
    leave_sign(site, 0, pid=1, age=2)
    assert check(site) == (0, "healthy\n")


def test_a_rank_that_stands_still_is_named(site: Path):
    leave_sign(site, 0, pid=1, age=2)
    leave_sign(site, 1, pid=1, age=400)
    code, told = check(site)
    assert code == 1
    assert "ranks/1.json: rank 1 (step at step 7) silent for 40" in told
    assert "0.json" not in told
    assert check(site, "--seconds", "600")[0] == 0


def test_signs_of_the_dead_and_of_other_hosts_are_not_ours(site: Path):
    leave_sign(site, 0, pid=2**22 + 1, age=400)
    leave_sign(site, 1, pid=1, age=400, host="another")
    (site / "runs/a/ranks/2.json").write_text("half a si")
    assert check(site) == (0, "healthy\n")


def test_a_missing_library_is_named(site: Path):
    sys.path.insert(0, str(ROOT / ".ci"))
    try:
        import health
    finally:
        sys.path.remove(str(ROOT / ".ci"))
    assert health.unloadable(site) == [f"{site}/ffcv has no library"]
    (site / "ffcv").mkdir()
    (site / "ffcv/_libffcv.so").write_text("not a library")
    (problem,) = health.unloadable(site)
    assert "_libffcv.so" in problem
