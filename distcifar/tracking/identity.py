"""Which W&B run a run directory is, for its whole life: tracking.json."""

import json
import re
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from distcifar.errors import TrackingError
from distcifar.files import write_json

FILE = "tracking.json"


@dataclass(frozen=True)
class Identity:
    """The place of a run in W&B. An empty entity is the account's default one."""

    id: str
    name: str
    project: str
    entity: str = ""
    group: str = ""

    @property
    def path(self) -> str:
        """PROJECT/ID, or ENTITY/PROJECT/ID, as W&B's API takes it."""
        return "/".join(part for part in (self.entity, self.project, self.id) if part)

    def artifact(self, kind: str) -> str:
        """The name of this run's artifacts of a `kind`: state or model."""
        return f"{self.id}-{kind}"


def new_identity(name: str, project: str, entity: str = "", group: str = "") -> Identity:
    """An identity that no other run has. Of the name only what W&B takes in an id is in it, and the start."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:50] or "run"
    return Identity(f"{plain}-{uuid.uuid4().hex[:6]}", name, project, entity, group)


def write_identity(folder: Path, identity: Identity) -> None:
    """Writes tracking.json."""
    write_json(folder / FILE, asdict(identity))


def read_identity(folder: Path) -> Identity | None:
    """The identity of the run in `folder`; None where it has none: a run of before there was tracking.

    Raises TrackingError where it cannot be read.
    """
    try:
        return Identity(**json.loads((folder / FILE).read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise TrackingError(
            f"{folder / FILE} cannot be read ({error})",
            "It says which W&B run this is",
            "Correct it, or remove it: the run is then a new one in W&B",
        ) from error
