"""run.json: what a result depends on besides the recipe: versions, hardware, commit."""

import os
import platform
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from distcifar.config import RunSpec, to_dict

PACKAGES = ("distcifar", "torch", "torchvision", "ray", "ffcv", "wandb", "numpy", "numba")
DRIVERS_GPUS = Path("/proc/driver/nvidia/gpus")


def collect_facts(spec: RunSpec, data_folder: Path, data_digest: str) -> dict[str, Any]:
    """JSON-ready facts about this launch on this machine."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "spec": to_dict(spec),
        "data_folder": str(data_folder),
        "data_digest": data_digest,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "hardware": hardware(),
    }


def hardware() -> dict[str, Any]:
    """What this machine is. CUDA is not started."""
    return {
        "host": platform.node(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": _gpus(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None  # run from a checkout without an installation


def _git_commit() -> str | None:
    """The commit of the code, with + where files were changed since; None outside a checkout."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def _gpus() -> list[str]:
    """The names of NVIDIA GPUs as the driver lists them, or else NVML; no CUDA context is made."""
    found = []
    for path in sorted(DRIVERS_GPUS.glob("*/information")):
        names = [line.split(":", 1)[1].strip() for line in path.read_text().splitlines() if "Model" in line]
        found += names[:1]
    return found or _gpus_of_nvml()


def _gpus_of_nvml() -> list[str]:
    """For WSL2, whose driver is in Windows: it has nothing in /proc."""
    import pynvml  # here because it is of no use without a GPU

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    found = []
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            with suppress(pynvml.NVMLError):  # a card can get lost
                found.append(str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(index))))
    finally:
        pynvml.nvmlShutdown()
    return found
