"""JPEG storage: pixels within JPEG's band of the encoder's, alike resident and streamed, sealed like the rest."""

import cv2
import numpy as np
import pytest
import torch

from distcifar.config import DataConfig, Recipe
from distcifar.data.beton import JPEG_QUALITY, file_bytes, read_all
from distcifar.data.build import open_data
from distcifar.data.manifest import folder_name, prepare_command
from distcifar.data.prepare import open_prepared, prepare
from distcifar.data.stores import StreamedStore, decode_all
from distcifar.data.summary import train_command
from distcifar.errors import ConfigError, DataError
from distcifar.world import World

SIDE, TRAIN, TEST = 48, 60, 12


def pictures(count, seed):
    """Smooth colour images, as photographs are: uint8 [count, SIDE, SIDE, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return np.stack([cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) for image in coarse])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("jpeg") / "own.npz"
    arrays = {"train_x": pictures(TRAIN, 0), "test_x": pictures(TEST, 1)}
    np.savez(path, **arrays, train_y=np.arange(TRAIN) % 3, test_y=np.arange(TEST) % 3)
    return path


@pytest.fixture(scope="module")
def config(source):
    return DataConfig(dataset=f"npz:{source}", validation=6, storage="jpeg")


@pytest.fixture(scope="module")
def prepared(source, config):
    return prepare(config, source.parent, announce=print)


@pytest.fixture(scope="module")
def decoded(prepared):
    """The test split, whose order is the source's."""
    return decode_all(prepared.test, prepared.manifests["test"], 1)


def encoded_by_opencv(image):
    """The image after OpenCV's own JPEG of our quality, and its bytes."""
    ok, jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert ok
    return cv2.imdecode(jpeg, cv2.IMREAD_COLOR)[..., ::-1].astype(int), jpeg.tobytes()


def test_the_pixels_are_those_of_the_jpegs_and_near_those_of_the_source(decoded):
    """The stored JPEG is OpenCV's; FFCV decodes it with faster, coarser cosines and colours: 12 units apart at most."""
    images, labels = decoded
    originals = pictures(TEST, 1)
    assert images.shape == originals.shape
    assert labels.tolist() == (np.arange(TEST) % 3).tolist()
    for image, original in zip(images.astype(int), originals.astype(int), strict=True):
        theirs, _ = encoded_by_opencv(original.astype(np.uint8))
        assert np.abs(image - theirs).max() <= 16
        assert np.abs(image - theirs).mean() < 2.5
        assert np.abs(image - original).mean() < np.abs(theirs - original).mean() + 1.5


def test_the_file_holds_opencvs_jpegs_and_is_smaller(prepared):
    content = prepared.test.read_bytes()
    for original in pictures(TEST, 1):
        _, jpeg = encoded_by_opencv(original)
        assert jpeg in content
        assert len(jpeg) < original.nbytes / 2
    assert prepared.manifests["train"].size_bytes <= file_bytes(TRAIN, SIDE * SIDE * 3, "jpeg")
    assert prepared.manifest.pixel_bytes == (TRAIN - 6) * SIDE * SIDE * 3


@pytest.mark.parametrize("threads", [1, 2])
def test_streamed_images_are_the_resident_ones_in_any_order(prepared, threads):
    manifest = prepared.manifest
    images, labels = decode_all(prepared.train, manifest, 1)
    assert np.bincount(labels).tolist() == list(manifest.class_counts)
    store = StreamedStore(prepared.train, manifest.num_samples, torch.device("cpu"), threads)
    ids = np.random.default_rng(2).permutation(manifest.num_samples)
    batches = [ids[start : start + 16] for start in range(0, len(ids), 16)]
    for batch, (pixels, rows, found) in zip(batches, store.fetch(batches), strict=True):
        np.testing.assert_array_equal(pixels[rows].numpy(), images[batch])
        assert found.tolist() == labels[batch].tolist()


@pytest.mark.parametrize("mode", ["resident", "streamed"])
def test_a_recipe_is_given_loaders_over_them(prepared, config, mode, decoded):
    recipe = Recipe(name="x", batch_size=16, data=config)
    data = open_data(recipe, prepared.folder, World(), mode=mode, threads=1)
    pixels = torch.cat([batch.images for batch in data.loaders.test.batches()])
    mean, std = (np.array(values)[:, None, None] for values in (prepared.manifest.mean, prepared.manifest.std))
    expected = (decoded[0].transpose(0, 3, 1, 2) / 255 - mean) / std
    np.testing.assert_allclose(pixels.numpy(), expected, atol=1e-5)


def test_raw_and_jpeg_lie_in_folders_of_their_own_and_commands_say_which(prepared, config, source):
    raw = DataConfig(dataset=config.dataset, validation=6)
    assert prepared.folder.name == folder_name(raw) + "-jpeg"
    assert open_prepared(raw, source.parent) is None
    assert "--storage jpeg" in prepare_command(prepared.manifest.data, source.parent)
    assert "--data.storage jpeg" in train_command(prepared)
    assert "storage" not in prepare_command(raw, source.parent)
    raw_data = prepare(raw, source.parent, announce=print)
    assert raw_data.digest != prepared.digest
    assert raw_data.manifests["train"].size_bytes >= prepared.manifests["train"].size_bytes
    assert Recipe(name="x", data=config).digest() != Recipe(name="x", data=raw).digest()


def test_a_changed_byte_is_found_and_repaired(prepared, config, source, tmp_path):
    import shutil

    shutil.copytree(prepared.folder, tmp_path / prepared.folder.name)
    path = tmp_path / prepared.folder.name / "test.beton"
    content = bytearray(path.read_bytes())
    content[content.index(b"\xff\xd8\xff") + 700] ^= 0x10  # within the first JPEG
    path.write_bytes(content)
    with pytest.raises(DataError, match="changed") as caught:
        open_prepared(config, tmp_path)
    assert "--storage jpeg --repair" in caught.value.remedy
    assert prepare(config, tmp_path, announce=print, repair=True).digest == prepared.digest


def test_a_reader_of_raw_pixels_refuses_jpegs(prepared):
    with pytest.raises(DataError, match="its header says types"):
        read_all(prepared.train, prepared.manifest)


def test_grey_images_are_refused_in_words(tmp_path):
    images = np.zeros((20, 8, 8), np.uint8)
    np.savez(tmp_path / "own.npz", train_x=images, train_y=np.arange(20) % 2, test_x=images, test_y=np.arange(20) % 2)
    config = DataConfig(dataset=f"npz:{tmp_path}/own.npz", validation=4, storage="jpeg")
    with pytest.raises(ConfigError, match=r"grey images.*three channels.*--data\.storage raw"):
        prepare(config, tmp_path, announce=print)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == ["own.npz"]
