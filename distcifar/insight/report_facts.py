"""What a report says about runs, as plain texts and rows: the HTML page and the W&B report both show these."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from distcifar.config import Recipe, from_dict
from distcifar.errors import ConfigError
from distcifar.insight.report_run import RunRecord
from distcifar.tracking.console import clock

DASH = "–"
TONES = {  # of a run's state and of its events; what is not listed is neutral
    "finished": "good", "early stop": "good", "ended": "good", "running": "busy", "stopped": "warn",
    "preempted": "warn", "failed": "bad", "killed": "bad", "failure": "bad", "hang": "bad", "rollback": "warn",
    "damaged checkpoint": "warn", "memory": "warn", "continue": "busy", "start": "busy", "extended": "busy",
}  # fmt: skip
MOST_EVENTS = 200
MOST_EPOCHS = 500  # lines of the table of epochs; of more each second, third, ...
PROMISE = re.compile(r"\d\s*%")  # of a description: a figure that was promised in words
OPTIMISTIC = "The epoch was chosen on the test split: the measured accuracy is optimistic"
TEXTS = ("name", "description", "reported_accuracy")  # of a recipe: they change no number
ALWAYS_DIFFER = ("result.", "origin.started")
UNTOLD = ("run.name", "run.runs", "run.debug", "run.verbose", "run.overwrite", "run.resume")


@dataclass(frozen=True)
class Tile:
    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Promise:
    """A recipe's words, what its origin reports, and what was measured."""

    description: str
    reported: float | None
    measured: float | None
    verdict: str
    tone: str
    caveat: str  # empty: none
    changed: tuple[str, ...]  # where the run's recipe is not the published one


@dataclass(frozen=True)
class Event:
    time: str
    kind: str
    text: str
    tone: str


@dataclass(frozen=True)
class Field:
    """One line of the comparison: a value for each run."""

    name: str
    values: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Whether it is worth a line beside the table of results."""
        return len(set(self.values)) > 1 and not self.name.startswith(ALWAYS_DIFFER)


def percent(share: Any, digits: int = 2) -> str:
    """A share as percent; a dash where there is none."""
    return f"{share:.{digits}%}" if isinstance(share, int | float) and math.isfinite(share) else DASH


def tone(kind: str) -> str:
    """good, warn, bad, busy or neutral: how a state or an event is coloured."""
    return TONES.get(kind, "neutral")


def minute(time: Any) -> str:
    """An ISO time as 2026-11-22 09:04 UTC."""
    try:
        return f"{datetime.fromisoformat(str(time)).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return str(time)


def accuracy_of(run: RunRecord) -> tuple[str, float | None]:
    """What the run is judged by: test accuracy, or, until there is one, the accuracy of the best epoch so far."""
    if run.summary:
        return "Test accuracy", run.summary.get("test_accuracy")
    for split in ("validation", "test", "train"):
        points = dict(zip(*run.epoch_points(f"{split}/accuracy"), strict=True))
        if points:
            return f"{split.capitalize()} accuracy so far", points.get(run.best_epoch, list(points.values())[-1])
    return "Test accuracy", None


def tiles(run: RunRecord) -> list[Tile]:
    """The figures of a run that are read first."""
    summary, last = run.summary, run.last
    label, accuracy = accuracy_of(run)
    if summary:
        note = "chosen on the test split: optimistic" if summary.get("selected_on") == "test" else ""
        note = note or (f"loss {summary['test_loss']:.4f}" if _is_number(summary.get("test_loss")) else "")
    else:
        note = "no result yet"
    seconds = summary.get("seconds", last.get("seconds"))
    speed = summary.get("images_per_s", run.speed)
    parameters, steps = summary.get("parameters"), summary.get("steps", last.get("step"))
    return [
        Tile(label, percent(accuracy), note),
        Tile("Best epoch", f"{run.best_epoch or DASH} of {run.total_epochs}", _chosen_by(run)),
        Tile("Time", clock(seconds) if _is_number(seconds) else DASH, f"{steps:,} steps" if steps else ""),
        Tile("Images per second", f"{speed:,.0f}" if _is_number(speed) else DASH, str(summary.get("loader", ""))),
        Tile("Parameters", _short_count(parameters), f"{parameters:,}" if parameters and parameters >= 10_000 else ""),
        Tile("Workers", str(workers(run)), _plural(_hosts(run), "host")),
        Tile("Device", device(run), str(summary.get("precision", run.recipe.get("precision", "")))),
    ]


def workers(run: RunRecord) -> str:
    """The number of workers: measured, as told when it started last, or as it was asked for."""
    told = [found[1] for event in run.events if (found := re.search(r"with (\d+) worker", str(event.get("text"))))]
    asked = (run.facts.get("spec") or {}).get("workers")
    return str(run.summary.get("workers") or (told[-1] if told else asked) or DASH)


def device(run: RunRecord) -> str:
    """What was computed on."""
    found = run.summary.get("device")
    if found:
        return "CPU" if found == "cpu" else str(found)
    gpus = (run.facts.get("hardware") or {}).get("gpus")
    return gpus[0] if gpus else "CPU"


def where(run: RunRecord) -> str:
    """Host and processor in one line."""
    hardware = run.facts.get("hardware") or {}
    cores = f"{hardware['cores']} cores" if hardware.get("cores") else ""
    parts = [hardware.get("host", ""), hardware.get("processor", ""), cores, ", ".join(hardware.get("gpus", ()))]
    return " · ".join(part for part in parts if part) or DASH


def data_of(run: RunRecord) -> str:
    """The data set and the start of its digest."""
    digest = str(run.facts.get("data_digest", ""))[:10]
    dataset = str(run.recipe.get("data", {}).get("dataset", DASH))
    return f"{dataset} ({digest})" if digest else dataset


def promise(run: RunRecord, known: Mapping[str, Recipe]) -> Promise:
    """What the recipe promises against what was measured; `known`: recipes as they are published."""
    reported, measured = run.recipe.get("reported_accuracy"), run.summary.get("test_accuracy")
    words = str(run.recipe.get("description") or "")
    in_words = PROMISE.search(words) is not None
    verdict, tone_ = "" if in_words else "The recipe's origin reports no accuracy", "neutral"
    if (reported is not None or in_words) and not _is_number(measured):
        verdict = "Not measured yet"
    elif reported is not None and measured is not None:
        count = sum(map(sum, run.summary.get("confusion") or ()))
        noise = 1.96 * math.sqrt(max(reported * (1 - reported), 0) / count) if count else 0.0
        gap = f"{abs(measured - reported) * 100:.2f} points {'above' if measured >= reported else 'below'}"
        within = f"; the noise of {count:,} test images is ±{noise * 100:.2f} points" if count else ""
        kept = measured >= reported - noise
        verdict = f"{'Kept' if kept else 'Missed'}: {gap}{within}"
        tone_ = "good" if kept else "bad"
    caveat = OPTIMISTIC if run.summary.get("selected_on") == "test" else ""
    return Promise(words, reported, measured, verdict, tone_, caveat, tuple(_changes(run, known)))


def timeline(run: RunRecord) -> tuple[list[Event], int]:
    """The newest events, oldest first, and how many earlier ones are left out."""
    shown = run.events[-MOST_EVENTS:]
    found = [
        Event(
            str(event.get("time", ""))[:19].replace("T", " "),
            str(event.get("kind", "")),
            str(event.get("text", "")),
            tone(str(event.get("kind", ""))),
        )
        for event in shown
    ]
    return found, len(run.events) - len(shown)


def epoch_table(run: RunRecord) -> tuple[list[str], list[list[str]]]:
    """What the curves show, to be read: the head and a line for each epoch; columns without a value are left out."""
    wanted = [f"{split}/{metric}" for split in ("train", "validation", "test") for metric in ("loss", "accuracy")]
    columns = [name for name in (*wanted, "train/lr") if any(_is_number(row.get(name)) for row in run.epochs)]
    each = -(-len(run.epochs) // MOST_EPOCHS) or 1
    rows = list(run.epochs[::-each])[::-1] if columns else []  # with the last one
    head = ["epoch", *("learning rate" if name == "train/lr" else name.replace("/", " ") for name in columns)]
    return head, [[f"{row['epoch']:g}", *(_figure(name, row.get(name)) for name in columns)] for row in rows]


def configuration(run: RunRecord) -> dict[str, dict[str, str]]:
    """Everything that the run depends on, by part."""
    recipe = {key: value for key, value in run.recipe.items() if key not in TEXTS}
    facts = run.facts
    rest = {key: facts[key] for key in ("data_digest", "git_commit", "python", "started") if key in facts}
    rest |= {key: str(rest[key])[:12] for key in ("data_digest",) if key in rest}
    commit = rest.get("git_commit")
    if commit:
        rest["git_commit"] = str(commit)[:12] + "+" * str(commit).endswith("+")
    parts = {
        "recipe": recipe,
        "run": facts.get("spec") or {},
        "versions": facts.get("packages", {}),
        "hardware": facts.get("hardware") or {},
        "origin": rest | ({"parent": facts["parent"]} if "parent" in facts else {}),
    }
    return {name: dict(_flat(values)) for name, values in parts.items() if values}


def compare(runs: Sequence[RunRecord]) -> list[Field]:
    """Results and configuration of several runs, a line for each field."""
    results = [
        {"result.state": run.state}
        | {f"result.{tile.label.lower()}": tile.value for tile in tiles(run)[1:]}
        | {"result.test accuracy": percent(run.summary.get("test_accuracy"))}
        for run in runs
    ]
    tables = [
        result
        | {f"{part}.{key}": value for part, values in configuration(run).items() for key, value in values.items()}
        for result, run in zip(results, runs, strict=True)
    ]
    names = dict.fromkeys(name for table in tables for name in table if name not in UNTOLD)
    return [Field(name, tuple(table.get(name, DASH) for table in tables)) for name in names]


def _changes(run: RunRecord, known: Mapping[str, Recipe]) -> Iterator[str]:
    """Where the run's recipe has other numbers than the published one of that name."""
    published = known.get(str(run.recipe.get("name")))
    if published is None:
        return
    try:
        numbers = from_dict(Recipe, dict(run.recipe)).numbers()
    except ConfigError as error:  # of another version: its fields are not ours
        yield f"cannot be compared ({error.found})"
        return
    ours, theirs = dict(_flat(numbers)), dict(_flat(published.numbers()))
    for name in dict.fromkeys([*theirs, *ours]):
        if ours.get(name) != theirs.get(name):
            yield f"{name} {ours.get(name, DASH)} instead of {theirs.get(name, DASH)}"


def _flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and readable values."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{path}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{path}{key}", ", ".join(map(str, value)) or DASH
        else:
            yield f"{path}{key}", DASH if value in (None, "") else f"{value:g}" if _is_float(value) else str(value)


def _chosen_by(run: RunRecord) -> str:
    summary = run.summary
    if summary.get("selected_on") == "last":
        return "the last one is taken"
    best = summary.get("best_metric")
    chosen = " ".join(str(summary[key]) for key in ("selected_on", "select_metric") if summary.get(key))
    return f"{chosen} {best:.4f}".strip() if _is_number(best) else ""


def _figure(column: str, value: Any) -> str:
    if not _is_number(value):
        return DASH
    return percent(value) if column.endswith("accuracy") else f"{value:.4g}"


def _hosts(run: RunRecord) -> int:
    return int((run.facts.get("hardware") or {}).get("hosts", 1))


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}s" if number > 1 else ""


def _short_count(number: Any) -> str:
    if not _is_number(number):
        return DASH
    return f"{number / 1e6:.2f} M" if number >= 1e6 else f"{number / 1e3:.1f} k" if number >= 1e4 else f"{number:,}"


def _is_float(value: Any) -> bool:
    return isinstance(value, float)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
