"""Models pulled from W&B's registry: only the files of a model, one by one, each digest checked."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from distcifar.errors import RegistryError, TrackingError
from distcifar.files import write_json
from distcifar.sealed import MODEL_FILES
from distcifar.tracking.registry.gates import FACTS, KEPT_FILES, require_whole
from distcifar.tracking.registry.log import require_name
from distcifar.tracking.registry.registry import Registry, pulled_folder
from distcifar.tracking.wandb.registry_api import api_of, name_of, told
from distcifar.tracking.wandb.run import has_key

if TYPE_CHECKING:
    import wandb

MOST_BYTES = 4 * 2**30  # of a model that is pulled


def pull(
    registry: Registry, wanted: str, target: Path, *, online: bool, entity: str = "", most_bytes: int = MOST_BYTES
) -> str:
    """Copies the model that `wanted` points at to `target`, verified; returns which one it is.

    wanted: an alias or version of `registry`; online, and with a key, also an alias of W&B's registry of that name,
    which is asked where `registry` does not know it: ALIAS, or RECIPE:ALIAS where several recipes have it.
    """
    if registry.knows(wanted) or not (online and has_key()):
        return registry.pull(wanted, target).version
    recipe, _, alias = wanted.rpartition(":")
    for part in filter(None, (recipe, alias)):
        require_name(part, "a recipe or an alias")
    with told("Try again, or pull from the runs folder that promoted it", target):
        artifact = _find(api_of(entity), registry.name, recipe, alias)
        names = _require_model(artifact, most_bytes)
        with pulled_folder(target) as aside:
            for file in names:
                artifact.get_entry(file).download(root=str(aside), skip_cache=True)
            _require_size(artifact, sum(path.stat().st_size for path in aside.iterdir()), most_bytes)
            _write_facts(aside, require_whole(aside), artifact.metadata)
        return name_of(artifact)


def _find(api: "wandb.Api", name: str, recipe: str, alias: str) -> "wandb.Artifact":
    """The one version in the registry that has the alias."""
    if recipe:
        return api.artifact(f"wandb-registry-{name}/{recipe}:{alias}")
    found = list(api.registry(name).collections().versions(filter={"alias": alias}))
    places = [version.qualified_name.rpartition("/")[2].rpartition(":")[0] for version in found]
    if len(found) != 1:
        raise RegistryError(
            f"{alias!r} is the alias of {', '.join(places) or 'no model'} in W&B's registry {name!r}",
            "One model is pulled",
            f"Name the recipe: --pull {places[0]}:{alias} DIR" if found else "See the registry's page for its aliases",
        )
    return found[0]


def _require_model(artifact: "wandb.Artifact", most_bytes: int) -> list[str]:
    """The names to download, of those that we know. What else the artifact has stays there."""
    entries = artifact.manifest.entries
    names = [name for name in KEPT_FILES if name in entries]
    lacks = {*MODEL_FILES, "manifest.json"} - {*names}
    foreign = [name for name in names if entries[name].ref is not None or entries[name].path != name]
    if lacks or foreign:
        found = f"lacks {', '.join(sorted(lacks))}" if lacks else f"only refers to {', '.join(foreign)}"
        raise TrackingError(f"{name_of(artifact)} {found}", "A model is pulled with all its files", "Promote it again")
    _require_size(artifact, sum(entries[name].size or 0 for name in names), most_bytes)
    return names


def _require_size(artifact: "wandb.Artifact", size: int, most_bytes: int) -> None:
    if size > most_bytes:
        raise TrackingError(
            f"{name_of(artifact)} has {size:,} bytes", f"A model has at most {most_bytes:,}", "Pull another one"
        )


def _write_facts(folder: Path, digest: str, metadata: dict[str, Any]) -> None:
    """registry.json, if the artifact tells of these weights: with it the model can be promoted here too."""
    if metadata.get("model_sha256") == digest:
        names = ("run", "wandb", "test_accuracy", "model_sha256", "selected_on", "data_digest")
        write_json(folder / FACTS, {name: metadata[name] for name in names if name in metadata})
