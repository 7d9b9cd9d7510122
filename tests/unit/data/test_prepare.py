"""Preparing: the right images in the right split, once, and all or nothing."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distcifar.config import DataConfig
from distcifar.data import images as images_module
from distcifar.data import prepare as prepare_module
from distcifar.data import staging
from distcifar.data.beton import read_all, write_beton
from distcifar.data.images import LabelledImages, channel_statistics
from distcifar.data.prepare import open_prepared, prepare
from distcifar.data.sources import SyntheticSource
from distcifar.data.split import proportional_counts, stratified_indices, train_val_indices
from distcifar.data.summary import statistics_line, summary_table, train_command
from distcifar.errors import DataError, StorageError

SHARED = Path(__file__).parents[4] / "shared" / "data"
SYNTHETIC = DataConfig(dataset="synthetic", validation=256)


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A root with the synthetic set."""
    root = tmp_path_factory.mktemp("origin")
    prepare(SYNTHETIC, root, announce=print)
    return root


@pytest.fixture
def root(origin, tmp_path):
    """A copy of it to spoil."""
    shutil.copytree(origin, tmp_path / "root")
    return tmp_path / "root"


def save_npz(path, num_train=400, num_test=40, num_classes=4, seed=0):
    random = np.random.default_rng(seed)
    arrays = {
        "train_x": random.integers(0, 256, (num_train, 8, 8, 3), dtype=np.uint8),
        "train_y": random.permutation(num_train) % num_classes,
        "test_x": random.integers(0, 256, (num_test, 8, 8, 3), dtype=np.uint8),
        "test_y": np.arange(num_test) % num_classes,
    }
    np.savez(path, **arrays)
    return arrays


def quietly(config, root, source="", **options):
    return prepare(config, root, source, announce=lambda text: None, **options)


def left_over(root):
    return [path.name for path in root.iterdir() if not path.name.endswith(".lock")]


def contents(prepared, split):
    return read_all(prepared.folder / f"{split}.beton", prepared.manifests[split])


# splits are pure functions

classes = st.lists(st.integers(0, 300), min_size=1, max_size=12).filter(sum)


@given(counts=classes, share=st.floats(0, 1))
def test_proportional_counts_are_as_near_as_whole_numbers_can_be(counts, share):
    counts = np.array(counts)
    total = int(share * counts.sum())
    chosen = proportional_counts(counts, total)
    assert chosen.sum() == total
    assert (chosen <= counts).all()
    assert (np.abs(chosen - counts * total / counts.sum()) < 1).all()


@settings(max_examples=50)
@given(counts=classes, share=st.floats(0, 1), seed=st.integers(0, 2**63 - 1))
def test_stratified_indices_are_sorted_different_and_repeatable(counts, share, seed):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    total = int(share * len(labels))
    indices = stratified_indices(labels, total, seed)
    assert len(indices) == total
    assert (np.diff(indices) > 0).all()
    np.testing.assert_array_equal(indices, stratified_indices(labels, total, seed))
    expected = proportional_counts(np.bincount(labels), total)
    np.testing.assert_array_equal(np.bincount(labels[indices], minlength=len(expected)), expected)


@settings(max_examples=50)
@given(counts=classes.filter(lambda counts: sum(counts) > 4), seed=st.integers(0, 9), first=st.booleans())
def test_training_and_validation_share_nothing(counts, seed, first):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    validation = len(labels) // 4
    train_first = len(labels) // 2 if first else 0
    train, val = train_val_indices(labels, validation, train_first, seed)
    assert len(val) == validation
    assert not np.intersect1d(train, val).size
    if first:
        np.testing.assert_array_equal(train, np.arange(train_first))
    else:
        assert len(train) + len(val) == len(labels)


def test_the_split_is_that_of_yesterday():
    assert stratified_indices(np.arange(1000) % 10, 50, 0)[:5].tolist() == [0, 43, 54, 66, 69]


@pytest.mark.parametrize(
    ("validation", "train_first", "told"),
    [(400, 0, "At most 399"), (101, 300, "first 300 .* At most 100"), (0, 401, "train_first is 401")],
)
def test_too_few_images_are_told(validation, train_first, told):
    with pytest.raises(DataError, match=told):
        train_val_indices(np.arange(400) % 4, validation, train_first, 0)


def test_channel_statistics_are_numpys():
    images = np.random.default_rng(0).integers(0, 200, (5000, 3, 4, 3), dtype=np.uint8)
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std(axis=(0, 1, 2)), rtol=1e-12)


# what is written


def test_splits_hold_the_sources_images(origin):
    prepared = open_prepared(SYNTHETIC, origin)
    image_set = SyntheticSource().read(Path())
    train, val = train_val_indices(image_set.train.labels, 256, 0, 0)
    for split, indices in (("train", train), ("val", val)):
        images, labels = contents(prepared, split)
        np.testing.assert_array_equal(images, image_set.train.images[indices])
        np.testing.assert_array_equal(labels, image_set.train.labels[indices])
    np.testing.assert_array_equal(contents(prepared, "test")[0], image_set.test.images)
    manifest = prepared.manifest
    assert (manifest.num_samples, manifest.channels, manifest.size, manifest.num_classes) == (1792, 3, 32, 10)
    assert (manifest.mean, manifest.std) == channel_statistics(image_set.train.images[train])
    assert {m.mean for m in prepared.manifests.values()} == {manifest.mean}
    assert prepared.val == origin / "synthetic-val256/val.beton"


def test_train_first_takes_the_first_and_validates_on_the_rest(tmp_path):
    arrays = save_npz(tmp_path / "own.npz")
    config = DataConfig(dataset=f"npz:{tmp_path}/own.npz", validation=40, train_first=100, split_seed=2)
    prepared = quietly(config, tmp_path)
    assert prepared.folder.name == "npz-own-val40-first100-split2"
    images, _ = contents(prepared, "train")
    np.testing.assert_array_equal(images, arrays["train_x"][:100])
    val_labels = contents(prepared, "val")[1]
    expected = proportional_counts(np.bincount(arrays["train_y"][100:]), 40)
    assert np.bincount(val_labels).tolist() == expected.tolist()


def test_without_validation_there_is_no_val_beton(tmp_path):
    save_npz(tmp_path / "own.npz")
    prepared = quietly(DataConfig(dataset=f"npz:{tmp_path}/own.npz", validation=0), tmp_path)
    assert prepared.val is None
    assert not (prepared.folder / "val.beton").exists()
    assert prepared.manifest.num_samples == 400
    assert open_prepared(prepared.manifest.data, tmp_path).digest == prepared.digest


def test_size_resizes_every_source(tmp_path):
    save_npz(tmp_path / "own.npz")
    prepared = quietly(DataConfig(dataset=f"npz:{tmp_path}/own.npz", validation=4, size=16), tmp_path)
    assert contents(prepared, "test")[0].shape == (40, 16, 16, 3)


def test_images_that_are_not_square_need_a_size(tmp_path):
    images = np.zeros((40, 8, 6), np.uint8)
    np.savez(tmp_path / "own.npz", train_x=images, train_y=np.arange(40) % 2)
    with pytest.raises(DataError, match=r"6 x 8 pixels with 1 channel.*--size 6"):
        quietly(DataConfig(dataset=f"npz:{tmp_path}/own.npz", validation=4), tmp_path)
    assert left_over(tmp_path) == ["own.npz"]


def test_a_class_without_training_images_is_told(tmp_path):
    images = np.zeros((40, 8, 8, 1), np.uint8)
    saved = {"train_x": images, "train_y": np.arange(40) // 20, "test_x": images, "test_y": np.arange(40) % 2}
    np.savez(tmp_path / "own.npz", **saved)
    with pytest.raises(DataError, match="No training image shows 1"):
        quietly(DataConfig(dataset=f"npz:{tmp_path}/own.npz", validation=4, train_first=20), tmp_path)


def test_broken_images_are_written_down(tmp_path):
    for index in range(30):
        path = tmp_path / "set" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), index, np.uint8)).save(path)
    (tmp_path / "set/a/4.png").write_bytes(b"no image")
    said = []
    config = DataConfig(dataset=f"{tmp_path}/set", validation=4)
    prepared = prepare(config, tmp_path / "root", announce=said.append, max_broken=0.05)
    quarantine = json.loads((prepared.folder / "quarantine.json").read_text())
    assert [entry["path"] for entry in quarantine["broken"]] == ["a/4.png"]
    assert "1 images cannot be decoded" in said[-1]
    assert sum(manifest.num_samples for manifest in prepared.manifests.values()) == 29
    pixels = np.concatenate([contents(prepared, split)[0][:, 0, 0, 0] for split in ("train", "val", "test")])
    assert sorted(pixels) == [index for index in range(30) if index != 4]


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="no real data here")
def test_cifar10_from_the_shared_file(tmp_path):
    source = SHARED / "cifar10.npz"
    prepared = quietly(DataConfig(), tmp_path, str(source))
    with np.load(source) as file:
        arrays = {name: file[name] for name in file.files}
    train, val = train_val_indices(arrays["train_y"].astype(np.int64), 5000, 0, 0)
    for split, part, indices in (("train", "train", train), ("val", "train", val), ("test", "test", slice(None))):
        images, labels = contents(prepared, split)
        np.testing.assert_array_equal(images, arrays[f"{part}_x"][indices])
        np.testing.assert_array_equal(labels, arrays[f"{part}_y"][indices])
    assert prepared.manifests["val"].class_counts == (500,) * 10
    np.testing.assert_allclose(prepared.manifest.mean, (0.4914, 0.4822, 0.4465), atol=2e-4)  # of all 50,000
    np.testing.assert_allclose(prepared.manifest.std, (0.2470, 0.2435, 0.2616), atol=2e-4)


# once


def test_a_second_prepare_reads_and_writes_nothing(root, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.beton*")}
    monkeypatch.setattr(prepare_module, "write_beton", None)
    first = quietly(SYNTHETIC, root)
    assert first.digest == quietly(SYNTHETIC, root).digest
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*.beton*")}


def test_what_is_prepared_needs_neither_source_nor_write_permission(tmp_path, monkeypatch):
    save_npz(tmp_path / "own.npz")
    config = DataConfig(dataset=f"npz:{tmp_path}/own.npz", validation=4)
    digest = quietly(config, tmp_path).digest
    (tmp_path / "own.npz").unlink()
    monkeypatch.setattr(staging, "FileLock", None)
    said = []
    assert prepare(config, tmp_path, announce=said.append).digest == digest
    assert "is not there: using what was prepared" in said[0]


def test_another_source_is_refused_and_replaced_on_demand(tmp_path):
    config = DataConfig(dataset=f"npz:{tmp_path}/own.npz", validation=4)
    save_npz(tmp_path / "own.npz")
    first = quietly(config, tmp_path)
    save_npz(tmp_path / "own.npz", seed=1)
    with pytest.raises(DataError) as caught:
        quietly(config, tmp_path)
    assert first.manifest.source_digest in caught.value.found
    assert "--repair" in caught.value.remedy
    assert "--root" in caught.value.remedy
    second = quietly(config, tmp_path, repair=True)
    assert second.digest != first.digest
    assert open_prepared(config, tmp_path).digest == second.digest


def test_damage_is_told_with_the_command_that_mends_it(root):
    whole = open_prepared(SYNTHETIC, root).digest
    with (root / "synthetic-val256/val.beton").open("r+b") as file:
        file.truncate(3_000_000)
    with pytest.raises(DataError) as caught:
        quietly(SYNTHETIC, root)
    assert "bytes 3000000-" in caught.value.found
    command = f"python jobs/prepare.py synthetic --root {root} --validation 256 --repair"
    assert command in caught.value.remedy
    said = []
    assert prepare(SYNTHETIC, root, announce=said.append, repair=True).digest == whole
    assert ["val.beton is damaged" in text for text in said] == [True, False]
    assert quietly(SYNTHETIC, root, repair=True).digest == whole  # whole again: nothing to do


def test_the_repair_command_knows_the_source(tmp_path):
    save_npz(tmp_path / "copy.npz", num_classes=10)
    config = DataConfig(dataset="cifar10", validation=40)
    prepared = quietly(config, tmp_path, str(tmp_path / "copy.npz"))
    (prepared.folder / "train.beton").unlink()
    with pytest.raises(DataError, match=f"cifar10 --source {tmp_path}/copy.npz"):
        quietly(config, tmp_path)


def test_folders_that_were_mixed_or_renamed_are_refused(root, tmp_path):
    other = replace(SYNTHETIC, split_seed=1)
    (root / "synthetic-val256").rename(root / "synthetic-val256-split1")
    with pytest.raises(DataError, match="was prepared for synthetic-val256 from synthetic"):
        open_prepared(other, root)


# all or nothing


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError(errno.ENOSPC, "No space left")])
@pytest.mark.parametrize("step", ["write_beton", "seal", "write_json", "sync_folder"])
def test_nothing_is_left_of_what_fails(tmp_path, monkeypatch, error, step):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(prepare_module, "write_beton", lambda path, *arrays, rows: path.write_bytes(b"something"))
    monkeypatch.setattr(SyntheticSource, "read", with_a_broken_image(SyntheticSource.read))
    monkeypatch.setattr(staging if step == "sync_folder" else prepare_module, step, fail)
    expected = StorageError if isinstance(error, OSError) else error
    with pytest.raises(expected):
        quietly(SYNTHETIC, tmp_path / "root")
    assert left_over(tmp_path / "root") == []


def with_a_broken_image(read):
    return lambda source, scratch: replace(read(source, scratch), broken=(("a.png", "broken"),))


def test_a_failed_repair_keeps_what_was_there(root, monkeypatch):
    (root / "synthetic-val256/val.beton").unlink()
    before = sorted(path.name for path in (root / "synthetic-val256").iterdir())
    monkeypatch.setattr(prepare_module, "seal", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        quietly(SYNTHETIC, root, repair=True)
    assert sorted(path.name for path in (root / "synthetic-val256").iterdir()) == before


def test_too_little_space_is_told_before_writing(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(prepare_module, "write_beton", None)
    with pytest.raises(StorageError, match=r"has 1 MB free\. 17 MB are needed"):
        quietly(SYNTHETIC, tmp_path / "root")
    assert left_over(tmp_path / "root") == []


def test_a_root_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be used: Not a directory"):
        quietly(SYNTHETIC, tmp_path / "file/root")


def in_a_child(target, *args):
    """Runs target in a forked process, which has ffcv imported already."""
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    return process


def wait_for(path):
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("seen", ["scratch", "ready/train.beton", "ready/val.beton"])
def test_a_killed_prepare_leaves_nothing_that_is_taken_for_good(origin, tmp_path, seen):
    write_beton(tmp_path / "warm.beton", np.zeros((1, 4, 4, 1), np.uint8), np.zeros(1, np.int64))  # imports ffcv
    root = tmp_path / "root"
    process = in_a_child(quietly, SYNTHETIC, root)
    wait_for(root / ".synthetic-val256.tmp" / seen)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert open_prepared(SYNTHETIC, root) is None
    assert quietly(SYNTHETIC, root).digest == open_prepared(SYNTHETIC, origin).digest
    assert left_over(root) == ["synthetic-val256"]


def test_two_at_once_write_once(origin, tmp_path):
    processes = [in_a_child(quietly, SYNTHETIC, tmp_path) for _ in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert left_over(tmp_path) == ["synthetic-val256"]
    assert open_prepared(SYNTHETIC, tmp_path).digest == open_prepared(SYNTHETIC, origin).digest


def test_who_waits_for_another_says_so_and_finds_the_work_done(root, monkeypatch):
    folder = root / "synthetic-val256"
    folder.rename(root / "elsewhere")
    lock = FileLock(root / ".synthetic-val256.lock")
    lock.acquire()
    said = []

    def finish(text):
        said.append(text)
        (root / "elsewhere").rename(folder)
        lock.release()

    monkeypatch.setattr(prepare_module, "write_beton", None)
    assert prepare(SYNTHETIC, root, announce=finish).manifest.num_samples == 1792
    assert said == [f"Another process is preparing {folder}: waiting for it"]


def test_only_dead_processes_folders_are_swept(root, tmp_path):
    for name in ("dead", "alive"):
        (root / f".{name}.tmp" / "ready").mkdir(parents=True)
    with FileLock(root / ".alive.lock"), staging.staged(root / "new"):
        assert not (root / ".dead.tmp").exists()
        assert (root / ".alive.tmp").exists()


# for people


def test_the_summary_counts_every_class(origin):
    from rich.console import Console

    prepared = open_prepared(SYNTHETIC, origin)
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(summary_table(prepared))
    text = console.export_text()
    assert "pattern 9" in text
    assert "1,792" in text
    assert statistics_line(prepared).startswith("mean 0.50")
    assert train_command(prepared).endswith(f"--data.validation 256 --data-root {origin}")


def test_many_classes_are_summed_up(tmp_path):
    save_npz(tmp_path / "own.npz", num_classes=40)
    prepared = quietly(DataConfig(dataset=f"npz:{tmp_path}/own.npz", validation=40), tmp_path)
    assert summary_table(prepared).row_count == 3


# sets larger than memory

LIMITED = """
import resource, sys
from pathlib import Path
import ffcv, PIL.Image, torch  # what they take is not what is limited
from distcifar.config import DataConfig
from distcifar.data.prepare import prepare

def private_bytes():
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData"))

torch.set_num_threads(1)
resource.setrlimit(resource.RLIMIT_DATA, (private_bytes() + int(sys.argv[2]),) * 2)
prepared = prepare(DataConfig(dataset=sys.argv[1], validation=8, storage="jpeg"), Path("data"), announce=print)
print({split: manifest.num_samples for split, manifest in prepared.manifests.items()})
"""


@pytest.mark.slow
def test_a_directory_may_be_larger_than_memory(tmp_path):
    """450 MB of pixels, with 300 MB for all that is allocated meanwhile: they stay in files."""
    random = np.random.default_rng(0)
    for number in range(150):
        folder = tmp_path / "images" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((1000, 1000)).save(folder / f"{number}.jpg")
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "images"), str(300_000_000)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "{'train': 127, 'val': 8, 'test': 15}"


def test_a_disk_without_room_for_a_directorys_pixels_is_told(tmp_path, monkeypatch):
    for number in range(20):
        folder = tmp_path / "images" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    config = DataConfig(dataset=str(tmp_path / "images"), validation=2)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match=r"No space left.*Free some space"):
        quietly(config, tmp_path / "data")
    assert left_over(tmp_path / "data") == []


def test_splits_share_their_pixels():
    store = np.arange(7 * 2 * 2 * 3, dtype=np.uint8).reshape(7, 2, 2, 3)
    whole = LabelledImages(store, np.arange(7) % 2)
    odd = whole.take(np.array([1, 3, 5])).take(np.array([2, 0]))
    assert odd.store is store
    assert odd.shape == (2, 2, 3)
    np.testing.assert_array_equal(odd.images, store[[5, 1]])
    np.testing.assert_array_equal(odd.labels, [1, 1])
    np.testing.assert_array_equal(np.concatenate(list(odd.parts())), store[[5, 1]])
    assert whole.images is store


def test_parts_are_small_and_together_all(monkeypatch):
    monkeypatch.setattr(images_module, "_PART_BYTES", 25)  # two images of twelve bytes
    store = np.arange(5 * 12, dtype=np.uint8).reshape(5, 2, 2, 3)
    for images in (LabelledImages(store, np.zeros(5)), LabelledImages(store, np.zeros(5), np.array([4, 3, 2, 1, 0]))):
        parts = list(images.parts())
        assert [len(part) for part in parts] == [2, 2, 1]
        np.testing.assert_array_equal(np.concatenate(parts), images.images)
