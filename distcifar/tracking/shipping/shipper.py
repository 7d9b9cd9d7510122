"""The process that ships a run to W&B beside its training: `python -m distcifar.tracking.shipping.shipper RUN OPTIONS`.

It is a child of the program that trains (tracker.py): killed workers and controllers do not touch it, a training does
not wait for it, and it is of low priority. Its end of the pipe on stdin closes when that program leaves, however it
does. Then it sends what is left, tells W&B how the run has ended, and leaves: with 0 if W&B has everything.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from filelock import Timeout

from distcifar.errors import TrackingError
from distcifar.tracking.identity import read_identity
from distcifar.tracking.outcome import is_held, launch_lock, writer_lock
from distcifar.tracking.shipping.ship import Shipping, ship, shipping_lock, tell_status
from distcifar.tracking.wandb.run import Mode, has_key

log = logging.getLogger(__name__)

PRIORITY = 10  # of `nice`: the training comes first
RETRY_SECONDS = 60.0  # at most, between two attempts to reach a server
OTHER_SECONDS = 180.0  # for the shipper of a program that was killed, which may still be sending
WRITER_SECONDS = 120.0  # for workers that outlive a killed program


def main(argv: list[str]) -> int:
    """Ships the run in argv[0] as argv[1] (a Shipping as JSON) says until stdin is closed."""
    folder, how = Path(argv[0]), Shipping(**json.loads(argv[1]))
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    os.nice(PRIORITY)
    left = threading.Event()
    threading.Thread(target=_wait_for_end, args=(left,), daemon=True).start()
    signal.signal(signal.SIGTERM, _give_up)
    mode, problem = _mode(how)
    lock = shipping_lock(folder, mode)
    try:
        lock.acquire(timeout=OTHER_SECONDS, poll_interval=0.2)
    except Timeout:
        log.warning("another process ships %s", folder)
        return 1
    with lock:
        code = _ship(folder, mode, how, left)
    if problem:  # last: for the program to tell
        tell_status(folder, mode=mode, problem=problem)
    return code


def _give_up(number: int, _: FrameType | None) -> None:
    """The program does not wait any longer: how the run has ended is still told, what is under way is left."""
    signal.signal(number, signal.SIG_DFL)
    raise TrackingError("Not all was sent in time", "A program waits for W&B, but not for ever", "")


def _wait_for_end(left: threading.Event) -> None:
    sys.stdin.read()
    left.set()


def _mode(how: Shipping) -> tuple[Mode, str]:
    """Where to ship, and why not to the server although there is a key."""
    if how.mode != "auto":
        return how.mode, ""
    try:
        return ("online" if has_key() else "offline"), ""
    except TrackingError as error:
        return "offline", str(error)


def _ship(folder: Path, mode: Mode, how: Shipping, left: threading.Event) -> int:
    """Tries until everything is there, or until the program has left and a last try has failed."""
    identity, pause = read_identity(folder), 1.0
    if identity is None:
        log.warning("%s has no tracking.json", folder)
        return 1
    while True:
        last = left.is_set()
        try:
            ship(folder, identity, mode, how, lambda: left.is_set() and _is_quiet(folder))
            return 0
        except TrackingError as error:
            log.warning("%s", error, exc_info=error.__cause__)
            tell_status(folder, mode=mode, problem=str(error))
        if last:
            return 1
        left.wait(pause)
        pause = min(2 * pause, RETRY_SECONDS)


def _is_quiet(folder: Path) -> bool:
    """Waits for workers that are still writing though their program was killed, unless another one has taken over."""
    until = time.monotonic() + WRITER_SECONDS
    while is_held(writer_lock(folder)) and not is_held(launch_lock(folder)) and time.monotonic() < until:
        time.sleep(0.5)
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
