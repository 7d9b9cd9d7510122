"""Facts of the machine itself: processors, memory, limits, its name, its GPUs."""

import os
import resource
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import psutil

from distcifar.doctor.findings import Facts

CGROUPS = Path("/sys/fs/cgroup")
DEVICES = Path("/dev")


def cpu_facts(environment: Mapping[str, str]) -> Facts:
    """Cores of the machine, those of this process, the container's quota of them (None: none), OMP_NUM_THREADS."""
    return {
        "cores": os.cpu_count(),
        "affinity": len(os.sched_getaffinity(0)),
        "quota": cpu_quota(_membership(), CGROUPS),
        "omp": environment.get("OMP_NUM_THREADS", ""),
    }


def cpu_quota(membership: str, root: Path) -> float | None:
    """The CPUs that control groups allow: the least of the process's own and all above it; None without a limit.

    membership: /proc/self/cgroup. root: where the groups of both versions are mounted.
    """
    found = []
    for group, version in _groups(membership, "cpu", root):
        if version == 2:
            quota, period = (_words(group / "cpu.max") or ["", ""])[:2]
        else:
            quota, period = ("".join(_words(group / f"cpu.cfs_{it}_us")) for it in ("quota", "period"))
        if quota.isdigit() and period.isdigit():
            found.append(int(quota) / int(period))
    return min(found, default=None)


def memory_facts() -> Facts:
    """{"total_bytes", "available_bytes"} to this process: what the machine has, within its control groups' limits."""
    memory = psutil.virtual_memory()
    within = memory_limits(_membership(), CGROUPS)
    return {
        "total_bytes": min([memory.total, *(limit for limit, _ in within)]),
        "available_bytes": min([memory.available, *(max(0, limit - used) for limit, used in within)]),
    }


def memory_limits(membership: str, root: Path) -> list[tuple[int, int]]:
    """(limit, used) in bytes of each control group with a limit; parameters as of cpu_quota.

    Files that are cached are not used, as Ray counts it (get_cgroup_used_memory).
    """
    found = []
    for group, version in _groups(membership, "memory", root):
        limit_name, used_name, total = (
            ("memory.max", "memory.current", "")
            if version == 2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        )
        limit, used, stat = (_words(group / name) for name in (limit_name, used_name, "memory.stat"))
        if limit and limit[0].isdigit() and used:
            told = dict(zip(stat[::2], map(int, stat[1::2]), strict=False))
            cached = sum(told.get(f"{total}{kind}_file", 0) for kind in ("active", "inactive"))
            found.append((int(limit[0]), int(used[0]) - cached))
    return found


def _membership() -> str:
    with suppress(OSError):  # a kernel without control groups
        return Path("/proc/self/cgroup").read_text()
    return ""


def _groups(membership: str, controller: str, root: Path) -> Iterator[tuple[Path, int]]:
    """The folders of the control groups that limit a process, its own first, and their version.

    In a container its own group is seen as the root, whatever its path is called.
    """
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top, inside = root / controller if controllers else root, PurePosixPath(path.lstrip("/"))
        for folder in (inside, *inside.parents):
            yield top / folder, 1 if controllers else 2


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []  # no such group here


def file_limit() -> Facts:
    """How many files a process may hold open: {"soft", "hard"}."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {"soft": soft, "hard": hard}


def gpu_facts(environment: Mapping[str, str]) -> Facts:
    """{"driver", "cuda": [major, minor] that it serves, "cards" that CUDA may see, "hidden": how many it may not}.

    A card that the driver refuses is {"index", "failure"}. {"failure", "devices"} where NVML does not answer at all.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as reason:
        missing = isinstance(reason, pynvml.NVMLError_LibraryNotFound)
        # WSL2 has /dev/dxg for a card of any maker's, and NVML only with a driver of NVIDIA's.
        devices = any(DEVICES.glob("nvidia[0-9]*")) or ((DEVICES / "dxg").exists() and not missing)
        return {"failure": str(reason), "devices": devices}
    try:
        served = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        cards = [_card(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
        seen = visible_cards(cards, environment.get("CUDA_VISIBLE_DEVICES"), environment.get("CUDA_DEVICE_ORDER", ""))
        return {
            "driver": _text(pynvml.nvmlSystemGetDriverVersion()),
            "cuda": [served // 1000, served % 1000 // 10],
            "cards": seen,
            "hidden": len(cards) - len(seen),
        }
    finally:
        pynvml.nvmlShutdown()


def visible_cards(cards: list[Facts], visible: str | None, order: str) -> list[Facts]:
    """Those that CUDA_VISIBLE_DEVICES names (None: unset), by index or by the beginning of a UUID.

    As in NVIDIA's guide to CUDA's environment: what follows a name of no card is ignored. Unless CUDA_DEVICE_ORDER is
    PCI_BUS_ID, CUDA counts the fastest first; NVML does not tell which that is, and the newest is taken for it.
    """
    if visible is None:
        return cards
    counted = (
        cards if order == "PCI_BUS_ID" else sorted(cards, key=lambda card: card.get("capability", []), reverse=True)
    )
    seen: list[Facts] = []
    for name in (part.strip() for part in visible.split(",")):
        if name.startswith("MIG-"):  # a part of a card; of which one is not asked
            named = [card for card in cards if card.get("mig")]
        elif name.isdigit():
            named = counted[int(name) : int(name) + 1]
        else:
            named = [card for card in cards if name and card.get("uuid", "").startswith(name)]
        if not named:
            break
        seen += [card for card in named if card not in seen]
    return sorted(seen, key=lambda card: int(card["index"]))


def _card(nvml: Any, index: int) -> Facts:
    """Of one card. Memory is left out where the driver does not tell it: of a divided card, or one with the host's."""
    modes = {
        nvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS: "exclusive",
        nvml.NVML_COMPUTEMODE_PROHIBITED: "prohibited",
    }
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        facts = {
            "index": index,
            "name": _text(nvml.nvmlDeviceGetName(handle)),
            "uuid": _text(nvml.nvmlDeviceGetUUID(handle)),
            "capability": list(nvml.nvmlDeviceGetCudaComputeCapability(handle)),
            "mode": "shared",
            "mig": False,
        }
        untold = (nvml.NVMLError_NotSupported, nvml.NVMLError_NoPermission)
        with suppress(*untold):
            facts["mode"] = modes.get(nvml.nvmlDeviceGetComputeMode(handle), "shared")
        with suppress(*untold):
            facts["mig"] = nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE
        with suppress(*untold):
            memory = _memory(nvml, handle)
            facts |= {"memory_bytes": memory.total, "used_bytes": memory.used}
    except nvml.NVMLError as reason:  # it is lost, or another user's; the others are not
        return {"index": index, "failure": str(reason)}
    return facts


def _memory(nvml: Any, handle: Any) -> Any:
    try:
        return nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except nvml.NVMLError:
        return nvml.nvmlDeviceGetMemoryInfo(handle)  # of an older driver, which counts what it keeps itself as used


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
