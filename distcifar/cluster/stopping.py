"""How a running training is asked to stop: a file in the run directory, which every rank sees.

Workers run in threads of other processes and catch no signals; the driver does, and leaves the file. The
engine agrees over all ranks at which step to stop.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

POLL_SECONDS = 0.2  # a stat of a network file system at every step would cost more than a small step


class StopRequest:
    """The stop file of a run directory."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "stop"
        self._seen, self._next = False, 0.0

    def clear(self) -> None:
        """A new start is not stopped by an old request."""
        self._path.unlink(missing_ok=True)

    def make(self, reason: str = "") -> None:
        """Asks all ranks to stop after the step they are in."""
        self._path.touch()
        with contextlib.suppress(OSError):  # a full disk has room for a name, not for what is in the file
            self._path.write_text(reason)

    def reason(self) -> str:
        """Why a stop was asked for: the name of a signal, or empty where the file says nothing."""
        return self._path.read_text() if self._path.exists() else ""

    def made(self) -> bool:
        """Whether to stop; looks at most every POLL_SECONDS."""
        now = time.monotonic()
        if not self._seen and now >= self._next:
            self._seen, self._next = self._path.exists(), now + POLL_SECONDS
        return self._seen


@contextmanager
def stop_on_signals(request: StopRequest, announce: Callable[[str], None]) -> Iterator[None]:
    """While open, Ctrl-C and SIGTERM ask for a stop; a second one ends the program at once.

    For the main thread, and after ray.init, which sets its own handlers. The old ones come back at the end.
    """

    def handle(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        request.make(signal.Signals(number).name)
        announce("Stopping after this step and saving a checkpoint; once more to stop at once.")

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
