"""Faults, each injected and looked for. What this machine cannot have (drivers, cards, other nodes) is made-up facts.

A fault is a function of a Bench that breaks something and returns the doctor's findings; its docstring says how.
"""

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from distcifar.doctor.examine import CLUSTER, MACHINE
from distcifar.doctor.findings import Finding, findings_of
from distcifar.doctor.gather import Place

SECRET = "a1B2c3D4e5" * 4  # 40 characters, as a key of W&B has; in parts, or this file would be told as a fault
Inject = Callable[["Bench"], list[Finding]]


@dataclass(frozen=True)
class Fault:
    """What is broken, and how the doctor must tell it: check, level, a part of `what` and of `remedy`, its fix."""

    name: str
    check: str
    level: str
    what: str
    remedy: str
    fix: str
    inject: Inject

    @property
    def how(self) -> str:
        return (self.inject.__doc__ or "").strip().rstrip(".")


FAULTS: list[Fault] = []


def fault(name: str, check: str, level: str, what: str, remedy: str, fix: str = "") -> Callable[[Inject], Inject]:
    """Enters the decorated function into FAULTS."""

    def enter(inject: Inject) -> Inject:
        FAULTS.append(Fault(name, check, level, what, remedy, fix, inject))
        return inject

    return enter


class Bench:
    """A place that is in order, and means to break it."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, undo: contextlib.ExitStack) -> None:
        self.folder, self.patch, self._undo = folder, patch, undo
        # Others can pass it, unlike pytest's own folders: where they cannot, nothing in it is open to them.
        self.home = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="doctor-home-")))
        self.home.chmod(0o755)
        self.runs, self.ray_temp, self.upload = folder / "runs", folder / "ray", folder / "upload"
        for made in (self.runs, self.ray_temp, self.upload):
            made.mkdir()

    def place(self, **environment: str) -> Place:
        return Place(environment, self.home, {"runs": self.runs}, self.upload, self.ray_temp)

    def mounted(self, options: str, name: str = "small") -> Path:
        """A tmpfs of its own."""
        point = self.folder / name
        point.mkdir()
        mounting = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(point)], capture_output=True, text=True
        )
        if mounting.returncode:
            pytest.skip(f"no right to mount a tmpfs: {mounting.stderr.strip()}")
        self._undo.callback(subprocess.run, ["umount", "--lazy", str(point)], check=True)
        return point

    def listening(self, *words: str, **environment: str) -> int:
        """The port on 0.0.0.0 of a process with the command line `words`, in an environment of its own."""
        port = free_port()
        program = (
            f"import socket, time; s = socket.socket(); s.setsockopt(1, 2, 1); s.bind(('0.0.0.0', {port})); s.listen();"
            "print('up', flush=True); time.sleep(60)"
        )
        process = subprocess.Popen(
            [*words, "-c", program], executable=sys.executable, env=environment, stdout=subprocess.PIPE
        )
        self._undo.callback(process.wait)
        self._undo.callback(process.kill)
        assert process.stdout is not None
        self._undo.callback(process.stdout.close)
        assert process.stdout.readline() == b"up\n"
        return port

    def http(self, status: int, body: bytes = b"[]") -> int:
        """The port on 0.0.0.0 of a server that answers everything with `status` and `body`."""

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        server = HTTPServer(("0.0.0.0", 0), Answer)
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self._undo.callback(server.server_close)
        self._undo.callback(server.shutdown)
        return server.server_port

    def set_limit(self, files: int) -> None:
        """At most so many open files, until the end of the test."""
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._undo.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, before[1]))


@contextlib.contextmanager
def bench(folder: Path) -> Iterator[Bench]:
    """A bench, put in order again at the end."""
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as undo:
        yield Bench(folder, patch, undo)


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])


def told(**facts: Any) -> list[Finding]:
    """The findings of the sections `facts`, of all checks that read no others."""
    return findings_of(json.loads(json.dumps(facts)), [*MACHINE, *CLUSTER])


def written(path: Path, text: str, mode: int = 0o600) -> Path:
    """A file with `text`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def aged(path: Path, seconds: float) -> Path:
    """`path`, last changed so long ago."""
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path
