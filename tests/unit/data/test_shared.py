"""Data on shared storage: fetched once by each machine, gone on with when cut, never taken for whole too early."""

import hashlib
import json
import multiprocessing
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from distcifar.config import DataConfig
from distcifar.data import shared
from distcifar.data.beton import verify
from distcifar.data.manifest import BLOCK_BYTES, from_text
from distcifar.data.shared import (
    copies_folder,
    local_copy,
    opened_here,
    put,
    shared_data,
    sidecars,
)
from distcifar.errors import DataError, StorageError
from distcifar.store import Store
from tests.support.memory_store import MemoryStore
from tests.support.object_store import ObjectStore, object_store

MADE_UP = DataConfig(dataset="synthetic", validation=256)
NAME = "synthetic-val256"


def silent(text: str) -> None:
    """Announces nothing."""


@pytest.fixture(scope="module")
def s3() -> Iterator[ObjectStore]:
    with object_store() as found:
        yield found


@pytest.fixture(scope="module")
def root(s3: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the made-up data are, as the first that needed them put them there."""
    url = s3.url("of-test-shared")
    told: list[str] = []
    shared_data(MADE_UP, url, str(tmp_path_factory.mktemp("first")), announce=told.append)
    assert any(text.startswith(f"Putting {NAME} (") for text in told)
    assert not any(text.startswith("Fetching") for text in told), "what was prepared here is here"
    return url


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "READ_BLOCKS", 1)


def test_a_path_is_read_where_it_lies_and_a_url_is_copied():
    assert copies_folder("data", "") is None
    assert copies_folder("data", "/scratch") == Path("/scratch")
    assert copies_folder("s3://b/data", "") == Path("~/.cache/distcifar/data").expanduser()


def _fetch(root: str, copies: str, barrier: object, told: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    found: list[str] = []
    folder = local_copy(MADE_UP, root, Path(copies), found.append)
    verify(folder / "train.beton")
    told.put(found)  # type: ignore[attr-defined]


@pytest.mark.slow  # fifteen seconds: each of them imports torch
def test_eight_workers_that_start_at_once_fetch_once(s3: ObjectStore, root: str, tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    barrier, told = context.Barrier(8), context.Queue()
    over_line = root.replace(str(s3.port), str(s3.line_port))
    s3.line.received = 0
    workers = [context.Process(target=_fetch, args=(over_line, str(tmp_path), barrier, told)) for _ in range(8)]
    for worker in workers:
        worker.start()
    answers = [told.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert sum(any(text.startswith("Fetching") for text in found) for found in answers) == 1
    size = sum(path.stat().st_size for path in (tmp_path / NAME).glob("*.beton"))
    assert size < s3.line.received < 1.05 * size + 8 * 100_000, "the data once, the sidecars for each"
    assert not list(tmp_path.glob(".*parts"))


def test_a_fetch_that_breaks_off_goes_on_where_it_was(
    s3: ObjectStore, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    over_line = root.replace(str(s3.port), str(s3.line_port))
    texts = sidecars(Store(root).below(NAME), MADE_UP)
    size = sum(json.loads(text)["size_bytes"] for text in (texts or {}).values())
    read, calls = Store.read_at, []

    def breaks(store: Store, name: str, offset: int, count: int) -> bytes:
        calls.append(name)
        if len(calls) == 4:
            raise StorageError("the line is dead", "", "")
        return read(store, name, offset, count)

    monkeypatch.setattr(Store, "read_at", breaks)
    with pytest.raises(StorageError, match="the line is dead"):
        local_copy(MADE_UP, over_line, tmp_path, silent)
    assert not (tmp_path / NAME).exists()
    (part,) = (path for path in (tmp_path / f".{NAME}.parts").iterdir() if path.stat().st_size)
    with open(part, "ab") as file:
        file.write(b"half a block, and nonsense")
    s3.line.received, told = 0, []
    s3.line.cut_after = [500_000, 900_000]  # and the line is cut twice more
    local_copy(MADE_UP, over_line, tmp_path, told.append)
    assert s3.line.received < size - 2 * BLOCK_BYTES + 2 * 1_000_000, "what was here did not come again"
    assert "of them are here" in told[0]
    for split in ("train", "val", "test"):
        verify(tmp_path / NAME / f"{split}.beton")


def test_data_that_were_prepared_anew_are_fetched_anew(s3: ObjectStore, tmp_path: Path):
    url, told = s3.url("anew"), []
    shared_data(MADE_UP, url, str(tmp_path / "a"), announce=silent)
    local_copy(MADE_UP, url, tmp_path / "b", silent)
    sidecar = tmp_path / "b" / NAME / "train.beton.json"
    sidecar.write_bytes(sidecar.read_bytes().replace(b"a", b"b", 1))
    local_copy(MADE_UP, url, tmp_path / "b", told.append)
    assert any(text.startswith("Fetching") for text in told)
    verify(tmp_path / "b" / NAME / "train.beton")


def test_damage_in_the_store_is_named_and_nothing_of_it_is_used(s3: ObjectStore, tmp_path: Path):
    url = s3.url("damaged")
    prepared = shared_data(MADE_UP, url, str(tmp_path / "a"), announce=silent)
    content = bytearray(prepared.train.read_bytes())
    content[BLOCK_BYTES + 5] ^= 1
    Store(url).below(NAME).write("train.beton", bytes(content))
    with pytest.raises(
        DataError, match=rf"train\.beton is damaged: bytes {BLOCK_BYTES}-{2 * BLOCK_BYTES - 1}.*--repair"
    ):
        local_copy(MADE_UP, url, tmp_path / "b", silent)
    assert not (tmp_path / "b" / NAME).exists()


def test_what_is_not_yet_whole_in_the_store_is_not_there(s3: ObjectStore, tmp_path: Path):
    prepared = shared_data(MADE_UP, str(tmp_path / "plain"), "", announce=silent)
    store = Store(s3.url("half")).below(NAME)
    put(prepared, store, silent)
    store.delete("train.beton.json")
    with pytest.raises(DataError, match=r"holds no prepared data.*jobs/prepare\.py synthetic --root s3://bucket/half"):
        opened_here(verified, MADE_UP, s3.url("half"), str(tmp_path / "b"), prepared.folder, silent)


def verified(folder: Path) -> Path:
    """The folder; DataError where one of its betons is damaged."""
    for split in ("train", "val", "test"):
        verify(folder / f"{split}.beton")
    return folder


def flip(beton: Path, place: int) -> None:
    """Damages the byte at `place` where it lies."""
    with open(beton, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def test_a_copy_that_was_damaged_is_mended_by_who_opens_it(s3: ObjectStore, root: str, tmp_path: Path):
    over_line = root.replace(str(s3.port), str(s3.line_port))
    told: list[str] = []
    folder = opened_here(verified, MADE_UP, over_line, str(tmp_path), Path("nowhere"), told.append)
    told.clear()
    with open(folder / "train.beton", "rb") as reading:  # of another run
        flip(folder / "train.beton", BLOCK_BYTES + 7)
        damaged = reading.read()
        s3.line.received = 0
        verified(opened_here(verified, MADE_UP, over_line, str(tmp_path), Path("nowhere"), told.append))
        reading.seek(0)
        assert reading.read() == damaged, "who has it open keeps what it has"
    assert s3.line.received < BLOCK_BYTES + 200_000, "what is right here does not come again"
    assert f"train.beton is damaged: bytes {BLOCK_BYTES}-{2 * BLOCK_BYTES - 1} changed" in told[0]
    assert told[1].startswith(f"Fetching {NAME}")
    assert len(told) == 2
    flip(folder / "val.beton", 9)
    (folder / "test.beton").unlink()
    assert shared_data(MADE_UP, root, str(tmp_path), announce=silent).folder == folder
    verified(folder)


def test_of_several_that_find_the_damage_one_mends_it(root: str, tmp_path: Path):
    folder = local_copy(MADE_UP, root, tmp_path, silent)
    flip(folder / "train.beton", 9)
    told: list[str] = []
    met = threading.Barrier(4)

    def open_all(folder: Path) -> Path:
        try:
            return verified(folder)
        except DataError:
            met.wait()
            raise

    def open_here() -> None:
        opened_here(open_all, MADE_UP, root, str(tmp_path), Path("nowhere"), told.append)

    threads = [threading.Thread(target=open_here) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    verified(folder)
    assert sum(text.startswith(f"Fetching {NAME}") for text in told) == 1


def test_data_that_the_store_has_damaged_are_refused_after_one_more_fetch(s3: ObjectStore, root: str, tmp_path: Path):
    asked: list[Path] = []

    def refuse(folder: Path) -> None:
        asked.append(folder)
        raise DataError("no", "", "")

    with pytest.raises(DataError, match="no"):
        opened_here(refuse, MADE_UP, root, str(tmp_path), Path("nowhere"), silent)
    assert len(asked) == 2


def test_data_that_replace_others_are_never_there_by_halves(tmp_path: Path):
    store = MemoryStore()
    for seed in (1, 2):
        config = DataConfig(dataset="synthetic", validation=256, split_seed=seed)
        put(shared_data(config, str(tmp_path / str(seed)), "", announce=silent), store, silent)
    for number in range(len(store.history) + 1):
        state = store.at(number)
        for split, text in (sidecars(state, MADE_UP) or {}).items():
            blocks = from_text(text, Path(split), "").blocks
            content = state.objects[f"{split}.beton"]
            assert tuple(block_digests(content)) == blocks, f"state {number}: {split}"
    assert sidecars(store, MADE_UP) is not None


def block_digests(content: bytes) -> list[str]:
    """sha256, hex, of each block."""
    return [hashlib.sha256(content[i : i + BLOCK_BYTES]).hexdigest() for i in range(0, len(content), BLOCK_BYTES)]


@pytest.mark.slow  # the AWS client's own patience
def test_a_store_that_does_not_answer_for_a_while_costs_a_fetch_time_and_not_the_run(
    s3: ObjectStore, root: str, tmp_path: Path
):
    over_line = root.replace(str(s3.port), str(s3.line_port))
    s3.line.down, told = True, []

    def up() -> None:
        s3.line.down = False

    timer = threading.Timer(30, up)
    timer.start()
    try:
        opened_here(verified, MADE_UP, over_line, str(tmp_path), Path("nowhere"), told.append)
    finally:
        timer.cancel()
        s3.line.down = False
    assert sum("does not answer" in text for text in told) == 1


def test_a_disk_without_room_is_told_before_a_byte_comes(
    s3: ObjectStore, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from distcifar.data import staging

    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    s3.line.received = 0
    with pytest.raises(StorageError, match="MB are needed"):
        local_copy(MADE_UP, root.replace(str(s3.port), str(s3.line_port)), tmp_path, silent)
    assert s3.line.received < 200_000


def test_a_mount_can_be_copied_to_a_nodes_own_disk(tmp_path: Path):
    mount, own = tmp_path / "mount", tmp_path / "own"
    prepared = shared_data(MADE_UP, str(mount), str(own), announce=silent)
    assert prepared.folder == own / NAME
    assert (mount / NAME / "train.beton").read_bytes() == prepared.train.read_bytes()
