"""Facts of the machine itself: processors, memory, limits, its name, its GPUs."""

import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from distcifar.doctor.findings import Facts

CGROUPS = Path("/sys/fs/cgroup")


def cpu_facts(environment: Mapping[str, str]) -> Facts:
    """Cores of the machine, those of this process, the container's quota of them (None: none), OMP_NUM_THREADS."""
    return {
        "cores": os.cpu_count(),
        "affinity": len(os.sched_getaffinity(0)),
        "quota": cpu_quota(Path("/proc/self/cgroup").read_text(), CGROUPS),
        "omp": environment.get("OMP_NUM_THREADS", ""),
    }


def cpu_quota(membership: str, root: Path) -> float | None:
    """The CPUs that control groups (both versions) allow; None without a limit. `membership` is /proc/self/cgroup."""
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        for folder in (path.strip("/"), ""):  # in a container its own group is seen as the root
            if controllers == "":
                quota, period = _words(root / folder / "cpu.max", 2)
            elif "cpu" in controllers.split(","):
                (quota,), (period,) = (
                    _words(root / "cpu" / folder / f"cpu.cfs_{it}_us", 1) for it in ("quota", "period")
                )
            else:
                continue
            if quota.isdigit() and period.isdigit():
                return int(quota) / int(period)
    return None


def _words(path: Path, count: int) -> list[str]:
    try:
        return path.read_text().split()[:count]
    except OSError:
        return [""] * count  # no such group here


def memory_facts() -> Facts:
    """{"total_bytes", "available_bytes"}."""
    memory = psutil.virtual_memory()
    return {"total_bytes": memory.total, "available_bytes": memory.available}


def file_limit() -> Facts:
    """How many files a process may hold open: {"soft", "hard"}."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {"soft": soft, "hard": hard}


def gpu_facts() -> Facts:
    """{"driver", "cuda": [major, minor] that it serves, "cards"}; {"failure", "devices"} where NVML does not answer."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as reason:
        return {"failure": str(reason), "devices": bool(list(Path("/dev").glob("nvidia[0-9]*")))}
    try:
        served = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        return {
            "driver": _text(pynvml.nvmlSystemGetDriverVersion()),
            "cuda": [served // 1000, served % 1000 // 10],
            "cards": [_card(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())],
        }
    finally:
        pynvml.nvmlShutdown()


def _card(nvml: Any, index: int) -> Facts:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    modes = {
        nvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS: "exclusive",
        nvml.NVML_COMPUTEMODE_PROHIBITED: "prohibited",
    }
    try:
        mig = nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    except nvml.NVMLError:
        mig = False  # a card that has no such mode
    return {
        "name": _text(nvml.nvmlDeviceGetName(handle)),
        "capability": list(nvml.nvmlDeviceGetCudaComputeCapability(handle)),
        "memory_bytes": memory.total,
        "used_bytes": memory.used,
        "mode": modes.get(nvml.nvmlDeviceGetComputeMode(handle), "shared"),
        "mig": mig,
    }


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
