"""The registry's log, a line for each act, and the state that follows from it and from nothing else.

A line is whole with its newline: the half of one that a killed process left behind never happened, and the next act is
written over it. Versions are numbered in the order in which their weights were first promoted.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from distcifar.config import from_dict
from distcifar.errors import ConfigError, RegistryError
from distcifar.files import sync_folder

VERSION = re.compile(r"v[1-9][0-9]*")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Act:
    """One line of the log: who made `alias` point at `version`, when, and what was known of the model then."""

    time: str  # UTC, ISO 8601
    act: Literal["promote", "rollback"]
    alias: str
    version: str
    before: str  # what the alias pointed at until then; empty: nothing
    digest: str  # sha256 of model.safetensors
    recipe: str
    run: str
    wandb: str  # (ENTITY/)PROJECT/ID of the run in W&B; empty: it is not there
    test_accuracy: float
    data_digest: str
    class_names: tuple[str, ...]
    who: str  # user@host
    forced: bool  # the accuracy would not have done
    reason: str


@dataclass(frozen=True)
class State:
    """What a log's acts amount to."""

    acts: tuple[Act, ...] = ()
    versions: Mapping[str, Act] = field(default_factory=dict)  # each with its first act
    history: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of an alias; the last holds it

    @property
    def aliases(self) -> dict[str, str]:
        """The version that each alias points at."""
        return {alias: versions[-1] for alias, versions in self.history.items()}

    def version_of(self, digest: str) -> str:
        """The version with these weights, or the one that they would become."""
        known = (version for version, act in self.versions.items() if act.digest == digest)
        return next(known, f"v{len(self.versions) + 1}")

    def newest(self, version: str) -> Act:
        """The newest act about `version`: what is known of it."""
        return next(act for act in reversed(self.acts) if act.version == version)

    def holder(self, alias: str) -> Act | None:
        """What is known of the version that `alias` points at."""
        return self.newest(self.aliases[alias]) if alias in self.aliases else None


def fold(acts: Iterable[Act]) -> State:
    """The state after `acts`. Raises RegistryError, naming the line, where one does not follow from those before."""
    acts = tuple(acts)
    versions: dict[str, Act] = {}
    by_digest: dict[str, str] = {}
    history: dict[str, list[str]] = {}
    for number, act in enumerate(acts, 1):
        held = history.setdefault(act.alias, [])
        if act.act == "promote":
            expected = by_digest.get(act.digest, f"v{len(versions) + 1}")
        else:
            expected = held[-2] if len(held) > 1 else ""
        before = held[-1] if held else ""
        if (act.version, act.before) != (expected, before) or by_digest.get(act.digest, expected) != expected:
            raise _damaged(f"line {number} makes {act.alias!r} {act.version} after {act.before or 'nothing'}")
        by_digest.setdefault(act.digest, act.version)
        versions.setdefault(act.version, act)
        if act.act == "promote":
            held.append(act.version)
        else:
            del held[-1:]
    return State(acts, versions, {alias: tuple(held) for alias, held in history.items()})


def read_acts(path: Path) -> list[Act]:
    """The acts in the log at `path`; none where there is none. Raises RegistryError for a line that cannot be one."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(from_dict(Act, _known(json.loads(line))))
        except (ValueError, ConfigError) as error:
            raise _damaged(f"{path} line {number} cannot be read ({error})") from error
    return found


def _known(line: Any) -> Any:
    """A line without the fields that a newer version has added: the state does not follow from them."""
    names = {field.name for field in fields(Act)}
    return {name: value for name, value in line.items() if name in names} if isinstance(line, dict) else line


def append_act(path: Path, act: Act) -> None:
    """Adds a line and returns when it is on the disk. The caller keeps other writers away."""
    line = json.dumps(asdict(act), ensure_ascii=False).encode() + b"\n"
    with open(path, "r+b" if path.exists() else "x+b") as file:
        file.seek(file.read().rfind(b"\n") + 1)
        file.truncate()
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def require_name(value: str, what: str) -> str:
    """`value` if it can name a registry or an alias, here and in W&B."""
    if not NAME.fullmatch(value):
        raise RegistryError(
            f"{value!r} cannot name {what}",
            "A name has at most 64 letters, digits, dots, hyphens and underscores, the first a letter or digit",
            "Choose another",
        )
    return value


def require_alias(value: str) -> str:
    """`value` if it can be an alias."""
    if VERSION.fullmatch(value) or re.fullmatch(r"latest|v0", value):
        raise RegistryError(
            f"{value!r} cannot be an alias", "v1, v2, ... and latest are names of versions", "--to staging"
        )
    return require_name(value, "an alias")


def _damaged(found: str) -> RegistryError:
    return RegistryError(
        f"The registry's log is damaged: {found}",
        "Each line follows from those before it; only the last may be half-written",
        "Put log.jsonl back from a backup, or take another --registry",
    )
