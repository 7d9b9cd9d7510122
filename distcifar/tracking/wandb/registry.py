"""A file registry's acts, replayed to the W&B registry of the same name.

W&B keeps aliases by collection, and a collection is a recipe: a version here is a version of the collection
`wandb-registry-NAME/RECIPE` there, linked from the artifact of its run. An alias moves once, to where its newest act
puts it: who pulls meanwhile has the model before or that one. Everything here can be done twice, and is after an
interruption.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

from filelock import FileLock

import distcifar.tracking.wandb.registry_api as there
from distcifar.errors import RegistryError, TrackingError
from distcifar.tracking.registry.cursor import Cursor
from distcifar.tracking.registry.gates import FACTS, KEPT_FILES, read_object, require_whole
from distcifar.tracking.registry.log import Act, State
from distcifar.tracking.registry.registry import Registry
from distcifar.tracking.wandb.registry_gate import describe, holders, objection, remedy
from distcifar.tracking.wandb.run import client_settings, has_key

if TYPE_CHECKING:
    import wandb

FINISH_SECONDS = 30.0  # the run has no rows to send
UPLOAD_SECONDS = 600
LATER = "What was done here stands; python jobs/promote.py --sync sends it when W&B takes it"

Announce = Callable[[str], None]


def sync(
    registry: Registry, *, project: str, entity: str = "", asked: str = "", force: bool = False, announce: Announce
) -> None:
    """Does in W&B what the log says and W&B has not been told, then reads back where each alias is.

    Models of runs that are not in W&B go to `project`. Raises TrackingError for what is missing there; with `asked`,
    an alias, only of that one: of the others it is said. force: that one is taken from whatever has it there.
    """
    if not registry.state().acts:
        announce(f"Nothing has been promoted in the registry {registry.name!r}: there is nothing to send.")
        return
    if not has_key():  # on a terminal the client would ask for one, and wait
        raise TrackingError("There is no W&B key here", "W&B's registry needs one", f"Set WANDB_API_KEY. {LATER}")
    problems: dict[str, str] = {}
    with FileLock(registry.folder / ".sync.lock"), there.told(LATER, registry.folder):
        state = registry.state()
        replay = _Replay(registry, state, entity, asked, announce, force=force)
        refused = replay.go(project)
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


@dataclass
class _Replay:
    """What of a log is to be done in W&B, and what of it W&B or a gate refuses: sentences by alias."""

    registry: Registry
    state: State
    entity: str
    asked: str
    announce: Announce
    force: bool = field(kw_only=True)
    refused: dict[str, str] = field(default_factory=dict)

    def go(self, project: str) -> dict[str, str]:
        """Links what is pending in the log's order, each alias only with its newest act; what was refused."""
        cursor = Cursor(self.registry.folder, f"{there.server()} {self.entity}".strip())
        pending = cursor.pending(self.state)
        newest = {act.alias: act for act in self.state.acts}

        def send(run: "wandb.Run", act: Act) -> None:
            if act is not newest[act.alias]:
                self._link_superseded(run, act)
                return
            since = [other for other in pending if other.alias == act.alias]
            self._give(run, act, self._weights_of(since))
            if act.alias not in self.refused:
                cursor.advance(act.alias, len(since))

        self._in_runs(pending, project, send)
        told = {act.alias for act in pending}
        lost = [act for alias, act in newest.items() if alias not in told and self._is_lost(act)]
        self._in_runs(lost, project, lambda run, act: self._give(run, act, set()))
        return self.refused

    def _in_runs(self, acts: list[Act], project: str, do: "Callable[[wandb.Run, Act], None]") -> None:
        """Does the acts, each in the run of its place in W&B, and none of an alias that W&B or a gate has refused."""
        import wandb

        for (entity, place), group in groupby(acts, lambda act: _place(act, self.entity, project)):
            with _run(self.registry, self.state, entity, place) as run:
                for act in group:
                    if act.alias in self.refused:
                        continue
                    try:
                        do(run, act)
                    except wandb.errors.AuthenticationError:
                        raise  # also of a server that has ceased to answer
                    except (wandb.errors.CommError, ValueError) as error:
                        self.refused[act.alias] = there.one_line(error)
                    except RegistryError as error:
                        self.refused[act.alias] = str(error)

    def _weights_of(self, pending: list[Act]) -> set[str]:
        """The weights that an alias has here by its pending acts, and those that it had before them."""
        before = pending[0].before
        return {act.digest for act in pending} | ({self.state.versions[before].digest} if before else set())

    def _is_lost(self, act: Act) -> bool:
        """Whether W&B, which had the act, has the alias at no model any more, or at another one that is to give way."""
        if self.asked not in ("", act.alias):
            return False
        found = holders(self.registry, act, act.alias, _place(act, self.entity, "")[0])
        others = [holder for holder in found if not there.has_weights(holder, self.registry, act)]
        if others and not self._forced(act):
            self.refused[act.alias] = f"{describe(others[0])} has it in W&B, not {act.version}. {remedy(act)}"
            return False
        return bool(others) or not found

    def _forced(self, act: Act) -> bool:
        return self.force and act.alias == self.asked

    def _link_superseded(self, run: "wandb.Run", act: Act) -> None:
        """A version that the alias had before; nobody is handed it, so it may be lost."""
        try:
            artifact = _artifact(run, self.registry, act)
        except RegistryError as error:
            self.announce(f"note: {act.version}, which {act.alias} was once, is not sent to W&B: {error}")
            return
        run.link_artifact(artifact, there.collection_of(self.registry, act))

    def _give(self, run: "wandb.Run", act: Act, own: set[str]) -> None:
        """The alias goes to the act's model, and is taken from each other one, if they are no better.

        own: weights that the alias had here meanwhile. Whoever moved it from them was judged then, or went back.
        """
        found = holders(self.registry, act, act.alias, run.entity)
        others = [holder for holder in found if not there.has_weights(holder, self.registry, act)]
        known = [version for version in self.state.versions.values() if version.digest in own]
        for holder in others:
            is_own = any(there.has_weights(holder, self.registry, version) for version in known)
            if not (is_own or act.forced or self._forced(act)) and (found_wrong := objection(act, holder)):
                self.refused[act.alias] = found_wrong
                return
        collection = there.collection_of(self.registry, act)
        run.link_artifact(_artifact(run, self.registry, act), collection, aliases=[act.alias])
        for holder in found:
            if holder.qualified_name.rpartition(":")[0].endswith(collection):
                continue  # there the alias has moved
            holder.aliases.remove(act.alias)
            holder.save()


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
    api = there.api_of(run.entity)
    if api.artifact_collection_exists(path, "model"):
        for found in api.artifacts("model", path):
            if found.digest == draft.digest and found.state == "COMMITTED":
                return found  # logging it again would give it the alias `latest`
    return run.log_artifact(draft).wait(timeout=UPLOAD_SECONDS)


def _read_back(registry: Registry, act: Act, alias: str, entity: str, announce: Announce) -> str:
    """Tells where W&B has the alias; returns what is wrong with that."""
    path, api = f"{there.collection_of(registry, act)}:{alias}", there.api_of(_place(act, entity, "")[0])
    if not api.artifact_exists(path):
        return f"it is not at {path}"
    found = api.artifact(path)
    if not there.has_weights(found, registry, act):
        return f"{describe(found)} has it in W&B, not {act.version}"
    announce(f"On {there.server()}: {alias} is {there.name_of(found)} ({act.version} here).")
    return ""
