"""The facts of the machine that this runs on, JSON-ready. Nothing is judged here: that is for the checks."""

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from distcifar.doctor.findings import Facts
from distcifar.doctor.machine import cpu_facts, file_limit, gpu_facts, memory_facts
from distcifar.doctor.ray_here import (
    auth_facts,
    exposed,
    head_facts,
    living_temp,
    port_facts,
    ray_environment,
    session_facts,
)
from distcifar.doctor.software import (
    ffcv_facts,
    locked_versions,
    numba_facts,
    package_versions,
    python_facts,
    torch_facts,
)
from distcifar.doctor.storage import disk_facts, folder_facts, shm_facts, store_facts
from distcifar.doctor.uploads import config_secrets, upload_facts
from distcifar.tracking.wandb.account import account_facts


@dataclass(frozen=True)
class Place:
    """What of a machine is looked at. Everything that a test may want to be elsewhere is a field."""

    environment: Mapping[str, str]
    home: Path
    folders: Mapping[str, Path] = field(default_factory=dict)  # whose storage is tried: runs, data
    working_dir: Path | None = None  # what a job would upload; requirements.lock is there too
    ray_temp: Path = Path("/tmp/ray")  # where Ray's clients look for the note of a head
    living_temp: Path | None = None  # where the living head or node keeps its sessions, if that is known
    shm: Path = Path("/dev/shm")
    ray_ports: tuple[int, ...] = (6379, 8265, 10001)  # Ray's own choice for the head, the dashboard, clients
    stores: Mapping[str, str] = field(default_factory=dict)  # runs, data: where they are at a URL

    @property
    def sessions(self) -> Path:
        """Where Ray's sessions are."""
        return self.living_temp or self.ray_temp


def gather(place: Place) -> Facts:
    """Sections of facts by name; {"problem": reason} for one that could not be gathered.

    Takes a few seconds: torch is imported, small files are written and flushed.
    """
    facts = _machine(place) | {
        "wandb": _section(lambda: _wandb(place)),
    }
    if place.working_dir:
        folder = place.working_dir
        if (folder / "requirements.lock").exists():  # it does not travel with a job
            facts["locked"] = _section(lambda: locked_versions(folder / "requirements.lock"))
        facts["upload"] = _section(lambda: upload_facts(folder))
        facts["config"] = _section(lambda: config_secrets(folder))
    return facts


def gather_node(place: Place) -> Facts:
    """The same on a node of a cluster, where the environment and --temp-dir that matter are those of `ray start`."""
    raylet = living_temp(psutil.Process().parents())
    node = replace(place, environment=ray_environment(), home=Path.home(), living_temp=raylet)
    return _machine(node)


def _machine(place: Place) -> Facts:
    sections: dict[str, Callable[[], Facts]] = {
        "python": python_facts,
        "packages": package_versions,
        "torch": torch_facts,
        "ffcv": ffcv_facts,
        "numba": lambda: numba_facts(place.environment),
        "gpus": lambda: gpu_facts(place.environment),
        "cpu": lambda: cpu_facts(place.environment),
        "memory": memory_facts,
        "shm": lambda: shm_facts(place.shm),
        "files": file_limit,
        "temp": lambda: disk_facts(place.sessions),
        "storage": lambda: {name: folder_facts(path) for name, path in place.folders.items()},
        "stores": lambda: {name: store_facts(url, write=name == "runs") for name, url in place.stores.items()},
        "ports": lambda: port_facts(place.ray_ports),
        "auth": lambda: auth_facts(place.environment, place.home),
        "sessions": lambda: session_facts(place.sessions, time.time()),
        "head": lambda: head_facts(place.environment, place.ray_temp),
    }
    return {"host": platform.node()} | {name: _section(gather) for name, gather in sections.items()}


def _wandb(place: Place) -> Facts:
    account = account_facts(place.environment, place.home)
    return account | {"exposed": exposed(Path(account["netrc"]))}


def _section(facts: Callable[[], Facts]) -> Facts:
    try:
        return facts()
    except Exception as reason:  # whatever it is, it is told, and the other sections are gathered
        return {"problem": f"{type(reason).__name__}: {reason}"}
