"""How busy the machine of a rank is: its process, its node, its GPU. Each rank leaves samples for the primary.

They are files beside the signs of life (watchdog.py), and taken in another thread: a driver that stands still is a
likely cause of a hang, and must not keep the watchdog from seeing it.
"""

import json
import platform
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from distcifar.cluster.watchdog import forget, leave
from distcifar.world import World

FIRST_SECONDS = 1.0  # after which the first sample is taken
SAMPLE_SECONDS = 10.0  # between two samples


class Hardware:
    """Measures this process, its node and its GPU. To be used in one thread: psutil remembers per thread."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._host = device, platform.node()
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call gives 0 and begins the time that the next one is about
        psutil.cpu_percent()
        self._gpu = NvmlGpu(device) if device.type == "cuda" else None

    def sample(self) -> dict[str, Any]:
        """JSON-ready. Percentages are means since the sample before: of one core (the process), of all (the node).

        Where NVML has failed there is the reason in `gpu_problem` instead of its values; it is not asked again.
        """
        memory = psutil.virtual_memory()
        found = {
            "host": self._host,
            "cpu_percent": self._process.cpu_percent(),
            "rss_bytes": self._process.memory_info().rss,
            "node_cpu_percent": psutil.cpu_percent(),
            "node_memory_bytes": memory.total - memory.available,
            "node_memory_total_bytes": memory.total,
        }
        return found | (self._gpu.sample() if self._gpu else {})


class NvmlGpu:
    """Measures the GPU that torch calls `device`."""

    def __init__(self, device: torch.device) -> None:
        import pynvml  # here because it is of no use without a GPU

        self._nvml, self._device, self._problem = pynvml, device, ""
        try:
            pynvml.nvmlInit()
            # By its UUID: CUDA_VISIBLE_DEVICES gives CUDA's devices other numbers than NVML's.
            uuid = torch.cuda.get_device_properties(device).uuid
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except pynvml.NVMLError as error:
            self._problem = str(error)

    def sample(self) -> dict[str, Any]:
        """The card's name, load and memory, over all processes; and the most that torch has had in this one."""
        return self._values() | {"torch_peak_bytes": torch.cuda.max_memory_allocated(self._device)}

    def _values(self) -> dict[str, Any]:
        if self._problem:
            return {"gpu_problem": self._problem}
        try:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
            found = {
                "gpu": self._nvml.nvmlDeviceGetName(self._handle),
                "gpu_memory_bytes": memory.used,
                "gpu_memory_total_bytes": memory.total,
            }
        except self._nvml.NVMLError as error:  # a GPU can get lost
            self._problem = str(error)
            return {"gpu_problem": self._problem}
        with suppress(self._nvml.NVMLError):  # a part of a card (MIG) has no utilisation of its own
            found["gpu_percent"] = self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu
        return found


class Meter:
    """Leaves this rank's newest sample in ranks/N.hardware.json of the run directory, from `with` to its end."""

    def __init__(self, folder: Path, world: World) -> None:
        self._path, self._device = _path(folder, world.rank), world.device
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._measure, name="hardware", daemon=True)

    def __enter__(self) -> "Meter":
        forget(self._path)  # of a start that was killed
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(timeout=1.0)  # no longer: a driver may stand still
        forget(self._path)

    def _measure(self) -> None:
        hardware = Hardware(self._device)
        pause = FIRST_SECONDS
        while not self._over.wait(pause):
            pause = SAMPLE_SECONDS
            try:
                leave(self._path, hardware.sample())
            except (OSError, psutil.Error):
                continue  # a system that does not tell, or not now


def samples_of(folder: Path, ranks: int) -> list[dict[str, Any]]:
    """The newest sample of each of the run's ranks that has left one."""
    found = []
    for rank in range(ranks):
        try:
            found.append({"rank": rank, **json.loads(_path(folder, rank).read_text())})
        except (OSError, ValueError):
            continue  # not yet there
    return found


def _path(folder: Path, rank: int) -> Path:
    return folder / "ranks" / f"{rank}.hardware.json"
