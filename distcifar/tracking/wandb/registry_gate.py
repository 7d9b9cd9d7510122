"""Which models have an alias in W&B's registry now, and whether it may be taken from them."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import distcifar.tracking.wandb.registry_api as there
from distcifar.tracking.registry.gates import first_difference, is_share, percent
from distcifar.tracking.registry.log import Act
from distcifar.tracking.registry.registry import Registry

if TYPE_CHECKING:
    import wandb

MOST_CARD_BYTES = 2**20  # of a model.json that is read for its class names


def holders(registry: Registry, act: Act, alias: str, entity: str) -> "list[wandb.Artifact]":
    """The versions that have `alias` in W&B's registry, each of another collection; that of the act's recipe first."""
    api, own = there.api_of(entity), f"{there.collection_of(registry, act)}:{alias}"
    found = [api.artifact(own)] if api.artifact_exists(own) else []
    places = {_collection(artifact) for artifact in found}
    others = api.registry(registry.name).collections().versions(filter={"alias": alias})
    return found + [api.artifact(there.name_of(version)) for version in others if _collection(version) not in places]


def _collection(artifact: "wandb.Artifact") -> str:
    return artifact.qualified_name.rpartition(":")[0]


def objection(act: Act, holder: "wandb.Artifact") -> str:
    """Why the alias may not be taken from `holder` and given to the act's model; empty if it may."""
    accuracy: Any = holder.metadata.get("test_accuracy")
    classes = _class_names(holder)
    if not is_share(accuracy) or classes is None:
        lacks = "class names" if is_share(accuracy) else "test accuracy"
        return f"{describe(holder)} has it in W&B and tells no {lacks}, so it cannot be compared. {remedy(act)}"
    if classes != act.class_names:
        return (
            f"{describe(holder)} has it in W&B and knows other classes than {act.version}: "
            f"{first_difference(act.class_names, classes)}. What an alias's answers mean does not change. {remedy(act)}"
        )
    if act.test_accuracy < accuracy:
        return (
            f"{describe(holder)} has it in W&B, and {act.version} has a test accuracy of {percent(act.test_accuracy)}. "
            f"An alias goes to a model that is at least as good. {remedy(act)}"
        )
    return ""


def describe(artifact: "wandb.Artifact") -> str:
    """Which model it is: its name, its run and its test accuracy, as far as it tells."""
    run: Any = artifact.metadata.get("run")
    accuracy: Any = artifact.metadata.get("test_accuracy")
    facts = [f"run {run!r}"] if isinstance(run, str) else []
    facts += [f"test accuracy {percent(accuracy)}"] if is_share(accuracy) else []
    return there.name_of(artifact) + (f" ({', '.join(facts)})" if facts else "")


def remedy(act: Act) -> str:
    """What to type to have it all the same."""
    return f"To give it to {act.version} all the same: promote.py {act.version} --to {act.alias} --force"


def _class_names(artifact: "wandb.Artifact") -> tuple[str, ...] | None:
    """The class names that an artifact tells, in its metadata or its model.json; None if it tells none."""
    names: Any = artifact.metadata.get("class_names")
    entry = artifact.manifest.entries.get("model.json")
    if (
        names is None
        and entry is not None
        and entry.ref is None
        and entry.path == "model.json"
        and (entry.size or 0) <= MOST_CARD_BYTES
    ):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(artifact.get_entry("model.json").download(root=folder, skip_cache=True))
            names = _class_names_in(path.read_bytes()[: MOST_CARD_BYTES + 1])
    fits = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if fits else None


def _class_names_in(card: bytes) -> Any:
    try:
        found = json.loads(card)
    except ValueError:
        return None
    return found.get("class_names") if isinstance(found, dict) else None
