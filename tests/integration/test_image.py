"""The Dockerfile's CPU variant, built by buildah without an engine, and run: its command, its health check.

No image is pulled: debootstrap makes the Ubuntu that the first line names. Takes a quarter of an hour, 3 GB of
downloads, and 20 GB of disk for as long. What buildah said is in image.log under --basetemp.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
ROOT = Path(__file__).parents[2]
UBUNTU = "docker.io/library/ubuntu:24.04"
CERTIFICATES = "/mnt/certificates.crt"  # where the build finds this machine's, if it has its own


@dataclass(frozen=True)
class Buildah:
    """buildah with a store of its own, which writes what it says into a log."""

    folder: Path

    def __call__(self, *words: str | Path, check: bool = True) -> str:
        """What `buildah WORDS` says on its standard output; both outputs go to the log."""
        store = ["--root", self.folder / "store", "--runroot", self.folder / "run", "--storage-driver", "overlay"]
        start = time.monotonic()
        done = subprocess.run(["buildah", *store, *words], capture_output=True, text=True, check=False)
        with (self.folder / "image.log").open("a") as log:
            log.write(f"$ buildah {' '.join(map(str, words))}\n{done.stdout}{done.stderr}")
            log.write(f"({time.monotonic() - start:.0f} s)\n")
        assert not check or done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout.strip()

    def inside(self, container: str, *command: str, check: bool = True) -> str:
        """What `command` says in `container`, as its user and in its folder."""
        return self("run", "--isolation", "chroot", container, "--", *command, check=check)


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    missing = [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]
    if os.getuid() != 0 or missing:
        pytest.skip(f"building without an engine needs root and {' and '.join(missing) or 'nothing else'}")
    found = Buildah(tmp_path_factory.mktemp("image"))
    try:
        yield found
    finally:
        found("rm", "--all", check=False)
        found("rmi", "--all", "--force", check=False)
        for folder in ("store", "run", "ubuntu"):
            shutil.rmtree(found.folder / folder, ignore_errors=True)


@pytest.fixture(scope="module")
def container(buildah: Buildah) -> str:
    """A container of the image's CPU variant."""
    import_ubuntu(buildah)
    build = ["build", "--isolation", "chroot", "--format", "docker", "--pull=never", "--build-arg", "BASE=ubuntu:24.04"]
    buildah(*build, *certificates(), "--tag", "distcifar:cpu", ROOT)
    return buildah("from", "--pull=never", "localhost/distcifar:cpu")


def import_ubuntu(buildah: Buildah) -> None:
    """Ubuntu 24.04 as an image of its name. Debian's debootstrap knows it by an older one's script."""
    root = buildah.folder / "ubuntu"
    script = "/usr/share/debootstrap/scripts/jammy"
    keys = [] if Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg").exists() else ["--no-check-gpg"]
    words = ["debootstrap", *keys, "--variant=minbase", "--components=main,universe", "noble", str(root), "", script]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    for leftovers in ("var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(root / leftovers)
    made = buildah("from", "scratch")
    buildah("add", "--quiet", made, root, "/")
    if certificates():
        buildah("config", "--env", f"SSL_CERT_FILE={CERTIFICATES}", "--env", f"PIP_CERT={CERTIFICATES}", made)
    buildah("commit", "--quiet", "--format", "docker", "--rm", made, UBUNTU)


def certificates() -> list[str]:
    """This machine's way to the package registries, where it is not everybody's."""
    own = os.environ.get("SSL_CERT_FILE")
    return ["--volume", f"{own}:{CERTIFICATES}:ro"] if own else []


def settings(buildah: Buildah) -> dict[str, Any]:
    return json.loads(buildah("inspect", "--type", "image", "localhost/distcifar:cpu"))["Docker"]["config"]


def test_the_image_is_what_the_dockerfile_says(buildah: Buildah, container: str):
    found = settings(buildah)
    assert found["User"] == "1000:1000"
    assert found["WorkingDir"] == "/distcifar"
    assert not found.get("ExposedPorts")
    assert not [line for line in found["Env"] if "KEY" in line or "TOKEN" in line]
    assert buildah.inside(container, "id", "-u") == "1000"
    assert buildah.inside(container, "sh", "-c", "ls -A . .ci").split() == [
        ".:", ".ci", ".venv", "data", "jobs", "runs", ".ci:", "health.py"
    ]  # fmt: skip
    for place in (".venv/bin/x", "jobs/x", "/usr/bin/x"):
        assert "denied" in buildah.inside(container, "sh", "-c", f"touch {place} 2>&1", check=False)
    buildah("run", "--isolation", "chroot", container, "--", "sh", "-c", "du -sm . .venv /usr 2>/dev/null")


def test_the_command_trains_and_the_health_check_says_so(buildah: Buildah, container: str):
    found = settings(buildah)
    buildah.inside(container, *found["Cmd"])
    summaries = buildah.inside(container, "sh", "-c", "cat runs/*/summary.json")
    assert json.loads(summaries)["test_accuracy"] > 0.5
    kind, *check = found["Healthcheck"]["Test"]
    assert kind == "CMD"
    assert buildah.inside(container, *check) == "healthy"


def test_ffcv_streams_and_torch_compiles_in_the_image(buildah: Buildah, container: str):
    """The two libraries that it is linked to, and the compiler that is there for this."""
    train = [".venv/bin/python", "jobs/train.py", "debug", "--loader", "streamed", "--name", "streamed"]
    buildah.inside(container, *train, "--compile", "on")
    assert json.loads(buildah.inside(container, "cat", "runs/streamed/summary.json"))["test_accuracy"] > 0.5


def test_the_health_check_fails_without_the_library(buildah: Buildah, container: str):
    broken = (
        "import sys; sys.path.insert(0, '.ci'); import health, pathlib; print(health.unloadable(pathlib.Path('/tmp')))"
    )
    assert "has no library" in buildah.inside(container, ".venv/bin/python", "-c", broken)
