"""A file registry's acts, replayed to the W&B registry of the same name; and models pulled from there.

W&B keeps aliases by collection, and a collection is a recipe: a version here is a version of the collection
`wandb-registry-NAME/RECIPE` there, linked from the artifact of its run. Where an alias moves to another recipe, it is
taken from the one before. Everything here can be done twice, and is after an interruption.
"""

import base64
import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from distcifar.errors import RegistryError, TrackingError
from distcifar.files import write_json
from distcifar.sealed import MODEL_FILES
from distcifar.tracking.registry.cursor import Cursor
from distcifar.tracking.registry.gates import FACTS, KEPT_FILES, read_object, require_whole
from distcifar.tracking.registry.log import Act, State, require_name
from distcifar.tracking.registry.registry import Registry, pulled_folder
from distcifar.tracking.wandb.run import client_settings, has_key

if TYPE_CHECKING:
    import wandb

FINISH_SECONDS = 30.0  # the run has no rows to send
API_SECONDS = 30
UPLOAD_SECONDS = 600
MOST_BYTES = 4 * 2**30  # of a model that is pulled
LATER = "What was done here stands; python jobs/promote.py --sync sends it when W&B takes it"


def sync(
    registry: Registry, *, project: str, entity: str = "", asked: str = "", announce: Callable[[str], None]
) -> None:
    """Does in W&B what the log says and W&B has not been told, then reads back where each alias is.

    Models of runs that are not in W&B go to `project`. Raises TrackingError for what is missing there; with `asked`,
    an alias, only of that one: of the others it is said.
    """
    if not registry.state().acts:
        announce(f"Nothing has been promoted in the registry {registry.name!r}: there is nothing to send.")
        return
    if not has_key():  # on a terminal the client would ask for one, and wait
        raise TrackingError("There is no W&B key here", "W&B's registry needs one", f"Set WANDB_API_KEY. {LATER}")
    problems: dict[str, str] = {}
    with FileLock(registry.folder / ".sync.lock"), _told(LATER):
        state = registry.state()
        refused = _replay(registry, state, Cursor(registry.folder, _server()), (entity, project))
        for alias, version in state.aliases.items():
            problem = refused.get(alias) or _read_back(registry, state.newest(version), alias, entity, announce)
            if problem and asked in ("", alias):
                problems[alias] = problem
            elif problem:
                announce(f"note: W&B has not all that was done here with {alias}: {problem}")
    if problems:
        words = "; ".join(f"{alias}: {problem}" for alias, problem in problems.items())
        raise TrackingError(
            f"W&B's registry {registry.name!r} has not all that was done here: {words}",
            "It must exist and take models, and its admins may protect aliases",
            f"Ask them, or see what they have. {LATER}",
        )


def _replay(registry: Registry, state: State, cursor: Cursor, default: tuple[str, str]) -> dict[str, str]:
    """Does the pending acts in order, and tells what W&B says of the aliases that it refuses to move."""
    import wandb

    refused: dict[str, str] = {}
    for (entity, project), acts in groupby(cursor.pending(state), lambda act: _place(act, *default)):
        with _run(registry, state, entity, project) as run:
            for act in acts:
                if act.alias in refused:
                    continue
                artifact = _artifact(run, registry, act)
                try:
                    run.link_artifact(artifact, _collection(registry, act), aliases=[act.alias])
                except wandb.errors.AuthenticationError:
                    raise  # also of a server that has ceased to answer
                except (wandb.errors.CommError, ValueError) as error:
                    refused[act.alias] = _one_line(error)
                    continue
                _take_from_other_recipe(registry, state, act, run.entity)
                cursor.advance(act.alias)
    return refused


def _place(act: Act, entity: str, project: str) -> tuple[str, str]:
    """Entity and project of the act's run in W&B; those given where it is not there, or not of an entity."""
    if not act.wandb:
        return entity, project
    *owner, project, _ = act.wandb.split("/")
    return (owner[0] if owner else entity), project


@contextmanager
def _run(registry: Registry, state: State, entity: str, project: str) -> "Iterator[wandb.Run]":
    """The W&B run of this registry's promotions: always the same one, whoever is interrupted."""
    import wandb

    begin = hashlib.sha256(f"{registry.name} {state.acts[0]}".encode()).hexdigest()[:8]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        run = wandb.init(
            entity=entity or None,
            project=project,
            id=f"registry-{registry.name}-{begin}",
            name=f"registry {registry.name}",
            job_type="promote",
            dir=folder,
            mode="online",
            resume="allow",
            settings=client_settings(finish_seconds=FINISH_SECONDS, x_disable_stats=True),
        )
        try:
            yield run
        except BaseException:
            run.finish(exit_code=1)
            raise
        run.finish()


def _artifact(run: "wandb.Run", registry: Registry, act: Act) -> "wandb.Artifact":
    """The artifact of the act's model: the one that is there with the same content, or else a new one."""
    import wandb

    folder = registry.copy(act.digest)
    require_whole(folder, act.digest)
    name = f"{act.wandb.rpartition('/')[2] or f'{registry.name}-{act.digest[:16]}'}-model"
    draft = wandb.Artifact(name, type="model", metadata=read_object(folder / FACTS))
    for file in KEPT_FILES:
        if (folder / file).is_file():
            draft.add_file(str(folder / file), name=file, policy="immutable", skip_cache=True)
    path = f"{run.entity}/{run.project}/{name}"
    api = _api(run.entity)
    if api.artifact_collection_exists(path, "model"):
        for found in api.artifacts("model", path):
            if found.digest == draft.digest and found.state == "COMMITTED":
                return found  # logging it again would give it the alias `latest`
    return run.log_artifact(draft).wait(timeout=UPLOAD_SECONDS)


def _take_from_other_recipe(registry: Registry, state: State, act: Act, entity: str) -> None:
    """Removes the alias from the model that had it, where that one is in another collection."""
    if not act.before or _collection(registry, state.versions[act.before]) == _collection(registry, act):
        return
    before = state.versions[act.before]
    path, api = f"{_collection(registry, before)}:{act.alias}", _api(entity)
    if api.artifact_exists(path):
        found = api.artifact(path)
        if _same_weights(found, registry, before):
            found.aliases.remove(act.alias)
            found.save()


def _read_back(registry: Registry, act: Act, alias: str, entity: str, announce: Callable[[str], None]) -> str:
    """Tells where W&B has the alias; returns what is wrong with that."""
    path, api = f"{_collection(registry, act)}:{alias}", _api(_place(act, entity, "")[0])
    if not api.artifact_exists(path):
        return f"it is not at {path}"
    found = api.artifact(path)
    if not _same_weights(found, registry, act):
        return f"there it is another model ({_name(found)}) than {act.version}"
    announce(f"On {_server()}: {alias} is {_name(found)} ({act.version} here).")
    return ""


def _name(artifact: "wandb.Artifact") -> str:
    """ENTITY/PROJECT/COLLECTION:VERSION, also of one that was found by an alias."""
    return f"{artifact.qualified_name.rpartition(':')[0]}:{artifact.version}"


def _collection(registry: Registry, act: Act) -> str:
    recipe = re.sub(r"[^A-Za-z0-9._-]+", "-", act.recipe).strip("-.")[:64] or "model"
    return f"wandb-registry-{registry.name}/{recipe}"


def _same_weights(artifact: "wandb.Artifact", registry: Registry, act: Act) -> bool:
    """Whether `artifact` has the weights of the registry's copy."""
    entry = artifact.manifest.entries.get("model.safetensors")
    with open(registry.copy(act.digest) / "model.safetensors", "rb") as file:
        own = base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode()
    return entry is not None and entry.digest == own


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
    with _told("Try again, or pull from the runs folder that promoted it"):
        artifact = _find(_api(entity), registry.name, recipe, alias)
        names = _require_model(artifact, most_bytes)
        with pulled_folder(target) as aside:
            for file in names:
                artifact.get_entry(file).download(root=str(aside), skip_cache=True)
            _require_size(artifact, sum(path.stat().st_size for path in aside.iterdir()), most_bytes)
            _write_facts(aside, require_whole(aside), artifact.metadata)
        return _name(artifact)


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
        raise TrackingError(f"{_name(artifact)} {found}", "A model is pulled with all its files", "Promote it again")
    _require_size(artifact, sum(entries[name].size or 0 for name in names), most_bytes)
    return names


def _require_size(artifact: "wandb.Artifact", size: int, most_bytes: int) -> None:
    if size > most_bytes:
        raise TrackingError(
            f"{_name(artifact)} has {size:,} bytes", f"A model has at most {most_bytes:,}", "Pull another one"
        )


def _write_facts(folder: Path, digest: str, metadata: dict[str, Any]) -> None:
    """registry.json, if the artifact tells of these weights: with it the model can be promoted here too."""
    if metadata.get("model_sha256") == digest:
        names = ("run", "wandb", "test_accuracy", "model_sha256", "selected_on", "data_digest")
        write_json(folder / FACTS, {name: metadata[name] for name in names if name in metadata})


def _api(entity: str) -> "wandb.Api":
    import wandb

    return wandb.Api(overrides={"entity": entity} if entity else None, timeout=API_SECONDS)


def _server() -> str:
    import wandb

    return str(wandb.setup().settings.base_url)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _told(remedy: str) -> Iterator[None]:
    """Tells what the client raises as a TrackingError."""
    import wandb

    try:
        yield
    except (wandb.errors.Error, ValueError, OSError) as error:
        wandb.teardown()
        raise TrackingError(
            f"W&B does not do its part: {_one_line(error)}",
            "Its registry needs a server that answers, and a key",
            remedy,
        ) from error
