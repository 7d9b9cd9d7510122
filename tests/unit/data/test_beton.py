"""Betons: what is written is what is read, and no damage of file or sidecar passes."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from distcifar.config import DataConfig
from distcifar.data.beton import file_bytes, read_all, seal, verify, write_beton
from distcifar.data.manifest import BLOCK_BYTES, Manifest, from_text, sidecar_of, to_text
from distcifar.errors import DataError

REPAIR = "python jobs/prepare.py synthetic --root ROOT --validation 7 --repair"


def draft(images, labels, split="train"):
    _, height, width, channels = images.shape
    return Manifest(
        split=split,
        data=DataConfig(dataset="synthetic", validation=7),
        source="synthetic",
        source_digest="0" * 64,
        class_names=("猫", "dog", "bird"),
        class_counts=tuple(np.bincount(labels, minlength=3).tolist()),
        height=height,
        width=width,
        channels=channels,
        mean=(0.1,) * channels,
        std=(1 / 3,) * channels,
    )


def random_set(shape, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, shape, dtype=np.uint8), random.integers(0, 3, shape[0], dtype=np.int64)


def write_sealed(path, images, labels, split="train"):
    write_beton(path, images, labels)
    return seal(path, draft(images, labels, split))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root") / "synthetic-val7"
    folder.mkdir()
    for seed, split in enumerate(("train", "val")):
        write_sealed(folder / f"{split}.beton", *random_set((900, 32, 32, 3), seed), split)
    return folder


@pytest.fixture
def damaged(folder, tmp_path):
    """A copy of the folder to spoil."""
    copy = tmp_path / "ROOT" / folder.name
    shutil.copytree(folder, copy)
    return copy


def change(path, position, bits):
    with path.open("r+b") as file:
        file.seek(position)
        old = file.read(1)
        file.seek(position)
        file.write(bytes([old[0] ^ bits]))


# what is read is what was written


@pytest.mark.parametrize("shape", [(1, 32, 32, 3), (700, 28, 28, 1), (40, 300, 300, 3), (3, 5, 9, 1)])
def test_read_all_gives_back_what_was_written(tmp_path, shape):
    images, labels = random_set(shape)
    manifest = write_sealed(tmp_path / "train.beton", images, labels)
    assert verify(tmp_path / "train.beton") == manifest
    read, read_labels = read_all(tmp_path / "train.beton", manifest)
    assert read.dtype == np.uint8
    assert read_labels.dtype == np.int64
    np.testing.assert_array_equal(read, images)
    np.testing.assert_array_equal(read_labels, labels)
    assert manifest.size_bytes <= file_bytes(shape[0], images[0].size) <= manifest.size_bytes + (1 << 22)


def test_read_all_equals_ffcvs_own_loader(folder):
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.ndarray import NDArrayDecoder
    from ffcv.loader import Loader, OrderOption

    path = folder / "train.beton"
    images, labels = read_all(path, verify(path))
    pipelines = {"image": [NDArrayDecoder()], "label": [IntDecoder()]}
    options = {"order": OrderOption.SEQUENTIAL, "drop_last": False, "os_cache": True}
    loader = Loader(str(path), batch_size=128, num_workers=1, pipelines=pipelines, **options)
    position = 0
    for batch, batch_labels in loader:
        stop = position + len(batch)
        np.testing.assert_array_equal(batch, images[position:stop])
        np.testing.assert_array_equal(np.ravel(batch_labels), labels[position:stop])
        position = stop
    assert position == len(images) == 900


def test_the_same_arrays_give_the_same_bytes(folder, tmp_path):
    write_sealed(tmp_path / "train.beton", *random_set((900, 32, 32, 3), 0))
    for name in ("train.beton", "train.beton.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_writing_leaves_torchs_threads_as_they_were(tmp_path):
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    write_beton(tmp_path / "a.beton", *random_set((2, 4, 4, 1)))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)


def test_reading_and_preparing_import_neither_ffcv_nor_torch():
    heavy = {"ffcv", "torch", "torchvision", "PIL", "rich"}
    code = f"import sys, distcifar.data.prepare, distcifar.data.beton; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# no damage passes


def test_100_changed_bytes_are_all_found_with_their_place(damaged):
    path = damaged / "train.beton"
    size = path.stat().st_size
    random = np.random.default_rng(7)
    # half of them where FFCV would crash: header, fields, pointers, labels; the others anywhere
    positions = [*random.integers(0, 2106 + 900 * 16, 50), *random.integers(0, size, 50)]
    for position in map(int, positions):
        bits = int(random.integers(1, 256))
        change(path, position, bits)
        with pytest.raises(DataError) as caught:
            verify(path)
        first = position // BLOCK_BYTES * BLOCK_BYTES
        assert f"bytes {first}-{min(first + BLOCK_BYTES, size) - 1} changed" in caught.value.found
        assert str(path) in caught.value.found
        assert REPAIR.replace("ROOT", str(damaged.parent)) in caught.value.remedy
        change(path, position, bits)
    verify(path)


def test_20_truncations_are_all_found_with_their_place(damaged, folder):
    path = damaged / "train.beton"
    size = path.stat().st_size
    lengths = [0, 1, size - 1, *np.random.default_rng(8).integers(2, size - 1, 17)]
    for length in map(int, lengths):
        shutil.copyfile(folder / "train.beton", path)
        with path.open("r+b") as file:
            file.truncate(length)
        with pytest.raises(DataError, match=f"bytes {length}-{size - 1} are missing"):
            verify(path)


def test_every_changed_byte_of_a_sidecar_is_found(damaged):
    path = damaged / "train.beton"
    sidecar = sidecar_of(path)
    text = sidecar.read_bytes()
    random = np.random.default_rng(9)
    for position in range(len(text)):
        spoilt = bytearray(text)
        spoilt[position] ^= int(random.integers(1, 256))
        with pytest.raises(DataError, match="is damaged"):
            from_text(bytes(spoilt), sidecar, "")
    for length in random.integers(0, len(text), 20):
        sidecar.write_bytes(text[:length])
        with pytest.raises(DataError) as caught:
            verify(path)
        assert str(sidecar) in caught.value.found
        # told from the other sidecar, which is whole
        assert REPAIR.replace("ROOT", str(damaged.parent)) in caught.value.remedy


def test_added_bytes_are_found(damaged):
    path = damaged / "train.beton"
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(DataError, match=f"bytes {size}-{size} are too many"):
        verify(path)


def test_a_sidecar_of_another_beton_is_refused(damaged):
    shutil.copyfile(damaged / "val.beton.json", damaged / "train.beton.json")
    with pytest.raises(DataError, match=r"describes val\.beton"):
        verify(damaged / "train.beton")
    write_sealed(damaged / "train.beton", *random_set((900, 32, 32, 3), 5))
    shutil.copyfile(damaged / "val.beton", damaged / "train.beton")
    with pytest.raises(DataError, match="bytes 0-1048575 changed, bytes"):
        verify(damaged / "train.beton")


def test_a_missing_half_is_told(damaged):
    (damaged / "train.beton").unlink()
    with pytest.raises(DataError, match="cannot be read: No such file"):
        verify(damaged / "train.beton")
    (damaged / "val.beton.json").unlink()
    with pytest.raises(DataError, match=r"val\.beton\.json cannot be read"):
        verify(damaged / "val.beton")
    (damaged / "train.beton.json").unlink()
    with pytest.raises(DataError, match=r"prepare\.py DATASET --root"):
        verify(damaged / "val.beton")


def test_a_later_format_is_refused(folder, tmp_path):
    path = tmp_path / "train.beton"
    text = to_text(replace(verify(folder / "train.beton"), format_version=3))
    sidecar_of(path).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="format version 3"):
        verify(path)


def test_the_same_json_in_another_writing_is_refused(folder, tmp_path):
    text = (folder / "train.beton.json").read_text(encoding="utf-8")
    other = json.dumps(json.loads(text)).encode()
    with pytest.raises(DataError, match="is damaged"):
        from_text(other, tmp_path / "train.beton.json", "")


# files that are whole, but not ours


def ffcv_file(path, fields, samples):
    from ffcv.writer import DatasetWriter

    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(samples)


def test_betons_with_other_fields_are_refused(tmp_path):
    from ffcv.fields import FloatField, IntField, NDArrayField

    images, labels = random_set((5, 4, 4, 3))
    pixels = NDArrayField(np.dtype("uint8"), (4, 4, 3))
    floats = NDArrayField(np.dtype("float32"), (4, 4, 3))
    cases = {
        "types": ({"image": pixels, "label": FloatField()}, images),
        "names": ({"x": pixels, "label": IntField()}, images),
        "pixel": ({"image": floats, "label": IntField()}, images.astype(np.float32)),
    }
    for key, (fields, values) in cases.items():
        path = tmp_path / "train.beton"
        ffcv_file(path, fields, list(zip(values, labels.tolist(), strict=True)))
        manifest = seal(path, draft(images, labels))
        with pytest.raises(DataError, match=f"its header says {key}"):
            read_all(path, manifest)


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"class_counts": (1, 1, 1)}, "header says samples"),
        ({"height": 5}, "header says shape"),
        ({"class_counts": (5, 0, 0)}, "its labels"),
    ],
)
def test_a_manifest_that_contradicts_the_file_is_refused(tmp_path, facts, told):
    images = np.zeros((5, 4, 4, 3), np.uint8)
    labels = np.array([0, 1, 2, 0, 1])
    path = tmp_path / "train.beton"
    write_beton(path, images, labels)
    with pytest.raises(DataError, match=told):
        read_all(path, seal(path, replace(draft(images, labels), **facts)))


def test_pointers_outside_the_file_are_refused(tmp_path):
    images, labels = random_set((5, 4, 4, 3))
    path = tmp_path / "train.beton"
    for pointer in (2**63, 1 << 22):  # behind the end, and in the allocation table
        write_beton(path, images, labels)
        content = np.fromfile(path, np.uint8)
        content[2106:2114] = np.array([pointer], "<u8").view(np.uint8)
        content.tofile(path)
        with pytest.raises(DataError, match="behind its pixels"):
            read_all(path, seal(path, draft(images, labels)))


# the digest names the content


def test_the_digest_changes_with_pixels_labels_and_class_names(folder, tmp_path):
    manifest = verify(folder / "train.beton")
    images, labels = read_all(folder / "train.beton", manifest)
    images[5, 5, 5, 0] ^= 1
    other = write_sealed(tmp_path / "train.beton", images, labels)
    renamed = replace(manifest, class_names=("cat", "dog", "bird"))
    relocated = replace(manifest, source="elsewhere", data=DataConfig())
    assert len({manifest.digest, other.digest, renamed.digest}) == 3
    assert relocated.digest == manifest.digest
