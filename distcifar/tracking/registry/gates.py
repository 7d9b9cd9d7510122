"""Which model is meant, what is known of it, and whether it may have an alias."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distcifar.config import did_you_mean
from distcifar.errors import CheckpointError, RegistryError
from distcifar.sealed import MODEL_FILES, verify
from distcifar.tracking.identity import read_identity
from distcifar.tracking.registry.log import Act

KEPT_FILES = (*MODEL_FILES, "manifest.json", "README.md")  # what a copy has of them; not each model has a README.md
FACTS = "registry.json"  # beside them in a copy: what its run told of it


@dataclass(frozen=True)
class Candidate:
    """A whole model, and what was measured of it."""

    folder: Path
    digest: str  # sha256 of model.safetensors
    recipe: str
    run: str
    wandb: str
    test_accuracy: float
    selected_on: str
    data_digest: str
    class_names: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """The content of a copy's registry.json, and of an artifact's metadata."""
        return {
            "run": self.run,
            "wandb": self.wandb,
            "test_accuracy": self.test_accuracy,
            "model_sha256": self.digest,
            "selected_on": self.selected_on,
            "data_digest": self.data_digest,
            "class_names": list(self.class_names),
        }


def find_model(thing: str, runs: Path) -> Path:
    """The run or model directory that `thing` is: a run's name, or a path. RegistryError where it is none."""
    for folder in (runs / thing, Path(thing)):
        if _is_run(folder) or (folder / "model.safetensors").exists():
            return folder.parent if folder.name == "model" and _is_run(folder.parent) else folder
    names = sorted(folder.name for folder in runs.glob("*/") if _is_run(folder))
    raise RegistryError(
        f"{thing!r} is neither a run in {runs} nor the directory of a run or of a model",
        "A model is promoted by its run's name, by a path, or as a version such as v3",
        did_you_mean(thing, names) if names else "Name the folder of your runs with --runs",
    )


def _is_run(folder: Path) -> bool:
    return (folder / "run.json").exists() or (folder / "summary.json").exists()


def inspect(folder: Path) -> Candidate:
    """What the model of a run directory, or in a model directory, is. RegistryError where a gate keeps it out."""
    if not _is_run(folder):
        return _candidate(folder, _facts_of_model(folder), folder.name)
    if not (folder / "summary.json").exists():
        raise RegistryError(
            f"The run {folder.name!r} is not finished: it has no summary.json",
            "A model is promoted with the test accuracy that its run has measured",
            f"Let it finish: python jobs/train.py RECIPE --name {folder.name}",
        )
    try:
        identity = read_identity(folder)
    except (ValueError, TypeError) as error:
        raise _unreadable(folder / "tracking.json", error) from error
    facts = read_object(folder / "summary.json") | {"run": folder.name, "wandb": identity.path if identity else ""}
    return _candidate(folder / "model", facts, folder.name)


def _facts_of_model(folder: Path) -> dict[str, Any]:
    """Of a model without a run: what the registry wrote beside it, or else what model.json may tell."""
    return read_object(folder / (FACTS if (folder / FACTS).exists() else "model.json"))


def _candidate(folder: Path, facts: dict[str, Any], name: str) -> Candidate:
    digest = require_whole(folder)
    accuracy: Any = facts.get("test_accuracy")
    if not is_share(accuracy):
        owner = None if _is_run(folder.parent) else _owner(folder)
        raise RegistryError(
            f"Nothing tells a measured test accuracy of the model in {folder} ({accuracy!r})",
            "A model is promoted with the test accuracy that its run has measured",
            f"Promote its run: python jobs/promote.py {owner}" if owner else "Promote a run that is finished",
        )
    if facts.get("model_sha256") != digest:
        told = "does not tell on which weights" if "model_sha256" not in facts else "was measured on other weights"
        raise RegistryError(
            f"The test accuracy of {name!r} ({percent(accuracy)}) {told}; its model has {digest[:16]}",
            "A test accuracy counts for the very weights that it was measured on",
            "Train the run again, under another --name: it measures what it saves",
        )
    card, recipe = read_object(folder / "model.json"), read_object(folder / "recipe.json")
    return Candidate(
        folder=folder,
        digest=digest,
        recipe=str(recipe.get("name", "")),
        run=str(facts.get("run", "")),
        wandb=_path_in_wandb(facts.get("wandb")),
        test_accuracy=float(accuracy),
        selected_on=str(facts.get("selected_on", "")),
        data_digest=str(facts.get("data_digest", card.get("data_digest", ""))),
        class_names=tuple(map(str, card.get("class_names", ()))),
    )


def is_share(value: Any) -> bool:
    """Whether `value` can be an accuracy."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _path_in_wandb(value: Any) -> str:
    """(ENTITY/)PROJECT/ID, if it is one: what a pulled model tells of its run may be anything."""
    part = r"(?!\.+(/|$))[A-Za-z0-9_.-]+"
    return value if isinstance(value, str) and re.fullmatch(rf"({part}/){{1,2}}{part}", value) else ""


def _owner(folder: Path) -> Path | None:
    """The run directory that `folder`, a checkpoint's, lies in."""
    return next((parent for parent in folder.absolute().parents if _is_run(parent)), None)


def require_whole(folder: Path, digest: str = "") -> str:
    """The digest of the model in `folder`, which must be whole and, where `digest` is given, that one."""
    try:
        verify(folder, MODEL_FILES)
        found = str(read_object(folder / "manifest.json")["files"]["model.safetensors"]["sha256"])
        if digest not in ("", found):
            raise CheckpointError(f"{folder} has another model than it had", "", "")
        return found
    except CheckpointError as error:
        raise RegistryError(
            error.found,
            "A model is promoted, and handed out, only if every digest matches",
            "Promote another one; a damaged copy in the registry is mended by promoting its run again",
        ) from error


def passes(candidate: Candidate, holder: Act | None, alias: str, *, force: bool) -> bool:
    """Whether `candidate` may have `alias` by its own merit; False: by `force`. RegistryError: not at all."""
    name = candidate.run or candidate.folder.name
    if holder is not None and candidate.class_names != holder.class_names:
        raise RegistryError(
            f"{name!r} knows other classes than {holder.version}, which is {alias} now: "
            f"{first_difference(candidate.class_names, holder.class_names)}",
            "What an alias points at may change, what its answers mean may not",
            "Take another alias, or another --registry",
        )
    if candidate.selected_on == "test":
        found = f"{name!r} was chosen on the test split, so its {percent(candidate.test_accuracy)} is optimistic"
        rule, remedy = (
            "A test accuracy is measured once, by a model that was chosen without it",
            "Train it with another --select-on",
        )
    elif holder is not None and candidate.test_accuracy < holder.test_accuracy:
        found = (
            f"{name!r} has a test accuracy of {percent(candidate.test_accuracy)}, less than the "
            f"{percent(holder.test_accuracy)} of {holder.version}, which is {alias} now"
        )
        rule, remedy = "An alias goes to a model that is at least as good", "Promote a better one"
    else:
        return True
    if not force:
        raise RegistryError(found, rule, f"{remedy}; --force promotes it all the same")
    return False


def notes(candidate: Candidate, holder: Act | None, alias: str) -> list[str]:
    """What is no reason to refuse `candidate`, and should be known."""
    if holder is None or candidate.data_digest == holder.data_digest:
        return []
    new, old = (digest[:9] or "unknown" for digest in (candidate.data_digest, holder.data_digest))
    return [f"It was trained and measured on other data ({new}) than {holder.version} ({old}), which was {alias}."]


def first_difference(new: tuple[str, ...], old: tuple[str, ...]) -> str:
    """Where two lists of class names part."""
    if len(new) != len(old):
        return f"{len(new)} instead of {len(old)}"
    number, names = next((i, pair) for i, pair in enumerate(zip(new, old, strict=True)) if pair[0] != pair[1])
    return f"class {number} is {names[0]!r} instead of {names[1]!r}"


def percent(share: float) -> str:
    """0.912 as 91.2 %, with as many digits as tell two test accuracies apart."""
    return f"{100 * share:.7g} %"


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(found, dict):
        raise _unreadable(path, "it is no object")
    return found


def _unreadable(path: Path, error: object) -> RegistryError:
    return RegistryError(
        f"{path} cannot be read ({error})", "A model is promoted with what is known of it", "Promote another run"
    )
