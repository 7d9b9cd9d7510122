"""Prepared data on storage that many machines share: each machine fetches them once, and reads its own copy.

The storage is a URL (s3://bucket/data) or, with a folder for copies, a path such as an NFS mount. A fetch that breaks
off goes on from the last block that has arrived whole: the sidecars have the sha256 of each MiB.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from distcifar.config import DataConfig
from distcifar.data.manifest import BLOCK_BYTES, SPLITS, Manifest, folder_name, from_text
from distcifar.data.prepare import PreparedData, open_prepared, prepare
from distcifar.data.progress import progress
from distcifar.data.staging import exclusive, require_space, staged, storage_errors
from distcifar.errors import DataError
from distcifar.store import Store, is_url

COPIES = "~/.cache/distcifar/data"  # where a node keeps its copy of data at a URL, if nothing else is said
READ_BLOCKS = 8  # that one request asks for
WRONG_READS = 3  # of the same block, after which what is stored is called damaged
Announce = Callable[[str], None]
T = TypeVar("T")


def copies_folder(root: str, copies: str) -> Path | None:
    """Where a node keeps copies of the data below `root`; None where they are read where they lie."""
    if not copies and not is_url(root):
        return None
    return Path(copies or COPIES).expanduser().absolute()


def shared_data(
    config: DataConfig, root: str, copies: str, source: str = "", *, announce: Announce, repair: bool = False,
    max_broken: float = 0.01,
) -> PreparedData:  # fmt: skip
    """The prepared data of `config` on this machine, verified; what shared storage lacks is prepared and put there.

    root: a path or a URL. copies: as in RunSpec. The rest is as `prepare` has it. Raises DataError and StorageError.
    """
    here, folder = Path(root).absolute(), copies_folder(root, copies)
    if folder is None:
        return prepare(config, here, source, announce=announce, repair=repair, max_broken=max_broken)
    if not is_url(root):
        prepare(config, here, source, announce=announce, repair=repair, max_broken=max_broken)
    elif repair or sidecars(_store(config, root), config) is None:
        made = prepare(config, folder, source, announce=announce, repair=repair, max_broken=max_broken)
        put(made, _store(config, root), announce)
    prepared = opened_copy(lambda _: open_prepared(config, folder, source), config, root, folder, announce)
    if prepared is None:
        raise DataError(f"{folder} has lost {folder_name(config)}", "A copy stays while it is used", "Try again")
    return prepared


def opened_here(
    opener: Callable[[Path], T], config: DataConfig, root: str, copies: str, prepared: Path, announce: Announce
) -> T:
    """What `opener` makes of the folder that a worker reads: the driver's `prepared` one, or this machine's copy."""
    folder = copies_folder(root, copies)
    return opener(prepared) if folder is None else opened_copy(opener, config, root, folder, announce)


def opened_copy(
    opener: Callable[[Path], T], config: DataConfig, root: str, copies: Path, announce: Announce
) -> T:  # fmt: skip
    """What `opener`, which verifies it, makes of this machine's copy. One that it refuses is mended, once."""
    folder = local_copy(config, root, copies, announce)
    found = _inode(folder)
    try:
        return opener(folder)
    except DataError as error:
        announce(f"Fetching again what differs from what is stored, because: {error.found}")
        return opener(local_copy(config, root, copies, announce, damaged=found))


def local_copy(
    config: DataConfig, root: str, copies: Path, announce: Announce, *, damaged: int | None = None
) -> Path:  # fmt: skip
    """The folder of this machine's copy of the data of `config`; of several processes the first one fetches it.

    Its bytes are not verified here: whoever opens them does. damaged: the inode of a copy that is replaced by one of
    its right blocks and fetched ones. A storage that does not answer is waited for, ten minutes each time, which
    `announce` is told. Raises DataError where there is nothing to be copied, and StorageError.
    """
    store, folder = _store(config, root).patient(announce), copies / folder_name(config)
    texts = sidecars(store, config)
    if texts is None:
        raise DataError(
            f"{store.place} holds no prepared data",
            "Workers copy what was prepared before",
            f"Prepare it: python jobs/prepare.py {config.dataset} --root {root.partition('?')[0]}",
        )
    with storage_errors(copies):
        if _is_copy(folder, texts, damaged):
            return folder
        with exclusive(folder, announce):
            if not _is_copy(folder, texts, damaged):  # else another process has fetched it while this one waited
                _fetch(store, folder, texts, announce)
    return folder


def put(prepared: PreparedData, store: Store, announce: Announce) -> None:
    """Copies a prepared folder into `store`. The training split's sidecar says that all is there: it goes last.

    One of older data is removed first, as it would say so of a mixture, also for good where this process dies.
    """
    size = sum(manifest.size_bytes for manifest in prepared.manifests.values())
    announce(f"Putting {prepared.folder.name} ({size / 1e6:,.0f} MB) to {store.place}")
    store.delete("train.beton.json")
    splits = [split for split in reversed(SPLITS) if split in prepared.manifests]
    for suffix in ("", ".json"):
        for split in splits:
            path = prepared.folder / f"{split}.beton{suffix}"
            store.write(path.name, path)


def sidecars(store: Store, config: DataConfig) -> dict[str, bytes] | None:
    """The text of each split's sidecar in `store`; None where the data are not there, or not yet whole."""
    found = {}
    for split in SPLITS:
        if split == "val" and not config.validation:
            continue
        text = store.read(f"{split}.beton.json")
        if text is None:
            return None
        found[split] = text
    return found


def _store(config: DataConfig, root: str) -> Store:
    place = root if is_url(root) else Path(root).absolute().as_uri()
    return Store(place).below(folder_name(config))


def _is_copy(folder: Path, texts: dict[str, bytes], damaged: int | None) -> bool:
    """Whether `folder` was fetched whole from what these sidecars describe, and is not the damaged one."""
    try:
        return _inode(folder) != damaged and all(
            (folder / f"{split}.beton.json").read_bytes() == text for split, text in texts.items()
        )
    except OSError:
        return False


def _fetch(store: Store, folder: Path, texts: dict[str, bytes], announce: Announce) -> None:
    place = store.place
    manifests = {split: from_text(text, Path(place) / f"{split}.beton.json", "Prepare it anew: --repair")
                 for split, text in texts.items()}  # fmt: skip
    parts = folder.with_name(f".{folder.name}.parts")  # stays when a fetch breaks off
    parts.mkdir(parents=True, exist_ok=True)
    have = sum(path.stat().st_size for path in parts.iterdir())
    size = sum(manifest.size_bytes for manifest in manifests.values())
    require_space(parts, size - have)
    announce(f"Fetching {folder.name} ({size / 1e6:,.0f} MB, {have / 1e6:,.0f} of them are here) from {place}")
    with progress(f"Fetching {folder.name}", size, in_bytes=True) as advance:
        for split, manifest in manifests.items():
            _fetch_beton(store, folder / f"{split}.beton", manifest, parts, advance)
    with staged(folder) as (ready, _):
        for split, text in texts.items():
            os.replace(parts / f"{split}.beton", ready / f"{split}.beton")
            (ready / f"{split}.beton.json").write_bytes(text)
    parts.rmdir()


def _fetch_beton(store: Store, old: Path, manifest: Manifest, parts: Path, advance: Callable[[int], None]) -> None:
    """The beton in the folder `parts`, from the first block on that is not there whole.

    Blocks of `old`, an older copy that is to be replaced, are taken where they are right; others are fetched.
    """
    with open(parts / old.name, "ab+") as file:
        done = whole_blocks(parts / old.name, manifest)
        have = min(done * BLOCK_BYTES, manifest.size_bytes)  # the last block may be shorter
        file.truncate(have)
        advance(have)
        while done < len(manifest.blocks):
            blocks = _right_blocks(_read_old(old, done), manifest, done)
            blocks = blocks or _read_blocks(store, old.name, manifest, done)
            file.write(b"".join(blocks))
            done += len(blocks)
            advance(sum(map(len, blocks)))
        file.flush()
        os.fsync(file.fileno())


def whole_blocks(path: Path, manifest: Manifest) -> int:
    """How many blocks from the beginning of `path` on are those of the beton that `manifest` describes."""
    with open(path, "rb") as file:
        for number, digest in enumerate(manifest.blocks):
            if hashlib.sha256(file.read(BLOCK_BYTES)).hexdigest() != digest:
                return number
    return len(manifest.blocks)


def _read_old(path: Path, first: int) -> bytes:
    """Some blocks of `path` from number `first` on; nothing where it cannot be read: then they are fetched."""
    try:
        with open(path, "rb") as file:
            file.seek(first * BLOCK_BYTES)
            return file.read(READ_BLOCKS * BLOCK_BYTES)
    except OSError:
        return b""


def _right_blocks(content: bytes, manifest: Manifest, first: int) -> list[bytes]:
    """The blocks at the beginning of `content` that are those of the beton from number `first` on."""
    blocks = [content[i : i + BLOCK_BYTES] for i in range(0, len(content), BLOCK_BYTES)]
    wanted = manifest.blocks[first : first + len(blocks)]
    right = [hashlib.sha256(block).hexdigest() == digest for block, digest in zip(blocks, wanted, strict=False)]
    return blocks[: right.index(False) if False in right else len(right)]


def _inode(folder: Path) -> int | None:
    try:
        return folder.stat().st_ino
    except FileNotFoundError:
        return None


def _read_blocks(store: Store, name: str, manifest: Manifest, first: int) -> list[bytes]:
    """The next blocks of `name` from number `first` on, at least one, each of which has its digest."""
    for _ in range(WRONG_READS):
        content = store.read_at(name, first * BLOCK_BYTES, READ_BLOCKS * BLOCK_BYTES)
        if blocks := _right_blocks(content, manifest, first):
            return blocks
    start = first * BLOCK_BYTES
    raise DataError(
        f"{store.place}/{name} is damaged: bytes {start}-{start + BLOCK_BYTES - 1} are not as its sidecar says",
        "A beton is read only as it was written",
        "Prepare it anew into the same place: python jobs/prepare.py DATASET --root URL --repair",
    )
