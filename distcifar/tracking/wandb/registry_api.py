"""What sync and pull of W&B's registry share: where things are there, and how its failures are told."""

import base64
import errno
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from distcifar.errors import RegistryError, TrackingError
from distcifar.tracking.registry.gates import require_whole
from distcifar.tracking.registry.log import Act
from distcifar.tracking.registry.registry import Registry, storage_error

if TYPE_CHECKING:
    import wandb

API_SECONDS = 30
HERE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # of a write, which names no file


def api_of(entity: str) -> "wandb.Api":
    """W&B's API, asked for an entity; empty: the account's default one."""
    import wandb

    return wandb.Api(overrides={"entity": entity} if entity else None, timeout=API_SECONDS)


def server() -> str:
    """The server's address."""
    import wandb

    return str(wandb.setup().settings.base_url)


def name_of(artifact: "wandb.Artifact") -> str:
    """ENTITY/PROJECT/COLLECTION:VERSION, also of one that was found by an alias."""
    return f"{artifact.qualified_name.rpartition(':')[0]}:{artifact.version}"


def collection_of(registry: Registry, act: Act) -> str:
    """The collection of the act's recipe."""
    recipe = re.sub(r"[^A-Za-z0-9._-]+", "-", act.recipe).strip("-.")[:64] or "model"
    return f"wandb-registry-{registry.name}/{recipe}"


def has_weights(artifact: "wandb.Artifact", registry: Registry, act: Act) -> bool:
    """Whether `artifact` has the act's weights; where the copy here is damaged, whether it says so itself."""
    folder, entry = registry.copy(act.digest), artifact.manifest.entries.get("model.safetensors")
    try:
        require_whole(folder, act.digest)
    except RegistryError:
        return bool(artifact.metadata.get("model_sha256") == act.digest)
    with open(folder / "model.safetensors", "rb") as file:
        own = base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode()
    return entry is not None and entry.digest == own


def one_line(error: BaseException) -> str:
    """What an error says."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def told(remedy: str, folder: Path) -> Iterator[None]:
    """Tells what the client raises as a TrackingError, and what this machine's disk does as a StorageError."""
    import wandb

    try:
        yield
    except (wandb.errors.Error, ValueError, OSError) as error:
        wandb.teardown()
        if isinstance(error, OSError) and (error.filename is not None or error.errno in HERE):
            raise storage_error(error, folder) from error
        raise TrackingError(
            f"W&B does not do its part: {one_line(error)}",
            "Its registry needs a server that answers, and a key",
            remedy,
        ) from error
