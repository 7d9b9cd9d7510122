"""The model registry: aliases such as staging and production, and the models that they point at.

    RUNS/.registry/NAME/
      log.jsonl       a line for each act (log.py); the state follows from it
      models/DIGEST/  a sealed copy of each model ever promoted, and registry.json: what its run told of it
      synced.json     how much of the log W&B has (tracking/wandb/registry.py)

A copy is made before the line that speaks of it. Whoever writes holds the lock, so of two promotions at once
one comes after the other and is judged by what the first has left.
"""

import os
import platform
import pwd
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from distcifar.config import did_you_mean
from distcifar.errors import RegistryError, StorageError
from distcifar.files import folder_aside, sweep_aside, write_json
from distcifar.tracking.registry.gates import (
    FACTS,
    KEPT_FILES,
    Candidate,
    find_model,
    inspect,
    notes,
    passes,
    require_whole,
)
from distcifar.tracking.registry.log import (
    VERSION,
    Act,
    State,
    append_act,
    fold,
    read_acts,
    require_alias,
    require_name,
)

LOCK_SECONDS = 300.0  # another process copies a model meanwhile


@dataclass(frozen=True)
class Promotion:
    """What came of a promotion. act: None where the alias had that model already."""

    version: str
    act: Act | None
    notes: list[str]


class Registry:
    """The registry `name` in a runs folder."""

    def __init__(self, runs: Path, name: str) -> None:
        self.name = require_name(name, "a registry")
        self.runs = runs
        self.folder = runs.absolute() / ".registry" / name
        self._log = self.folder / "log.jsonl"

    def state(self) -> State:
        """What the log amounts to now."""
        with storage_errors(self.folder):
            return fold(read_acts(self._log))

    def copy(self, digest: str) -> Path:
        """The registry's own copy of the model with this digest."""
        return self.folder / "models" / digest[:16]

    def promote(self, thing: str, alias: str, *, force: bool = False, reason: str = "") -> Promotion:
        """Makes `alias` point at the model of `thing`: a run, a model directory, a version. RegistryError: refused."""
        require_alias(alias)
        with storage_errors(self.folder):
            candidate = self._candidate(thing)  # before the lock: to read it all takes its time
            _judge(candidate, self.state().holder(alias), alias, force=force)
            with self._writing():
                state = self.state()
                holder = state.holder(alias)
                forced = _judge(candidate, holder, alias, force=force)
                version = state.version_of(candidate.digest)
                already = holder is not None and holder.version == version
                self._keep(candidate, state, version, mend_only=already)
                if already:
                    return Promotion(version, None, [])
                act = _act(candidate, alias, version, holder, forced=forced, reason=reason)
                append_act(self._log, act)
                return Promotion(version, act, notes(candidate, holder, alias))

    def _candidate(self, thing: str) -> Candidate:
        if not VERSION.fullmatch(thing):
            return inspect(find_model(thing, self.runs))
        known = self._known(self.state(), thing)
        require_whole(self.copy(known.digest), known.digest)
        return inspect(self.copy(known.digest))

    def rollback(self, alias: str, *, reason: str = "") -> Act:
        """Makes `alias` point at what it pointed at before; again goes one further back."""
        with storage_errors(self.folder):
            self._held(self.state(), alias)
            with self._writing():
                state = self.state()
                held = self._held(state, alias)
                if len(held) < 2:
                    raise RegistryError(
                        f"{alias} has pointed at nothing before {held[-1]}",
                        "A rollback goes back to the model before",
                        "Promote another one",
                    )
                facts = state.newest(held[-2])
                require_whole(self.copy(facts.digest), facts.digest)
                time, who = _now()
                act = replace(
                    facts, time=time, who=who, act="rollback", alias=alias, before=held[-1], forced=False, reason=reason
                )
                append_act(self._log, act)
                return act

    def find(self, wanted: str) -> Act:
        """What is known of the version that `wanted` is, or of the one that the alias `wanted` points at."""
        state = self.state()
        return self._known(state, wanted if VERSION.fullmatch(wanted) else self._held(state, wanted)[-1])

    def knows(self, wanted: str) -> bool:
        """Whether `wanted` is an alias or a version of this registry."""
        state = self.state()
        return wanted in state.versions or wanted in state.history

    def pull(self, wanted: str, target: Path) -> Act:
        """Copies the model that `wanted`, an alias or a version, points at to `target`, verified there."""
        found = self.find(wanted)
        source = self.copy(found.digest)
        with storage_errors(target), pulled_folder(target) as aside:
            require_whole(source, found.digest)
            _copy(source, aside, (*KEPT_FILES, FACTS))
        return found

    def _known(self, state: State, version: str) -> Act:
        if version not in state.versions:
            raise self._unknown("version", version, list(state.versions))
        return state.newest(version)

    def _held(self, state: State, alias: str) -> tuple[str, ...]:
        if alias not in state.history:
            raise self._unknown("alias", alias, list(state.history))
        return state.history[alias]

    def _unknown(self, what: str, name: str, known: list[str]) -> RegistryError:
        return RegistryError(
            f"The registry {self.name!r} in {self.runs} has no {what} {name!r}",
            f"It has {', '.join(known) or 'none'}",
            did_you_mean(name, known) if known else "Promote a model first, or name another --runs or --registry",
        )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Keeps other writers away."""
        (self.folder / "models").mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", timeout=LOCK_SECONDS):
                sweep_aside(self.folder / "models")
                yield
        except Timeout:
            raise RegistryError(
                f"The registry {self.name!r} is being written by another process",
                "One promotion comes after the other",
                "Try again when it is done",
            ) from None

    def _keep(self, candidate: Candidate, state: State, version: str, *, mend_only: bool) -> None:
        """Makes sure that the registry's copy of `candidate` is there and whole.

        mend_only: no line is written of it, so what a whole copy tells of its run stays.
        """
        if version in state.versions and candidate.class_names != state.newest(version).class_names:
            raise RegistryError(
                f"{candidate.run!r} has the weights of {version} and other class names",
                "The same weights have the same classes",
                "Correct the data's class names, and train again",
            )
        target = self.copy(candidate.digest)
        with suppress(RegistryError):  # a damaged copy is made anew
            require_whole(target, candidate.digest)
            if not mend_only or not (target / FACTS).exists():
                write_json(target / FACTS, candidate.facts())
            return
        with folder_aside(target) as aside:
            _copy(candidate.folder, aside, KEPT_FILES)
            write_json(aside / FACTS, candidate.facts())
            require_whole(aside, candidate.digest)  # it may have changed meanwhile


@contextmanager
def pulled_folder(target: Path) -> Iterator[Path]:
    """A folder to fill with a model; it is verified, and takes `target`'s name, which must be free."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise RegistryError(
            f"{target} exists and is not an empty folder",
            "A model is pulled into a folder of its own",
            "Choose another DIR",
        )
    with folder_aside(target.absolute()) as aside:
        yield aside
        require_whole(aside)


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Tells an OSError as a StorageError."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, folder) from error


def storage_error(error: OSError, folder: Path) -> StorageError:
    """`error`, met at or below `folder`."""
    return StorageError(
        f"{error.filename or folder} cannot be read or written: {error.strerror or error}",
        "A registry keeps its log and its models below --runs",
        "See to space and permissions, or choose another --runs DIR",
    )


def _judge(candidate: Candidate, holder: Act | None, alias: str, *, force: bool) -> bool:
    """Whether `candidate` has `alias` by `force` only. RegistryError: it may not have it; what has it already may."""
    if holder is not None and holder.digest == candidate.digest:
        return False
    return not passes(candidate, holder, alias, force=force)


def _copy(source: Path, target: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _act(candidate: Candidate, alias: str, version: str, holder: Act | None, *, forced: bool, reason: str) -> Act:
    time, who = _now()
    return Act(
        time=time,
        who=who,
        act="promote",
        alias=alias,
        version=version,
        before=holder.version if holder else "",
        digest=candidate.digest,
        recipe=candidate.recipe,
        run=candidate.run,
        wandb=candidate.wandb,
        test_accuracy=candidate.test_accuracy,
        data_digest=candidate.data_digest,
        class_names=candidate.class_names,
        forced=forced,
        reason=reason,
    )


def _now() -> tuple[str, str]:
    """When, and by whom."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user without a name
        user = str(os.getuid())
    return datetime.now(UTC).isoformat(timespec="seconds"), f"{user}@{platform.node()}"
