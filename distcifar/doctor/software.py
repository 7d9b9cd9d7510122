"""Facts of what is installed: Python, packages, torch, FFCV's libraries, numba's threads."""

import importlib
import importlib.metadata
import importlib.util
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from distcifar.cluster.facts import PACKAGES
from distcifar.doctor.findings import Facts

NUMBA_LAYERS = {"tbb": "tbbpool", "omp": "omppool", "workqueue": "workqueue"}


def python_facts() -> Facts:
    """{"version", "executable"}."""
    return {"version": platform.python_version(), "executable": sys.executable}


def package_versions() -> Facts:
    """Version by package, None where it is not installed."""
    found: Facts = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def locked_versions(lock: Path) -> Facts:
    """The versions that `lock` (pip's requirements format) allows of each package; several, for several Pythons."""
    found: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)==(\S+)", lock.read_text(), re.MULTILINE):
        found.setdefault(name, []).append(version)
    return found


def torch_facts() -> Facts:
    """Version, CUDA's version and architectures of the build, threads; {"failure"} where it cannot be imported."""
    try:
        import torch
    except (ImportError, OSError) as reason:
        return {"failure": f"{type(reason).__name__}: {reason}"}
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "archs": (torch._C._cuda_getArchFlags() or "").split() if torch.version.cuda else [],  # also without a GPU
        "threads": torch.get_num_threads(),
    }


def ffcv_facts() -> Facts:
    """{"library", "missing": [names of shared libraries]}; {"failure"} without FFCV. Not imported: that is slow."""
    spec = importlib.util.find_spec("ffcv")
    libraries = sorted(Path(spec.origin).parent.glob("_libffcv*.so")) if spec and spec.origin else []
    if not libraries:
        return {"failure": "FFCV is not installed" if spec is None else "FFCV has no _libffcv*.so"}
    return {"library": str(libraries[0]), "missing": missing_libraries(libraries[0])}


def missing_libraries(library: Path) -> list[str]:
    """Those that the dynamic linker does not find of what `library` needs, itself and through others."""
    told = subprocess.run(["ldd", str(library)], capture_output=True, text=True, timeout=20, check=True).stdout
    return sorted(set(re.findall(r"^\s*(\S+) => not found", told, re.MULTILINE)))


def numba_facts(environment: Mapping[str, str]) -> Facts:
    """Which of numba's threading layers can be loaded, and which one is asked for ("" for none)."""
    layers = []
    for name, module in NUMBA_LAYERS.items():
        try:
            importlib.import_module(f"numba.np.ufunc.{module}")
            layers.append(name)
        except ImportError:
            continue  # not built in, or its library is not there
    return {"layers": layers, "asked": environment.get("NUMBA_THREADING_LAYER", "")}
