"""Facts of Ray on this machine: who listens where, tokens, folders and addresses that dead heads have left."""

import grp
import http.client
import json
import math
import os
import pwd
import re
import socket
import stat
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from distcifar.doctor.findings import Facts
from distcifar.doctor.secrets import secret_names

# Of `ray start`'s environment, what is told of it: no values that could be secret.
TOLD = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "OMP_NUM_THREADS",
        "NUMBA_THREADING_LAYER", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")  # fmt: skip
PROBE_SECONDS = 1.0
MOST_READ = 1 << 20  # bytes of an answer
STILL_SECONDS = 600.0  # in which a living head has written to its logs many times
MOST_FILES = 100_000  # of sessions' folders that are added up


def role_of(words: list[str]) -> str:
    """What of Ray a process with this command line is; "" for none of what takes commands."""
    line, first = " ".join(words), Path(words[0]).name if words else ""
    if first in ("gcs_server", "raylet"):
        return {"gcs_server": "head", "raylet": "raylet"}[first]
    if "ray.util.client.server" in line:
        return "client server"
    if "/ray/dashboard/" in line and "agent" not in line:
        return "dashboard"
    return "dashboard" if first.startswith("ray-dashboard") else ""


def port_facts(ray_ports: tuple[int, ...]) -> Facts:
    """{"listening": [{"port", "address", "role", "auth"}]} of Ray's processes, and of whoever is on Ray's usual ports.

    auth: "token", "disabled", or "unknown" where the process is another user's and does not answer to HTTP.
    """
    found = []
    for connection in psutil.net_connections(kind="tcp"):
        if connection.status != psutil.CONN_LISTEN:
            continue
        process = _process(connection.pid)
        role = role_of(process["cmdline"])
        if role or connection.laddr.port in ray_ports:
            found.append(
                {
                    "port": connection.laddr.port,
                    "address": connection.laddr.ip,
                    "role": role or "unknown",
                    "auth": _auth(role, process["environ"], connection.laddr),
                }
            )
    return {"listening": sorted(found, key=lambda one: one["port"])}


def _process(pid: int | None) -> dict[str, Any]:
    """Its command line and environment; [] and None where they may not be seen or it has gone."""
    try:
        seen = psutil.Process(pid).as_dict(["cmdline", "environ"]) if pid else {}
    except psutil.NoSuchProcess:
        seen = {}
    return {"cmdline": seen.get("cmdline") or [], "environ": seen.get("environ")}


def _auth(role: str, environment: Mapping[str, str] | None, at: Any) -> str:
    if role and environment is not None:
        return "token" if environment.get("RAY_AUTH_MODE", "").lower() == "token" else "disabled"
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(at.ip, at.ip)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would be asked for 127.0.0.1 too
    try:
        with direct.open(f"http://{host}:{at.port}/api/jobs/", timeout=PROBE_SECONDS) as answer:
            json.loads(answer.read(MOST_READ))
    except urllib.error.HTTPError as refusal:
        return "token" if refusal.code in (401, 403) else "unknown"
    except (OSError, ValueError, http.client.HTTPException):
        return "unknown"  # it speaks no HTTP, or is another program's page
    return "disabled"


def ray_environment() -> dict[str, str]:
    """What `ray start` was given on this node, as its raylet has it; only what is told of it, of the token that it is.

    The raylet is this process's ancestor; another one may be of another cluster.
    """
    for process in psutil.Process().parents():
        seen = _process(process.pid)
        if role_of(seen["cmdline"]) == "raylet" and seen["environ"]:
            token = {"RAY_AUTH_TOKEN": "it is set"} if seen["environ"].get("RAY_AUTH_TOKEN") else {}
            return {name: value for name, value in seen["environ"].items() if name in TOLD} | token
    return {}


def auth_facts(environment: Mapping[str, str], home: Path) -> Facts:
    """RAY_AUTH_MODE ("" where unset), the token's file, and secrets that a job's runtime_env carries, by name."""
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or home / ".ray" / "auth_token")
    return {
        "mode": environment.get("RAY_AUTH_MODE", "").lower(),
        "path": str(path),
        "token": bool(environment.get("RAY_AUTH_TOKEN")) or (path.is_file() and path.stat().st_size > 0),
        "exposed": exposed(path),
        "job_secrets": secret_names(environment.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "")),
    }


def exposed(path: Path) -> bool:
    """Whether others than the owner can read the file: by its mode, and that of all folders above it."""
    if not path.is_file():
        return False
    file, folders = path.stat(), [folder.stat() for folder in path.absolute().parents]
    group = not _is_alone(file.st_uid, file.st_gid) and file.st_mode & stat.S_IRGRP
    others = file.st_mode & stat.S_IROTH
    return bool(group and all(each.st_mode & stat.S_IXGRP or each.st_mode & stat.S_IXOTH for each in folders)) or bool(
        others and all(each.st_mode & stat.S_IXOTH for each in folders)
    )


def _is_alone(user: int, group: int) -> bool:
    """Whether the user is the only member of the group, as of the one that Debian and Ubuntu give each."""
    try:
        members, name = grp.getgrgid(group).gr_mem, pwd.getpwuid(user).pw_name
    except KeyError:
        return False
    primary = {each.pw_name for each in pwd.getpwall() if each.pw_gid == group}
    return primary | {*members} <= {name}


def living_temp(processes: Iterable[psutil.Process] | None = None) -> Path | None:
    """The folder of the sessions (`ray start --temp-dir`) of the first raylet among `processes`; None without one.

    processes: None for this user's on this machine, the newest first.
    """
    if processes is None:
        with_dates = psutil.process_iter(["uids", "create_time"])
        own = [each for each in with_dates if each.info["uids"] and each.info["uids"].real == os.getuid()]
        processes = sorted(own, key=lambda process: float(process.info["create_time"] or 0), reverse=True)
    for process in processes:
        words = _process(process.pid)["cmdline"]
        named = [word.partition("=")[2] for word in words if re.match("--temp[-_]dir=.", word)]
        if named and role_of(words) == "raylet":
            return Path(named[0])
    return None


def session_facts(ray_temp: Path, now: float) -> Facts:
    """Folders of this user's sessions of Ray without a living process: {"path", "dead": [names], "bytes"}."""
    dead = dead_sessions(ray_temp, now)
    return {"path": str(ray_temp), "dead": [path.name for path in dead], "bytes": sum(_sizes(dead))}


def dead_sessions(ray_temp: Path, now: float) -> list[Path]:
    """This user's sessions that no process names in its command line, as all of a living head's do; they stand still.

    A head in another container may share the folder and not be seen, but it writes its logs all the time.
    """
    lines = "\n".join(" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
    alive = set(re.findall(r"session_[0-9-]+_[0-9-]+_[0-9]+_[0-9]+", lines))
    folders = [path for path in ray_temp.glob("session_*") if _is_own_folder(path)]
    return sorted(path for path in folders if path.name not in alive and now - _last_change(path) > STILL_SECONDS)


def _is_own_folder(path: Path) -> bool:
    with suppress(OSError):
        found = path.lstat()
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return False  # it has gone


def _last_change(session: Path) -> float:
    changes = []
    for path in (session, *(session / "logs").glob("*")):
        with suppress(OSError):  # it has gone, or may not be looked at
            changes.append(path.stat().st_mtime)
    return max(changes, default=math.inf)


def _sizes(folders: list[Path]) -> Iterator[int]:
    files = (os.path.join(root, name) for folder in folders for root, _, names in os.walk(folder) for name in names)
    for _, path in zip(range(MOST_FILES), files, strict=False):
        with suppress(OSError):
            yield os.lstat(path).st_blocks * 512


def head_facts(environment: Mapping[str, str], ray_temp: Path) -> Facts:
    """Heads that programs here connect to unless told otherwise: {"heads": [{"source", "address", "answers"}]}."""
    current = ray_temp / "ray_current_cluster"
    named = {
        "RAY_ADDRESS": environment.get("RAY_ADDRESS", ""),
        str(current): current.read_text().strip() if current.is_file() else "",
    }
    heads = [(source, address) for source, address in named.items() if re.fullmatch(r"[^/]*:\d+", address)]
    return {"heads": [{"source": at, "address": address, "answers": answers(address)} for at, address in heads]}


def answers(address: str) -> bool:
    """Whether something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=PROBE_SECONDS).close()
    except OSError:
        return False
    return True
