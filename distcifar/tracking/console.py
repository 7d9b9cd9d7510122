"""A run on the screen: a bar with the time that remains, a line an epoch, a table at the end."""

import math
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from distcifar.config import Recipe, RunSpec

QUIET_EVENTS = ("start", "finished", "early stop")  # what the screen tells anyway
PLAIN_SECONDS = 30.0  # without a terminal: a line about a long epoch now and then
LOADER_BOUND = 0.1  # share of an epoch's time, spent waiting for data, from which on the user is told


class Display:
    """Shows metrics rows as they come. On a terminal with bars, elsewhere as plain lines."""

    def __init__(self, recipe: Recipe, console: Console | None = None, spec: RunSpec | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._recipe, self._spec = recipe, spec or RunSpec()
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f} % {task.fields[text]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("", total=1.0, epoch=1, epochs=recipe.total_epochs, text="")
        self._epoch_start, self._last_line = time.monotonic(), time.monotonic()
        self._first: tuple[float, float] | None = None  # moment and passes at the first row of this start
        self._opening: tuple[float, float] | None = None  # speed and wait of this start's first report
        self._epoch_wait, self._run_wait, self._advised = MeanWait(), MeanWait(), False

    def __enter__(self) -> "Display":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """A sentence for the user."""
        self.console.print(text, markup=False)

    def show(self, row: dict[str, Any]) -> None:
        """One metrics row, of a step or of an epoch, or an event of the run."""
        if "text" in row:
            if row["kind"] not in QUIET_EVENTS:
                self.say(f"{row['kind']}: {row['text']}")
        elif row["kind"] == "step":
            self._step(row)
        else:
            self._bar.update(self._task, completed=0, text="")
            wait = self._epoch_wait.share
            self.say(epoch_line(row, self._recipe.total_epochs, time.monotonic() - self._epoch_start, wait))
            if not self._advised and (advice := loader_advice(wait or 0.0, row["epoch"], self._recipe, self._spec)):
                self._advised = True
                self.say(advice)
            if self._recipe.hard_share < 1 and row["epoch"] == self._recipe.whole_epochs < self._recipe.total_epochs:
                self.say(f"From here on the hardest {self._recipe.hard_share:.0%} of the images: train is theirs.")
            self._epoch_wait = MeanWait()
            self._epoch_start = self._last_line = time.monotonic()

    @property
    def data_wait(self) -> float | None:
        """Share of the training's time in which it waited for data; None where too little is known."""
        return self._run_wait.share

    def _step(self, row: dict[str, Any]) -> None:
        now, done = time.monotonic(), row["epoch"]
        passes = self._recipe.passes(done)
        report = (row["perf/images_per_s"], row["perf/data_wait"])
        self._opening = self._opening or report
        if report != self._opening:  # the first batches also wait for imports and compilation
            self._epoch_wait.add(*report)
            self._run_wait.add(*report)
        if self._first is None:
            self._first = (now, passes)
        since, at = self._first
        if now - since < 1.0:  # rows of one report
            self._first = (since, passes)
        speed = (passes - at) / (now - since) if now - since >= 1.0 else 0.0
        left = clock((self._recipe.passes(self._recipe.total_epochs) - passes) / speed) if speed > 0 else "--:--"
        text = (
            f"loss {row['train/loss']:.3f}  lr {row['train/lr']:.3g}  "
            f"{row['perf/images_per_s']:,.0f} images/s  left {left}"
        )
        epoch = max(1, math.ceil(done))
        self._bar.update(self._task, completed=done - (epoch - 1), epoch=epoch, text=text)
        if not self.console.is_terminal and now - self._last_line > PLAIN_SECONDS:
            self._last_line = now
            self.say(f"epoch {done:.2f}/{self._recipe.total_epochs}  {text}")


class MeanWait:
    """The mean of steps' data waits, each weighted with the time of its step."""

    def __init__(self) -> None:
        self._waited = self._total = 0.0

    def add(self, images_per_s: float, wait: float) -> None:
        """A step at that speed, of whose time the share `wait` went by without data."""
        self._waited += wait / max(images_per_s, 1e-9)
        self._total += 1 / max(images_per_s, 1e-9)

    @property
    def share(self) -> float | None:
        """0-1; None before the first step."""
        return self._waited / self._total if self._total else None


def loader_advice(wait: float, epoch: int, recipe: Recipe, spec: RunSpec) -> str:
    """What is said where `epoch` has waited for data for that share of its time; nothing up to LOADER_BOUND."""
    if wait <= LOADER_BOUND:
        return ""
    augment = recipe.augment
    ways = {
        "--data.storage raw (nothing is decoded)": recipe.data.storage == "jpeg",
        "--loader resident (read once, if memory allows)": spec.loader != "resident",
        f"--loader-threads above {spec.loader_threads}": spec.loader_threads > 0,
        f"--cpus-per-worker above {spec.cpus_per_worker}": spec.cpus_per_worker > 0,
        "less of what computes with pixels (--augment: colours, hue, rotation, resizing)": bool(
            augment.brightness or augment.contrast or augment.saturation or augment.hue
            or augment.rotation or augment.random_resized_crop or augment.resize
        ),
        "a machine with more or faster cores": True,
    }  # fmt: skip
    fitting = [way for way, fits in ways.items() if fits]
    return f"Bound by its data: {wait:.0%} of epoch {epoch} went by waiting. What helps: {'; '.join(fitting)}."


def epoch_line(row: dict[str, Any], epochs: int, seconds: float, wait: float | None = None) -> str:
    """An epoch in one line; `seconds` is what the user waited for it, `wait` the share that it waited for data."""
    parts = [
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}",
        f"train loss {row['train/loss']:.4f} acc {row['train/accuracy']:7.2%}",
    ]
    for split in ("validation", "test"):
        if f"{split}/loss" in row:
            parts.append(f"{split} loss {row[f'{split}/loss']:.4f} acc {row[f'{split}/accuracy']:7.2%}")
    parts += [f"lr {row['train/lr']:.3g}", f"{seconds:.1f} s"]
    parts += [] if wait is None else [f"data wait {wait:.0%}"]
    return "  ".join(parts) + ("  * best" if row["best_epoch"] == row["epoch"] else "")


def clock(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss from an hour on."""
    minutes, second = divmod(round(max(0.0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def told_error(summary: dict[str, Any]) -> str:
    """What the training was estimated to take and how much more or less it took; "" where nothing was estimated."""
    estimated = summary.get("estimated_seconds")
    if not estimated:
        return ""
    return f"{clock(estimated)}, took {clock(summary['seconds'])} ({summary['seconds'] / estimated - 1:+.0%})"


def result_table(summary: dict[str, Any], data_wait: float | None = None, *, most_classes: int = 20) -> Table:
    """The figures of a finished run and its accuracy in each class (the worst ones, where there are many).

    data_wait: the share of its time in which it waited for data, where that is known.
    """
    best = summary["best_metric"]
    chosen = f"epoch {summary['best_epoch']} of {summary['epochs']}"
    if best is not None:
        chosen += f", by {summary['selected_on']} {summary['select_metric']} {best:.4f}"
    table = Table(title=f"{summary['recipe']}: test accuracy {summary['test_accuracy']:.2%}", title_justify="left")
    table.show_header = False
    table.add_column()
    table.add_column(justify="right")
    figures = {
        "test accuracy": f"{summary['test_accuracy']:.2%}",
        "test loss": f"{summary['test_loss']:.4f}",
        "best model": chosen,
        "training": f"{clock(summary['seconds'])} ({summary['steps']:,} steps)",
        "estimated": told_error(summary),
        "speed": f"{summary['images_per_s']:,.0f} images/s",
        "waiting for data": "" if data_wait is None else f"{data_wait:.0%} of the time",
        "computed in": f"{summary['precision']} on {summary['workers']} x {summary['device']}",
        "parameters": f"{summary['parameters']:,}",
    }
    for name, value in figures.items():
        if value:
            table.add_row(name, value)
    table.add_section()
    classes = summary["per_class_accuracy"].items()
    if len(summary["per_class_accuracy"]) > most_classes:
        classes = sorted((item for item in classes if item[1] is not None), key=lambda item: item[1])[:most_classes]
        table.add_row(f"the {most_classes} worst classes", "")
    for name, accuracy in classes:
        table.add_row(Text(name), "no images" if accuracy is None else f"{accuracy:.2%}")
    if summary["selected_on"] == "test":
        table.caption = "Chosen on the test split: this accuracy is optimistic."
    return table
