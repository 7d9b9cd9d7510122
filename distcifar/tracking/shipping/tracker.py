"""The training program's end of tracking: starts the shipper, starts it again if it dies, waits for it at the end."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distcifar.tracking.rows import last_row
from distcifar.tracking.shipping.process import command, with_package
from distcifar.tracking.shipping.ship import Shipping, read_status
from distcifar.tracking.shipping.uploads import OUTBOX

SHIPPER = "distcifar.tracking.shipping.shipper"
LOOK_SECONDS = 5.0  # between two looks at whether the shipper lives
STARTS = 10  # of the shipper, at most
END_SECONDS = 5.0  # for the shipper to tell the end of the run
QUIET_SECONDS = 2.0  # of waiting, after which the user is told what for


class Tracker:
    """Ships one run while it is trained. Nothing here waits for W&B but `close`.

    environment: of the shipper's process; the account's key is there and nowhere else.
    """

    def __init__(
        self, folder: Path, how: Shipping, environment: Mapping[str, str], announce: Callable[[str], None]
    ) -> None:
        self._folder, self._how, self._announce = folder, how, announce
        self._environment = with_package(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._starts, self._next, self._heard = 0, 0.0, False

    def listen(self, row: Mapping[str, Any]) -> None:
        """Takes each row of the run. The first one starts the shipper: until then the processor is needed elsewhere."""
        now, self._heard = time.monotonic(), True
        if now < self._next or row["kind"] not in ("step", "epoch"):
            return
        self._next = now + LOOK_SECONDS
        if self._is_gone() and self._starts < STARTS:
            self._start()

    def close(self, seconds: float) -> None:
        """The run is over: waits for the shipper, at most `seconds`, and tells what has become of it.

        Without a word from this launch, which then has not begun, there is nothing to tell. Raises nothing.
        """
        if not self._heard:
            return
        if self._is_gone() and self._has_rows():  # killed, or the run has ended without a new row
            self._start()
        if self._process is None or self._process.stdin is None:
            return
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._wait(seconds)
        except KeyboardInterrupt:
            self._announce("Left W&B alone.")
        done = self._process.poll() == 0
        if self._process.poll() is None:
            self._end()
        status = self._status()
        if problem := status.get("problem"):
            self._announce(f"W&B: {problem}")
        if not done:
            self._announce(f"Not everything is in W&B yet: python jobs/report.py sync {self._folder} sends the rest.")
        elif status.get("url"):
            self._announce(f"W&B: {status['url']}")

    def _has_rows(self) -> bool:
        with suppress(OSError):  # storage that is gone is the training's to tell
            return last_row(self._folder) is not None
        return False

    def _status(self) -> dict[str, str]:
        with suppress(OSError, ValueError):
            return read_status(self._folder)
        return {}

    def _end(self) -> None:
        """Has the shipper tell W&B how the run has ended, if it can, and ends it."""
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder / OUTBOX, ignore_errors=True)  # its links keep old checkpoints on the disk

    def _is_gone(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _start(self) -> None:
        self._starts += 1
        try:
            self._process = self._started()
        except OSError as error:  # a full disk, no process to be had: the training is not to end for it
            self._announce(f"W&B: the process that sends could not be started: {error}")

    def _started(self) -> "subprocess.Popen[bytes]":
        (self._folder / "wandb").mkdir(exist_ok=True)
        with open(self._folder / "wandb" / "shipper.log", "ab") as log:
            return subprocess.Popen(
                command(SHIPPER, str(self._folder), json.dumps(asdict(self._how))),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for the training; this process then sends the rest
            )

    def _wait(self, seconds: float) -> None:
        assert self._process is not None
        for part, words in ((QUIET_SECONDS, "Sending the rest to W&B; Ctrl-C leaves it for later."), (seconds, "")):
            try:
                self._process.wait(part)
                return
            except subprocess.TimeoutExpired:
                if words:
                    self._announce(words)
