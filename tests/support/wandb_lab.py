"""A stand-in W&B server in a process of its own (wandb_server.py), and environments of clients that know only it."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SERVER = Path(__file__).with_name("wandb_server.py")
KEY = "canary0123456789abcdef0123456789abcdef0123456789"


class Lab:
    """One server, and its state as it tells it."""

    def __init__(self, folder: Path, *flags: str, port: int = 0) -> None:
        self._folder, self._flags = folder, flags
        folder.mkdir(parents=True, exist_ok=True)
        self.start(port)

    def start(self, port: int = 0) -> None:
        """Starts the server on `port`; its data are those of the one before."""
        port_file = self._folder / "url"
        port_file.unlink(missing_ok=True)
        words = ["--port", str(port), "--port-file", str(port_file), "--data", str(self._folder / "data")]
        self.process = subprocess.Popen([sys.executable, str(SERVER), *words, "--api-key", KEY, *self._flags])
        until = time.monotonic() + 30
        while not (port_file.exists() and port_file.read_text()):
            assert time.monotonic() < until, "the stand-in server did not start"
            time.sleep(0.02)
        self.url = port_file.read_text().strip()

    def stop(self) -> None:
        """Kills the server: connections are refused from now on."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def restart(self) -> None:
        """The server again, on the port that it had."""
        self.start(int(self.url.rpartition(":")[2]))

    def state(self) -> dict[str, Any]:
        """Everything that the server has, with each logged row."""
        with urllib.request.urlopen(f"{self.url}/_state?history=1") as answer:
            return json.load(answer)

    def run(self, run_id: str) -> dict[str, Any]:
        """The run of that id."""
        return next(run for run in self.state()["runs"] if run["id"] == run_id)

    def collection(self, name: str) -> dict[str, Any]:
        """The artifact collection ENTITY/PROJECT/NAME."""
        return next(found for found in self.state()["collections"] if found["collection"] == name)

    def fault(self, **fault: Any) -> None:
        """kind (status, stall, drop, ratelimit), match, seconds, status; nothing clears all faults."""
        body = json.dumps(fault).encode()
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/_fault", body, method="POST")).read()

    def client(self, home: Path, *, online: bool = True) -> dict[str, str]:
        """The environment of a machine of its own, whose home, caches and settings lie in `home`."""
        home.mkdir(parents=True, exist_ok=True)
        folders = ("CACHE", "DATA", "ARTIFACT", "CONFIG")
        found = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
        found |= {f"WANDB_{name}_DIR": str(home / name.lower()) for name in folders}
        found |= {"HOME": str(home), "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
        return found | ({"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY} if online else {})


@contextmanager
def wandb_lab(folder: Path, *flags: str) -> Iterator[Lab]:
    """A server for one test, which must not have seen anything that a real one would not have had to bear."""
    lab = Lab(folder, *flags)
    try:
        yield lab
        assert lab.state()["problems"] == []
    finally:
        lab.stop()
