"""What of a run directory is kept at a URL, under which names, and what becomes valid by what: pure functions.

    metrics.jsonl, events.jsonl, run.json, ...    its files
    checkpoints/step-00000120/..., model/...      its sealed folders: manifest.json is written last and deleted first
    checkpoints/step-00000120~1/...               the same step written anew: the older one stays until it is whole
    recipe.json      written last of a new run and deleted first of an old one: without it there is no run
    summary.json     written after model/, and deleted before anything of a longer training arrives
    writer.json      who may write here; launch.json: which command trains it (lease.py); stop: somebody asks it to stop
    notes/...        what ranks on other machines than the primary's have noted before they failed

Files are written in the order of their names, and removed in the opposite one: a part of the metrics is written before
the newest file, which it was until then.
"""

import re
from collections.abc import Collection, Iterable
from pathlib import Path

RUN, RESULT, MANIFEST = "recipe.json", "summary.json", "manifest.json"
WRITER, LAUNCH, STOP = "writer.json", "launch.json", "stop"
HERE = (WRITER, LAUNCH, STOP, "group")  # of the storage alone, or of one machine (watchdog.py)
NOTES = "notes/"
CHECKPOINTS, MODEL = "checkpoints", "model"
FIRST = f"{CHECKPOINTS}/step-00000000"  # without a step there is nothing to go on with
SEALED = re.compile(r"checkpoints/(step-[0-9]{8,})(?:~([0-9]+))?|model")


def is_plain(name: str) -> bool:
    """Whether `name` is one of the run directory's files, and the same wherever the run is."""
    return "/" not in name and not name.startswith(".") and name not in HERE


def is_table(name: str) -> bool:
    """Whether it is made of other files whenever a run goes on (metrics.csv), and goes there only in the end."""
    return name.endswith(".csv")


def plain_files(folder: Path) -> dict[str, Path]:
    """The files of a run directory that are kept, by name."""
    return {path.name: path for path in sorted(folder.iterdir()) if is_plain(path.name) and path.is_file()}


def sealed_folders(folder: Path) -> list[str]:
    """The sealed folders of a run directory: the newest checkpoint first, the model last."""
    steps = sorted((path.name for path in (folder / CHECKPOINTS).glob("step-*")), key=lambda name: (len(name), name))
    found = [*(f"{CHECKPOINTS}/{name}" for name in reversed(steps)), MODEL]
    return [name for name in found if SEALED.fullmatch(name) and (folder / name / MANIFEST).is_file()]


def whole_folders(objects: Collection[str]) -> dict[str, str]:
    """Where the sealed folders lie that are whole: their place by their name. Of a step the one written last."""
    return {name: places[max(places)] for name, places in _versions(objects).items()}


def free_place(name: str, objects: Collection[str]) -> str:
    """Where the sealed folder `name` can be written beside all of it that are whole, to be found before them."""
    number = max(_versions(objects).get(name, {}), default=-1) + 1
    return f"{name}~{number}" if number else name


def _versions(objects: Collection[str]) -> dict[str, dict[int, str]]:
    """The places of whole sealed folders: by their name, and by the number of the version."""
    found: dict[str, dict[int, str]] = {}
    for name in objects:
        place, _, last = name.rpartition("/")
        match = SEALED.fullmatch(place)
        if match and last == MANIFEST:
            called = f"{CHECKPOINTS}/{match[1]}" if match[1] else MODEL
            found.setdefault(called, {})[int(match[2] or 0)] = place
    return found


def leftovers(objects: Iterable[str], places: Collection[str]) -> list[str]:
    """The places of sealed folders, whole or not, that are none of `places`."""
    found = {name.rpartition("/")[0] for name in objects}
    return sorted(place for place in found if SEALED.fullmatch(place) and place not in places)


def is_ours(objects: Collection[str]) -> bool:
    """Whether these are the objects of a run, or of one that was begun; nothing at all is."""
    return not objects or any(name in objects for name in (RUN, LAUNCH, WRITER))
