"""One W&B run, opened, fed and closed.

It runs in the shipper's process (shipper.py) or in that of `report.py sync`, never in a training's: a client that
blocks, dies or is refused holds up nobody.
"""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

from distcifar.errors import TrackingError
from distcifar.tracking.identity import Identity
from distcifar.tracking.outcome import Outcome
from distcifar.tracking.shipping.content import METRICS, summary_values

if TYPE_CHECKING:
    import wandb

Mode = Literal["online", "offline"]
INIT_SECONDS = 15.0
FINISH_SECONDS = 120.0


def has_key() -> bool:
    """Whether this machine has an account's key, in the environment or where `wandb login` leaves it. Never asks."""
    import wandb

    try:
        return bool(wandb.login(prompt=False, verify=False))
    except (wandb.errors.Error, ValueError) as error:
        raise TrackingError(
            f"W&B does not take the key: {error}", "A key has at least 40 characters", "Correct WANDB_API_KEY"
        ) from error


def require_key() -> None:
    """Raises TrackingError without a key: on a terminal the client would ask for one, and wait."""
    if not has_key():
        raise TrackingError(
            "There is no W&B key here", "W&B is spoken to with an account's key", "wandb login, or set WANDB_API_KEY"
        )


def client_settings(*, finish_seconds: float, **more: Any) -> "wandb.Settings":
    """The client's settings: it sends every two seconds, prints nothing, asks nothing, and gives up some time."""
    import wandb

    return wandb.Settings(
        init_timeout=INIT_SECONDS,
        finish_timeout=finish_seconds,
        finish_timeout_raises=True,
        x_transaction_log_flush_interval=1,
        x_file_stream_transmit_interval=2,
        console="off",
        silent=True,
        save_code=False,
        disable_git=True,
        **more,
    )


class WandbRun:
    """An open run. Raises TrackingError where W&B cannot be reached or refuses."""

    def __init__(
        self,
        identity: Identity,
        folder: Path,
        config: Mapping[str, Any],
        mode: Mode,
        *,
        closes: bool = True,
        watched_pid: int = 0,
    ) -> None:
        """Opens the run of `identity`, for the first time or again; the client's files go to `folder`/wandb.

        closes: whether `finish` ends the run on the server, or it stays `running` there. watched_pid: the process
        that W&B's own system metrics are to be about (0: none).
        """
        import wandb

        if mode == "online":
            require_key()
        own = "run-*" if mode == "online" else "offline-run-*"  # not those of another process in the other mode
        for old in (folder / "wandb").glob(own):  # what was in them is in the journal
            shutil.rmtree(old, ignore_errors=True)
        # W&B's button `Stop run` is for the program that trains; the client would interrupt this one.
        settings: dict[str, Any] = {"x_disable_stats": True, "stop_fn": lambda: None}
        if watched_pid:
            settings = {"x_stats_pid": watched_pid, "stop_fn": partial(_ask_to_stop, folder)}
        try:
            self._run: wandb.Run = wandb.init(
                entity=identity.entity or None,
                project=identity.project,
                id=identity.id,
                name=identity.name,
                group=identity.group or None,
                config=dict(config),
                dir=folder,
                mode=mode,
                resume="allow" if mode == "online" else None,
                settings=client_settings(finish_seconds=FINISH_SECONDS, x_update_finish_state=closes, **settings),
            )
        except (wandb.errors.Error, OSError) as error:
            raise _unreachable(error) from error
        self.mode: Mode = mode
        self.sent = self._run.starting_step - 1  # the last step that W&B has: run.step is 0 after a resume
        for name, axis, best in METRICS:
            self._run.define_metric(name, step_metric=axis, summary=best or None)

    @property
    def handle(self) -> "wandb.Run":
        """The client's own object, for artifacts."""
        return self._run

    @property
    def entity(self) -> str:
        """The team or account that the run is in."""
        return self._run.entity

    @property
    def url(self) -> str:
        """The run's page; empty offline."""
        return (self._run.url or "") if self.mode == "online" else ""

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds a row, unless W&B has that step. Never waits for the network."""
        if step > self.sent:
            self._run.log(dict(values), step=step)
            self.sent = step

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Sets values of the run's summary."""
        self._run.summary.update(dict(values))

    def tell_result(self, summary: Mapping[str, Any], samples: Mapping[str, Any] | None) -> None:
        """The measured test split: figures, accuracy of each class, confusion matrix, sample predictions."""
        import wandb

        names = list(summary["per_class_accuracy"])
        per_class = [[name, accuracy] for name, accuracy in summary["per_class_accuracy"].items()]
        confusion = [
            [names[actual], names[predicted], count]
            for actual, counts in enumerate(summary["confusion"])
            for predicted, count in enumerate(counts)
        ]
        found: dict[str, Any] = {
            "test/classes": wandb.Table(columns=["class", "accuracy"], data=per_class),
            "test/confusion": wandb.Table(columns=["Actual", "Predicted", "nPredictions"], data=confusion),
        }
        if samples is not None:
            pictures = zip(*(samples[name] for name in ("images", "labels", "predictions", "confidence")), strict=True)
            rows = [
                [wandb.Image(image.squeeze()), names[label], names[predicted], float(sure)]
                for image, label, predicted, sure in pictures
            ]
            found["test/samples"] = wandb.Table(columns=["image", "class", "predicted", "confidence"], data=rows)
        self.summarise(summary_values(summary) | found)

    def tell_events(self, events: Sequence[Mapping[str, Any]]) -> None:
        """The run's events as a table."""
        import wandb

        rows = [[event["time"], event["kind"], event["text"]] for event in events]
        self.summarise({"events": wandb.Table(columns=["time", "event", "text"], data=rows)})

    def finish(self, ended: Outcome) -> None:
        """Returns when W&B has everything. Raises TrackingError where that takes longer than FINISH_SECONDS."""
        import wandb

        self.summarise({"outcome": ended.kind})
        if ended.kind == "preempted":
            self._run.mark_preempting()
        try:
            self._run.finish(exit_code=ended.exit_code)
        except (wandb.errors.Error, TimeoutError, OSError) as error:
            raise _unreachable(error) from error


def _ask_to_stop(folder: Path) -> None:
    """Once in a run's life: W&B keeps saying so when the run goes on, and would stop it again and again."""
    told = folder / "wandb" / "stop-was-pressed"
    if not told.exists():
        told.touch()
        (folder / "stop").touch()


def leave_behind() -> None:
    """Ends the client's service at once, whatever it is doing: the same run can then be opened again.

    Otherwise the next attempt would be given the open run again, with what went wrong in it; and to end it in order
    takes minutes where the server is dead. What it has not sent is in the journal.
    """
    import wandb

    for child in psutil.Process().children():
        if child.name() == "wandb-core":
            child.kill()
    with suppress(wandb.errors.Error, OSError, SystemExit):  # it finds its service killed, and would leave as that did
        wandb.teardown()
    wandb.run = None  # while there is one, `wandb.login` looks for no key


def _unreachable(error: BaseException) -> TrackingError:
    return TrackingError(
        f"W&B does not answer: {error}",
        "A run is recorded in its directory first, and sent when the server can be reached",
        "Nothing is lost; `python jobs/report.py sync` sends it later",
    )
