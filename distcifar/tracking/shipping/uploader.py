"""Sends a run's artifacts one after another in a thread, beside the rows."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from distcifar.errors import TrackingError
from distcifar.tracking.identity import Identity
from distcifar.tracking.shipping.uploads import Outbox
from distcifar.tracking.wandb.artifacts import prune_states, upload
from distcifar.tracking.wandb.run import WandbRun

log = logging.getLogger(__name__)

TRIES = 3  # of each artifact once the run is over


class Uploader:
    """Sends what `outbox` has due. W&B's client blocks in an outage: `look` never does, `finish` does."""

    def __init__(
        self,
        run: WandbRun,
        identity: Identity,
        outbox: Outbox,
        tell_data: Callable[..., None],
        *,
        keep_states: int,
        minutes: float,
    ) -> None:
        """tell_data: notes the data as used by the run, with `images=True` also what is in them."""
        self._run, self._identity, self._outbox = run, identity, outbox
        self._tell_data, self._data_told = tell_data, outbox.policy == "none"
        self._keep_states, self._pause = keep_states, 60 * minutes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._under_way: Future[None] | None = None
        self._next = 0.0
        outbox.sweep()

    def look(self) -> None:
        """Begins to send what is due, if nothing is under way and the last time was long enough ago."""
        if self._under_way is not None:
            if not self._under_way.done():
                return
            if (error := self._under_way.exception()) is not None:
                log.warning("%s", error)
            self._under_way = None
        if time.monotonic() >= self._next and (self._outbox.due(over=False) or not self._data_told):
            self._next = time.monotonic() + self._pause
            self._under_way = self._thread.submit(self._send_due, over=False)

    def finish(self, *, over: bool) -> None:
        """Sends everything that is due. Raises TrackingError for what could not be sent."""
        self._thread.shutdown(wait=True)
        try:
            self._send_all(over=over)
            if self._outbox.policy == "data":  # last: it may take long
                self._tell_data(images=True)
        finally:
            self._outbox.sweep()

    def _send_all(self, *, over: bool) -> None:
        for left in reversed(range(TRIES)):
            try:
                self._send_due(over=over)
                break
            except TrackingError as error:
                if not left:
                    raise
                log.warning("%s", error)
                time.sleep(1)

    def _send_due(self, *, over: bool) -> None:
        if not self._data_told:
            self._tell_data()
            self._data_told = True
        for key in self._outbox.due(over=over):
            try:
                found = self._outbox.take(key)
            except FileNotFoundError as error:  # pruned since: there is a newer one
                log.info("%s is passed over: %s", key, error)
                continue
            version = upload(self._run.handle, self._identity, found)
            self._outbox.done(found, version)
            log.info("sent %s as %s", key, version)
            if found.kind == "state":
                prune_states(self._identity, keep=self._keep_states)
