"""Tables of a report as markdown, for W&B's pages. What people have typed is escaped: it is text there, too."""

import re
from collections.abc import Iterable, Sequence
from urllib.parse import quote

from distcifar.insight.report_classes import MOST_CELLS, class_rows, confused_pairs
from distcifar.insight.report_facts import DASH, Promise, minute, percent, tiles, timeline
from distcifar.insight.report_registry import Version
from distcifar.insight.report_run import RunRecord

SITE = "https://wandb.invalid"  # stands for the server, and ENTITY for the account, until the report is published
ENTITY = "account-of-the-key"
MOST_CLASSES = 100
MOST_EVENTS = 30


def text(words: str) -> str:
    """`words` as markdown that shows them and nothing else, on one line."""
    plain = " ".join(words.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#|~$])", r"\\\1", plain)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table of cells that are markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def results(runs: Sequence[RunRecord]) -> str:
    """The figures of each run, a line each."""
    labels = [tile.label for tile in tiles(runs[0])[1:]]
    rows = []
    for run in runs:
        first, *others = tiles(run)
        so_far = "" if run.summary else f" ({first.label.lower()})"
        cells = [_run_link(run), text(run.state), text(str(run.recipe["name"])), first.value + so_far]
        rows.append([*cells, *(text(tile.value) for tile in others)])
    return table(["Run", "State", "Recipe", "Test accuracy", *labels], rows)


def promises(runs: Sequence[RunRecord], found: Sequence[Promise]) -> str:
    """What each recipe promises, and what came of it."""
    parts = []
    for run, promise in zip(runs, found, strict=True):
        reported = "" if promise.reported is None else f"reported {percent(promise.reported)}, "
        said = [f"{reported}measured here: {percent(promise.measured)}", promise.verdict, promise.caveat]
        changed = f"\n\nChanged here: {text('; '.join(promise.changed))}." if promise.changed else ""
        parts.append(
            f"**{text(run.name)}**: {' '.join(f'{text(part)}.' for part in said if part)}\n\n"
            f"> {text(promise.description) or DASH}{changed}"
        )
    return "\n\n".join(parts)


def classes(run: RunRecord) -> str:
    """Accuracy of each class, the hardest first; of many only those."""
    rows = class_rows(run)
    if not rows:
        return ""
    shown = []
    for row in rows[:MOST_CLASSES]:
        taken_for = f"{text(row.mistaken_for)} ({row.mistakes})" if row.mistakes else ""
        shown.append([text(row.name), percent(row.accuracy), str(row.images), taken_for])
    left = f"\n\n{len(rows) - MOST_CLASSES} easier classes are not shown." if len(rows) > MOST_CLASSES else ""
    return table(["Class", "Test accuracy", "Images", "Most often taken for"], shown) + left


def confusion(run: RunRecord) -> str:
    """The confusion matrix, or, of many classes, the pairs that are confused most."""
    names, counts = run.class_names, run.summary.get("confusion")
    if counts and len(names) <= MOST_CELLS:
        rows = []
        for place, (name, line) in enumerate(zip(names, counts, strict=True)):
            cells = [f"**{count}**" if place == other else str(count) for other, count in enumerate(line)]
            rows.append([f"**{text(name)}**", *cells])
        return table(["true, taken for", *map(text, names)], rows)
    pairs = confused_pairs(run)
    rows = [[text(pair.true), text(pair.predicted), str(pair.count), percent(pair.share, 1)] for pair in pairs]
    return table(["True class", "Taken for", "Images", "Of the class"], rows) if rows else ""


def versions(found: Sequence[Version]) -> str:
    """Registry versions with links to their runs."""
    rows = [
        [
            text(row.registry), row.version, text(", ".join(row.aliases)) or DASH,
            _link(row.run, row.wandb), percent(row.accuracy), minute(row.time), text(row.who),
        ]
        for row in found
    ]  # fmt: skip
    return table(["Registry", "Version", "Aliases", "Run", "Test accuracy", "Promoted", "By"], rows) if rows else ""


def events(run: RunRecord) -> str:
    """Restarts, failures, rollbacks: the newest ones."""
    shown = timeline(run)[0][-MOST_EVENTS:]
    return (
        table(["Time", "Event", ""], [[event.time, text(event.kind), text(event.text)] for event in shown])
        if shown
        else ""
    )


def _run_link(run: RunRecord) -> str:
    return _link(run.name, run.identity.path if run.identity is not None else "")


def _link(name: str, path: str) -> str:
    """`name`, linked to the W&B run at (ENTITY/)PROJECT/ID; of no path the name alone."""
    *place, run = (quote(part, safe="") for part in path.split("/"))
    if not place:
        return text(name)
    return f"[{text(name)}]({'/'.join([SITE, *(place if len(place) > 1 else [ENTITY, *place]), 'runs', run])})"
