"""Data on shared storage: fetched once by each machine, gone on with when cut, never taken for whole too early."""

import json
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest

from distcifar.config import DataConfig
from distcifar.data import shared
from distcifar.data.beton import verify
from distcifar.data.manifest import BLOCK_BYTES
from distcifar.data.shared import copies_folder, folder_here, local_copy, put, shared_data, sidecars
from distcifar.errors import DataError, StorageError
from distcifar.store import Store
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
    url = s3.url("data")
    told: list[str] = []
    shared_data(MADE_UP, url, str(tmp_path_factory.mktemp("first")), announce=told.append)
    assert any(text.startswith(f"Putting {NAME} (") for text in told)
    assert not any(text.startswith("Fetching") for text in told), "what was prepared here is here"
    return url


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distcifar.store.PAUSE_SECONDS", 0.01)
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
        folder_here(MADE_UP, s3.url("half"), str(tmp_path / "b"), prepared.folder, silent)


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
