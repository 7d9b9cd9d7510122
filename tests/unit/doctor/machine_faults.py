"""Faults of what is installed, of the machine and its disks."""

import fcntl
import importlib.metadata
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from distcifar.doctor import machine, software, storage
from distcifar.doctor.findings import Finding
from tests.unit.doctor.faults import Bench, aged, fault, told, written

ROOT = Path(__file__).parents[3]
CARD = {
    "index": 1,
    "name": "RTX",
    "capability": [8, 9],
    "memory_bytes": 8 << 30,
    "used_bytes": 1 << 20,
    "mode": "shared",
    "mig": False,
}
GPUS = {"driver": "570.1", "cuda": [13, 0], "cards": [CARD], "hidden": 0}
TORCH = {"version": "2.15.0", "cuda": "13.2", "archs": ["sm_75", "sm_80", "sm_90", "sm_120"], "threads": 1}
MEMORY = {"total_bytes": 16 << 30, "available_bytes": 8 << 30}


@fault("a Python without wheels", "python", "error", "Python 3.10.4", "PYTHON=python3.12")
def old_python(bench: Bench) -> list[Finding]:
    """Facts"""
    return told(python={"version": "3.10.4", "executable": "python"})


@fault("a package is missing", "packages", "error", "Not installed: wandb", "make setup")
def missing_package(bench: Bench) -> list[Finding]:
    """importlib.metadata does not find it"""
    found = importlib.metadata.version

    def version(name: str) -> str:
        if name == "wandb":
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    bench.patch.setattr(importlib.metadata, "version", version)
    return told(packages=software.package_versions())


@fault("another version than the locked one", "locked versions", "warning", "locked 1.26.0", "make setup")
def unlocked(bench: Bench) -> list[Finding]:
    """A requirements.lock that pins another numpy"""
    lock = written(
        bench.folder / "requirements.lock", "numpy==1.26.0 ; python_full_version < '3.12' \\\n    --hash=x\n"
    )
    return told(packages=software.package_versions(), locked=software.locked_versions(lock))


@fault("torch cannot be imported", "torch", "error", "ModuleNotFoundError", "make setup")
def broken_torch(bench: Bench) -> list[Finding]:
    """sys.modules keeps it from being imported"""
    bench.patch.setitem(sys.modules, "torch", None)
    return told(torch=software.torch_facts())


@fault("a driver too old for the wheel", "CUDA", "error", "serves CUDA 12.4", "Update the driver")
def old_driver(bench: Bench) -> list[Finding]:
    """Facts"""
    return told(torch=TORCH, gpus=GPUS | {"cuda": [12, 4]})


@fault("a CPU wheel beside GPUs", "CUDA", "error", "without CUDA", "CUDA wheel")
def cpu_wheel(bench: Bench) -> list[Finding]:
    """Facts"""
    return told(torch=TORCH | {"cuda": None, "archs": []}, gpus=GPUS)


@fault("a card that the wheel has no code for", "architecture", "error", "GPU 1 RTX (sm_61)", "get_arch_list")
def old_card(bench: Bench) -> list[Finding]:
    """Facts"""
    return told(torch=TORCH, gpus=GPUS | {"cards": [CARD | {"capability": [6, 1]}]})


@fault("a driver that does not answer", "GPUs", "error", "version mismatch", "Reboot")
def broken_driver(bench: Bench) -> list[Finding]:
    """Facts"""
    return told(gpus={"failure": "Driver/library version mismatch", "devices": True})


@fault("one of several cards is lost", "GPU 0", "error", "GPU is lost", "leave it out with CUDA_VISIBLE_DEVICES")
def lost_card(bench: Bench) -> list[Finding]:
    """Facts"""
    return told(torch=TORCH, gpus=GPUS | {"cards": [{"index": 0, "failure": "GPU is lost"}, CARD]})


@fault("a card for one process only", "GPU 1 RTX", "warning", "one process only", "nvidia-smi -c DEFAULT")
def exclusive_card(bench: Bench) -> list[Finding]:
    """Facts"""
    return told(gpus=GPUS | {"cards": [CARD | {"mode": "exclusive"}]})


@fault("a divided card", "GPU 1 RTX", "warning", "MIG", "-mig 0")
def divided_card(bench: Bench) -> list[Finding]:
    """Facts"""
    return told(gpus=GPUS | {"cards": [CARD | {"mig": True}]})


@fault("a card that others use", "GPU 1 RTX", "warning", "6.0 of 8 GiB", "nvidia-smi")
def busy_card(bench: Bench) -> list[Finding]:
    """Facts"""
    return told(gpus=GPUS | {"cards": [CARD | {"used_bytes": 6 << 30}]})


@fault("a library of FFCV's is gone", "FFCV", "error", "libopencv_core.so.999", "apt-get install libopencv-imgproc-dev")
def missing_library(bench: Bench) -> list[Finding]:
    """A compiled extension whose library is removed after linking"""
    gone, library = bench.folder / "libopencv_core.so.999", bench.folder / "_libffcv.so"
    source = written(bench.folder / "a.c", "int a(void) { return 1; }\n")
    user = written(bench.folder / "b.c", "int a(void); int b(void) { return a(); }\n")
    try:
        subprocess.run(["cc", "-shared", "-fPIC", f"-Wl,-soname,{gone.name}", source, "-o", gone], check=True)
        subprocess.run(["cc", "-shared", "-fPIC", user, gone, "-o", library], check=True)
    except FileNotFoundError:
        pytest.skip("no C compiler")
    gone.unlink()
    return told(ffcv={"library": str(library), "missing": software.missing_libraries(library)})


@fault("numba's weakest threads", "numba", "warning", "workqueue", "unset NUMBA_THREADING_LAYER")
def numba_workqueue(bench: Bench) -> list[Finding]:
    """NUMBA_THREADING_LAYER=workqueue"""
    return told(numba=software.numba_facts({"NUMBA_THREADING_LAYER": "workqueue"}))


@fault("numba's threads cannot be loaded", "numba", "error", "=tbb cannot be loaded", "unset NUMBA_THREADING_LAYER")
def numba_tbb(bench: Bench) -> list[Finding]:
    """NUMBA_THREADING_LAYER=tbb, and its module kept from being imported"""
    bench.patch.setitem(sys.modules, "numba.np.ufunc.tbbpool", None)
    return told(numba=software.numba_facts({"NUMBA_THREADING_LAYER": "tbb"}))


@fault("more threads than cores", "threads", "warning", "OMP_NUM_THREADS=64", "export OMP_NUM_THREADS=")
def many_threads(bench: Bench) -> list[Finding]:
    """torch is given 64 threads"""
    before = torch.get_num_threads()
    torch.set_num_threads(64)
    try:
        return told(torch=software.torch_facts(), cpu=machine.cpu_facts({"OMP_NUM_THREADS": "64"}))
    finally:
        torch.set_num_threads(before)


@fault("a container's quota below its cores", "cores", "warning", "a quota of 1.5", "OMP_NUM_THREADS=1")
def small_quota(bench: Bench) -> list[Finding]:
    """Control groups' files in a folder: the process's own has a larger quota than the one above it"""
    written(bench.folder / "user.slice" / "cpu.max", "150000 100000\n")
    written(bench.folder / "user.slice" / "box" / "cpu.max", "400000 100000\n")
    quota = machine.cpu_quota("0::/user.slice/box\n", bench.folder)
    return told(cpu={"cores": 8, "affinity": 8, "quota": quota, "omp": ""})


@fault("little memory", "memory", "warning", "0.5 of 16.0 GiB", "larger machine")
def little_memory(bench: Bench) -> list[Finding]:
    """Facts"""
    return told(memory=MEMORY | {"available_bytes": 1 << 29})


@fault("a container with little memory", "memory", "warning", "0.4 of 0.5 GiB", "--memory")
def small_container(bench: Bench) -> list[Finding]:
    """Control groups' files in a folder: 512 MiB for the group above the process's own"""
    for name, bytes_ in (("max", 512 << 20), ("current", 300 << 20)):
        written(bench.folder / "box" / f"memory.{name}", f"{bytes_}\n")
    written(bench.folder / "box" / "memory.stat", f"anon 1\ninactive_file {100 << 20}\nactive_file {100 << 20}\n")
    written(bench.folder / "box" / "inner" / "memory.max", "max\n")
    bench.patch.setattr(machine, "CGROUPS", bench.folder)
    bench.patch.setattr(machine, "_membership", lambda: "0::/box/inner\n")
    return told(memory=machine.memory_facts())


@fault("no /dev/shm", "shared memory", "error", "There is no ", "mount -t tmpfs")
def no_shm(bench: Bench) -> list[Finding]:
    """A folder that is not there"""
    return told(shm=storage.shm_facts(bench.folder / "gone"), memory=MEMORY)


@fault("a container's small /dev/shm", "shared memory", "warning", "has 64 MiB", "--shm-size=")
def small_shm(bench: Bench) -> list[Finding]:
    """A tmpfs of 64 MiB"""
    return told(shm=storage.shm_facts(bench.mounted("size=64m")), memory=machine.memory_facts())


@fault("few open files", "open files", "warning", "At most 256", "ulimit -n")
def few_files(bench: Bench) -> list[Finding]:
    """setrlimit"""
    bench.set_limit(256)
    return told(files=machine.file_limit())


@fault("Ray's disk is full", "Ray's disk", "error", "97% full", "--temp-dir")
def full_temp(bench: Bench) -> list[Finding]:
    """A tmpfs, filled"""
    point = bench.mounted("size=4m")
    (point / "much").write_bytes(b"1" * (4063232 // 4096 * 4096))
    return told(temp=storage.disk_facts(point))


@fault("no room for a run", "runs space", "error", "GiB free", "another disk")
def little_room(bench: Bench) -> list[Finding]:
    """A tmpfs of 8 MiB"""
    return told(storage={"runs": storage.folder_facts(bench.mounted("size=8m"))})


@fault("a full disk", "runs folder", "error", "No space left on device", "another folder")
def full_disk(bench: Bench) -> list[Finding]:
    """A tmpfs, filled to its last byte"""
    point = bench.mounted("size=1m")
    (point / "much").write_bytes(b"1" * (1 << 20))
    return told(storage={"runs": storage.folder_facts(point)})


@fault("no inodes", "runs inodes", "error", "inodes are left", "many small files")
def no_inodes(bench: Bench) -> list[Finding]:
    """A tmpfs of 20 inodes"""
    return told(storage={"runs": storage.folder_facts(bench.mounted("size=3g,nr_inodes=20"))})


@fault("a read-only disk", "runs folder", "error", "Read-only file system", "another folder")
def read_only(bench: Bench) -> list[Finding]:
    """A tmpfs, mounted ro"""
    return told(storage={"runs": storage.folder_facts(bench.mounted("size=8m,ro"))})


@fault("a bucket refuses", "runs at a URL", "error", "file:///proc/runs", "this machine's credentials")
def refusing_store(bench: Bench) -> list[Finding]:
    """Runs at a URL where nothing can be written"""
    return told(stores={"runs": storage.store_facts("file:///proc/runs", write=True)})


@fault("slow storage", "runs latency", "warning", "ms for a flushed write", "--checkpoint-steps")
def slow_storage(bench: Bench) -> list[Finding]:
    """An fsync that takes 0.15 s more"""
    flush = os.fsync
    bench.patch.setattr(storage, "WRITE_SECONDS", 0.4)
    bench.patch.setattr(os, "fsync", lambda file: (time.sleep(0.15), flush(file)))
    return told(storage={"runs": storage.folder_facts(bench.runs)})


@fault("locks that lock nothing", "runs locks", "error", "keeps nobody out", "local_lock=none")
def no_locks(bench: Bench) -> list[Finding]:
    """An flock that does nothing"""
    bench.patch.setattr(fcntl, "flock", lambda *_: None)
    return told(storage={"runs": storage.folder_facts(bench.runs)})


@fault("half-written files of killed processes", "runs leftovers", "warning", "1 half-written", "--fix", "leftovers")
def leftovers(bench: Bench) -> list[Finding]:
    """A folder of that kind, two days old, and one of now"""
    (bench.runs / ".aside-0-new").mkdir()
    (bench.runs / ".aside-1-old").mkdir()
    aged(bench.runs / ".aside-1-old", 2 * 86400)
    return told(storage={"runs": storage.folder_facts(bench.runs)})
