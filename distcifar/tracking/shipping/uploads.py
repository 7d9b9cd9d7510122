"""Which of a run's files become W&B artifacts, and when. No W&B here: folders and names only.

An upload may take minutes, and the checkpoint that it is of may be pruned meanwhile. So it is taken from a folder of
hard links, RUN/.upload, which costs no room and lives as long as the upload.
"""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from distcifar.errors import CheckpointError
from distcifar.files import sha256_of, write_json
from distcifar.sealed import verify
from distcifar.tracking.identity import FILE as IDENTITY
from distcifar.tracking.identity import read_identity
from distcifar.tracking.journal import Journal
from distcifar.tracking.rows import copy_rows

Policy = Literal["none", "model", "state", "data"]  # each also sends what those before it do

OUTBOX = ".upload"
CURSOR = "uploads.json"
MANIFEST = "manifest.json"
BEFORE_ALL = "step-00000000"
CHECKPOINT = "checkpoint"  # folders inside a train-state artifact
RUN = "run"


@dataclass(frozen=True)
class Upload:
    """One version of an artifact of this run: the files in `folder`, which is this upload's own."""

    kind: Literal["state", "model"]
    key: str  # what it is of: a checkpoint's name, a model's digest
    folder: Path
    aliases: tuple[str, ...]
    metadata: Mapping[str, Any]


@dataclass
class Outbox:
    """What of a run is to be uploaded; `sent` says under which version W&B has it, by kind and key."""

    run: Path
    policy: Policy
    sent: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sent = read_sent(self.run)

    def due(self, *, over: bool) -> list[str]:
        """The keys that are to be sent now, in this order: the best checkpoint and the newest, then the model.

        over: the run has ended, and its model may be sent too. W&B calls `latest` what came last: where that is not
        the newest state, because the run went back to it, it is sent again (and is the same version there).
        """
        states = _state_keys(self.run / "checkpoints") if self.policy in ("state", "data") else []
        models = _model_keys(self.run) if self.policy != "none" and over else []
        last = [key for key in self.sent if key.startswith("state/")][-1:]
        due = [key for key in states[:-1] if key not in self.sent]
        due += [key for key in states[-1:] if due or last != [key]]
        return due + [key for key in models if key not in self.sent]

    def take(self, key: str) -> Upload:
        """Links the files of `key` into a folder of their own.

        FileNotFoundError if they are no longer there, all of them and as they were sealed.
        """
        kind, name, *seal = key.split("/")
        folder = self.run / OUTBOX / name
        shutil.rmtree(folder, ignore_errors=True)
        if kind == "model":
            _link(self.run / "model", folder)
            _require_sealed(folder)
            return Upload("model", key, folder, ("best",), _model_facts(self.run))
        source = self.run / "checkpoints" / name
        _link(source, folder / CHECKPOINT)
        _require_sealed(folder / CHECKPOINT, *seal)
        progress = _read(folder / CHECKPOINT / "state.json")["progress"]
        self._add_journal(folder / RUN, progress)
        aliases = (f"epoch-{progress['epoch']}",) if not progress["epoch_step"] else ()
        best = ("best",) if progress["best_step"] == progress["step"] else ()
        return Upload("state", key, folder, (*aliases, *best), _state_facts(folder / CHECKPOINT, progress))

    def _add_journal(self, folder: Path, progress: Mapping[str, Any]) -> None:
        """The run's facts and its rows up to the checkpoint: with them another machine has the whole run."""
        folder.mkdir(parents=True)
        for name in ("run.json", IDENTITY):
            if (self.run / name).exists():
                shutil.copyfile(self.run / name, folder / name)
        copy_rows(self.run, folder)
        Journal(folder).cut(step=progress["step"], epoch=progress["epoch"])
        for path in folder.glob("metrics*.csv"):  # made again from the rows
            path.unlink()

    def done(self, upload: Upload, version: str) -> None:
        """Notes that W&B has `upload` as `version`, and removes its folder."""
        self.sent.pop(upload.key, None)
        self.sent[upload.key] = version  # the last one now
        write_json(self.run / CURSOR, self.sent)
        shutil.rmtree(upload.folder, ignore_errors=True)

    def sweep(self) -> None:
        """Removes what an upload that was killed has left; who sends nothing leaves alone what another one sends."""
        if self.policy != "none":
            shutil.rmtree(self.run / OUTBOX, ignore_errors=True)


def read_sent(run: Path) -> dict[str, str]:
    """Under which version W&B has what was sent, by kind and key; of a damaged file nothing: it is sent again."""
    found = _known(run / CURSOR)
    return {key: version for key, version in found.items() if isinstance(version, str)}


def _state_keys(root: Path) -> list[str]:
    """Of the best checkpoint, where it is not the newest, and the newest; oldest first. Before a step there is nothing.

    After a rollback there is another checkpoint of the same step: the seal tells them apart. Meanwhile others are
    pruned, and a damaged one is passed over.
    """
    found = sorted(path for path in root.glob("step-*") if path.name != BEFORE_ALL)
    known = [(path, _known(path / "state.json").get("progress")) for path in found]
    sound = [(path, progress["best_step"]) for path, progress in known if progress and "best_step" in progress]
    if not sound:
        return []
    newest, best = sound[-1]
    keys = []
    for path in [path for path, _ in sound[:-1] if int(path.name.removeprefix("step-")) == best] + [newest]:
        with suppress(OSError):
            keys.append(f"state/{path.name}/{sha256_of(path / MANIFEST)[:8]}")
    return keys


def best_checkpoint(run: Path) -> str:
    """The name of the best checkpoint, as the newest one tells it; empty if there is none."""
    told = [_known(path / "state.json").get("progress") for path in sorted((run / "checkpoints").glob("step-*"))]
    best = [progress["best_step"] for progress in told if progress and "best_step" in progress]
    return f"step-{best[-1]:08d}" if best and isinstance(best[-1], int) else ""


def _model_keys(run: Path) -> list[str]:
    """None before there is a summary: only then is the run finished."""
    if not (run / "summary.json").exists():
        return []
    weights = _known(run / "model" / MANIFEST).get("files", {}).get("model.safetensors")
    return [f"model/{weights['sha256']}"] if weights else []


def _link(source: Path, target: Path) -> None:
    """Those files that the manifest names, and it."""
    target.mkdir(parents=True)
    for name in (MANIFEST, *_known(source / MANIFEST).get("files", ())):
        try:
            os.link(source / name, target / name)
        except FileNotFoundError:
            raise
        except OSError:  # a file system without hard links: costs a copy
            shutil.copyfile(source / name, target / name)


def _require_sealed(folder: Path, seal: str = "") -> None:
    """FileNotFoundError unless `folder` has what its manifest says; it was linked while others may have written."""
    if not sha256_of(folder / MANIFEST).startswith(seal):
        raise FileNotFoundError(f"{folder} is not what it was")
    try:
        verify(folder, tuple(_known(folder / MANIFEST).get("files", ())))
    except CheckpointError as error:
        raise FileNotFoundError(f"{error.found}, or is just being replaced") from error


def _known(path: Path) -> dict[str, Any]:
    """A JSON object from a file that may be missing or damaged; empty then."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _model_facts(run: Path) -> dict[str, Any]:
    summary, facts = _read(run / "summary.json"), _read(run / "run.json")
    names = ("test_accuracy", "test_loss", "selected_on", "best_epoch", "recipe", "recipe_digest", "data_digest")
    lineage = {"git_commit": facts.get("git_commit"), "parent": facts.get("parent")}
    identity = read_identity(run)  # who pulls the model elsewhere knows its run by it
    origin = {"run": run.name, "wandb": identity.path if identity else ""}
    return {name: summary.get(name) for name in (*names, "model_sha256")} | lineage | origin


def _state_facts(checkpoint: Path, progress: Mapping[str, Any]) -> dict[str, Any]:
    card = _read(checkpoint / "model.json")
    names = ("step", "epoch", "best_step", "best_epoch", "best_metric")
    return {name: progress[name] for name in names} | {
        "recipe_digest": card["recipe_digest"],
        "data_digest": card["data_digest"],
        "format_version": _read(checkpoint / "manifest.json")["format_version"],
    }


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found
