"""Sources: the pixels and labels that they hold arrive unchanged, and what does not fit is told."""

import gzip
import hashlib
import io
import os
import pickle
import tarfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distcifar.config import DataConfig
from distcifar.data import download
from distcifar.data.download import fetch
from distcifar.data.images import channel_statistics
from distcifar.data.manifest import folder_name
from distcifar.data.official import OFFICIAL
from distcifar.data.sources import open_source
from distcifar.errors import DataError

SHARED = Path(__file__).parents[4] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="no real data here")


def read(dataset, tmp_path, source="", max_broken=0.01, **config):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    config = DataConfig(dataset=str(dataset), **config)
    return open_source(config, tmp_path / "root", str(source), max_broken).read(scratch)


def arrays(num_train=20, num_test=10, shape=(8, 8, 3), num_classes=4):
    random = np.random.default_rng(0)
    return {
        "train_x": random.integers(0, 256, (num_train, *shape), dtype=np.uint8),
        "train_y": np.arange(num_train) % num_classes,
        "test_x": random.integers(0, 256, (num_test, *shape), dtype=np.uint8),
        "test_y": np.arange(num_test) % num_classes,
    }


# npz


def test_npz_delivers_its_arrays(tmp_path):
    saved = arrays()
    np.savez(tmp_path / "own.npz", **saved, classes=np.array(["猫", "狗", "鸟", "鱼"]))
    image_set = read(f"npz:{tmp_path}/own.npz", tmp_path)
    np.testing.assert_array_equal(image_set.train.images, saved["train_x"])
    np.testing.assert_array_equal(image_set.test.labels, saved["test_y"])
    assert image_set.train.labels.dtype == np.int64
    assert image_set.class_names == ("猫", "狗", "鸟", "鱼")


def test_npz_without_names_channels_or_test_images(tmp_path):
    saved = arrays(40, shape=(8, 8))
    np.savez(tmp_path / "own.npz", train_x=saved["train_x"], train_y=saved["train_y"].astype(np.uint8))
    image_set = read(f"npz:{tmp_path}/own.npz", tmp_path)
    assert image_set.class_names == ("0", "1", "2", "3")
    assert image_set.train.images.shape == (36, 8, 8, 1)
    assert np.bincount(image_set.test.labels).tolist() == [1, 1, 1, 1]
    assert "4 of its 40 images" in image_set.notes[0]


def test_npz_of_an_official_set_has_its_names(tmp_path):
    np.savez(tmp_path / "copy.npz", **arrays())
    image_set = read("cifar10", tmp_path, source=tmp_path / "copy.npz")
    assert image_set.class_names[:2] == ("airplane", "automobile")


WRONG_ARRAYS = {
    "float32, with NaN from 0 to 1": {"train_x": np.array([0, 1, np.nan], np.float32).reshape(3, 1, 1, 1)},
    "uint16": {"train_x": np.zeros((20, 8, 8, 3), np.uint16)},
    r"shape \[20, 3, 8, 8\].*transpose": {"train_x": np.zeros((20, 3, 8, 8), np.uint8)},
    r"shape \[20, 8, 8, 4\]": {"train_x": np.zeros((20, 8, 8, 4), np.uint8)},
    r"shape \[0, 8, 8, 3\]": {"train_x": np.zeros((0, 8, 8, 3), np.uint8)},
    "20 images and 19 labels": {"train_y": np.arange(19) % 4},
    "labels of train in own.npz are float64": {"train_y": np.full(20, np.nan)},
    r"int64 of shape \[20, 4\]": {"train_y": np.eye(4, dtype=np.int64)[np.arange(20) % 4]},
    "run from -1 to": {"train_y": np.arange(20) % 4 - 1},
    "labels of test in own.npz run from 0 to 9 with 4 classes": {"test_y": np.arange(10)},
    "reach 1000000": {"train_y": np.full(20, 1_000_000)},
    "run from 0 to 3 with 2 classes": {"classes": np.array(["a", "b"])},
    "classes in own.npz is <U1": {"classes": np.array(["a", "a", "b", "c"])},
    "Object arrays cannot be loaded": {"train_y": np.array([{}] * 20, object)},
    "has 'text_y'.*Did you mean 'test_y'": {"text_y": np.zeros(1)},
}


@pytest.mark.parametrize("told", WRONG_ARRAYS)
def test_npz_that_does_not_fit_is_refused(tmp_path, told):
    np.savez(tmp_path / "own.npz", **{**arrays(), **WRONG_ARRAYS[told]})
    with pytest.raises(DataError, match=told):
        read(f"npz:{tmp_path}/own.npz", tmp_path)


def test_npz_with_a_missing_array_is_refused(tmp_path):
    np.savez(tmp_path / "own.npz", train_X=arrays()["train_x"], train_y=arrays()["train_y"])
    with pytest.raises(DataError, match=r"lacks train_x and has 'train_X'.*Did you mean 'train_x'"):
        read(f"npz:{tmp_path}/own.npz", tmp_path)
    saved = arrays()
    for name in ("train_y", "test_y"):
        np.savez(tmp_path / "own.npz", **{key: value for key, value in saved.items() if key != name})
        scratch = tmp_path / name
        scratch.mkdir()
        with pytest.raises(DataError, match=f"lacks {name}"):
            read(f"npz:{tmp_path}/own.npz", scratch)


@pytest.mark.parametrize("content", ["cut", "damaged", "text", "npy", "missing"])
def test_npz_that_is_none_is_refused(tmp_path, content):
    path = tmp_path / "own.npz"
    np.savez_compressed(path, **arrays())
    whole = path.read_bytes()
    damaged = whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:]
    bare = io.BytesIO()
    np.save(bare, np.zeros(3))
    contents = {"cut": whole[:3000], "damaged": damaged, "text": b"no", "npy": bare.getvalue()}
    path.write_bytes(contents.get(content, b""))
    if content == "missing":
        path.unlink()
    with pytest.raises(DataError, match=r"own\.npz cannot be read"):
        read(f"npz:{path}", tmp_path)


# directories


def save_image(path, size=(8, 6), mode="RGB", seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def test_a_directory_with_train_and_test(tmp_path):
    pixels = {
        name: save_image(tmp_path / "set" / name, seed=seed)
        for seed, name in enumerate(["train/猫/b.png", "train/猫/a.png", "train/dog/deep/c.PNG", "test/猫/d.png"])
    }
    save_image(tmp_path / "set/test/dog/e.png")
    (tmp_path / "set/train/dog/readme.txt").write_text("no image")
    (tmp_path / "set/train/dog/.hidden.png").write_text("no image")
    image_set = read(tmp_path / "set", tmp_path)
    assert image_set.class_names == ("dog", "猫")
    assert image_set.train.labels.tolist() == [0, 1, 1]
    expected = [pixels[name] for name in ("train/dog/deep/c.PNG", "train/猫/a.png", "train/猫/b.png")]
    np.testing.assert_array_equal(image_set.train.images, expected)
    np.testing.assert_array_equal(image_set.test.images[1], pixels["test/猫/d.png"])
    assert "1 files" in image_set.notes[0]


def test_a_directory_without_test_gives_a_tenth(tmp_path):
    for index in range(30):
        save_image(tmp_path / "set" / "ab"[index % 2] / f"{index}.png", mode="L")
    image_set = read(tmp_path / "set", tmp_path)
    assert image_set.train.images.shape == (27, 6, 8, 1)
    assert "3 of its 30 images" in image_set.notes[0]


def test_val_stands_in_for_test(tmp_path):
    for name in ("train/a/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png"):
        save_image(tmp_path / "set" / name)
    image_set = read(tmp_path / "set", tmp_path)
    assert len(image_set.test) == 2
    assert "its val folder is the test split" in image_set.notes[0]


def test_grey_palette_alpha_and_orientation(tmp_path):
    folder = tmp_path / "set"
    grey = save_image(folder / "a/1.png", mode="L")
    alpha = save_image(folder / "a/2.png", mode="RGBA")
    upright = save_image(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to look at it
    (folder / "b").mkdir()
    Image.fromarray(np.rot90(upright).copy()).save(folder / "b/3.png", exif=exif)
    palette = Image.fromarray(upright).quantize(16)
    palette.save(folder / "b/4.png", transparency=0)
    for index in range(5, 14):
        save_image(folder / f"b/{index:02}.png")
    image_set = read(folder, tmp_path)
    everything = np.concatenate([image_set.train.images, image_set.test.images])
    assert everything.shape == (13, 6, 8, 3)
    expected = [np.stack([grey] * 3, -1), alpha[..., :3], upright, np.asarray(palette.convert("RGB"))]
    for pixels in expected:
        assert (everything == pixels).all(axis=(1, 2, 3)).any()


def test_mixed_sizes_need_a_size(tmp_path):
    for index, size in enumerate([(8, 8), (8, 8), (30, 20), (9, 40)]):
        save_image(tmp_path / "set" / f"train/{'ab'[index % 2]}/{index}.png", size)
        save_image(tmp_path / "set" / f"test/{'ab'[index % 2]}/{index}.png", size)
    with pytest.raises(DataError, match=r"3 sizes: 8 x 8 \(4\), .*--size 8"):
        read(tmp_path / "set", tmp_path)
    (tmp_path / "scratch").rmdir()
    image_set = read(tmp_path / "set", tmp_path, size=8)
    assert image_set.train.images.shape == (4, 8, 8, 3)
    with Image.open(tmp_path / "set/train/a/0.png") as same:
        np.testing.assert_array_equal(image_set.train.images[0], np.asarray(same))


def test_broken_images_are_left_out_and_told_up_to_a_limit(tmp_path):
    folder = tmp_path / "set"
    pixels = [save_image(folder / "train" / "ab"[i % 2] / f"{i:02}.png", (32, 32), seed=i) for i in range(20)]
    for name in "ab":
        save_image(folder / "test" / name / "x.png", (32, 32))
    whole = (folder / "train/a/02.png").read_bytes()
    (folder / "train/a/02.png").write_bytes(whole[: len(whole) // 2])
    (folder / "train/b/03.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 22 .*02\.png.*--max-broken 0\.1"):
        read(folder, tmp_path)
    (tmp_path / "scratch").rmdir()
    image_set = read(folder, tmp_path, max_broken=0.1)
    assert [path for path, _ in image_set.broken] == ["train/a/02.png", "train/b/03.png"]
    kept = [*range(0, 2, 2), *range(4, 20, 2), 1, *range(5, 20, 2)]
    np.testing.assert_array_equal(image_set.train.images, [pixels[index] for index in kept])


def test_sixteen_bits_are_told_and_not_squeezed(tmp_path):
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / "set" / name).parent.mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "set" / name)
    with pytest.raises(DataError, match=r"2 of 2 .*mode is I;16"):
        read(tmp_path / "set", tmp_path)


def test_directories_of_another_shape_are_refused(tmp_path):
    save_image(tmp_path / "one/a/1.png")
    with pytest.raises(DataError, match="1 class folders"):
        open_source(DataConfig(dataset=f"{tmp_path}/one"), tmp_path).digest()
    for name in ("train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png"):
        save_image(tmp_path / "two" / name)
    with pytest.raises(DataError, match="differ in the class folders b, c"):
        open_source(DataConfig(dataset=f"{tmp_path}/two"), tmp_path).digest()
    (tmp_path / "two/train/b/1.png").unlink()
    with pytest.raises(DataError, match="holds no image"):
        open_source(DataConfig(dataset=f"{tmp_path}/two"), tmp_path).digest()
    with pytest.raises(DataError, match="cannot be read: No such file"):
        open_source(DataConfig(dataset=f"{tmp_path}/three"), tmp_path).digest()
    (tmp_path / "four" / os.fsdecode(b"\xff")).mkdir(parents=True)  # a name that is no UTF-8
    with pytest.raises(DataError, match="Rename it"):
        open_source(DataConfig(dataset=f"{tmp_path}/four"), tmp_path).digest()


def test_a_directorys_digest_follows_names_and_contents(tmp_path):
    def digest():
        return open_source(DataConfig(dataset=f"{tmp_path}/set"), tmp_path).digest()

    save_image(tmp_path / "set/a/1.png")
    save_image(tmp_path / "set/b/2.png")
    digests = [digest(), digest()]
    save_image(tmp_path / "set/b/2.png", seed=1)
    digests.append(digest())
    (tmp_path / "set/b/2.png").rename(tmp_path / "set/b/3.png")
    digests.append(digest())
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


# official sets


@contextmanager
def server(content, *, cut=(), ranges=True):
    """Serves `content`, closing the connection of request i after cut[i] bytes; yields (url, log of ranges)."""
    log = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked = self.headers.get("Range")
            log.append(asked)
            start = int(asked[6:-1]) if asked and ranges else 0
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            stop = start + cut[len(log) - 1] if len(log) <= len(cut) else None
            self.wfile.write(content[start:stop])

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/file", log
        http.shutdown()
        thread.join()


CONTENT = bytes(range(256)) * 4000
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    pauses = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    return pauses


def test_a_download_goes_on_where_it_broke_off(tmp_path, pauses):
    with server(CONTENT, cut=(300_000, 400_000)) as (url, log):
        fetch([url], tmp_path / "file", MD5)
        assert log == [None, "bytes=300000-", "bytes=700000-"]
        fetch([url], tmp_path / "file", MD5)  # is there: nothing is asked
        assert len(log) == 3
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert pauses == [1, 2]


def test_a_download_goes_on_in_the_next_call(tmp_path):
    with server(CONTENT, cut=(100, 100, 100)) as (url, log):
        with pytest.raises(DataError, match="goes on from byte 300"):
            fetch([url], tmp_path / "file", MD5)
        assert not (tmp_path / "file").exists()
        fetch([url], tmp_path / "file", MD5)
        assert log[3] == "bytes=300-"
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_anew(tmp_path):
    with server(CONTENT, cut=(300_000,), ranges=False) as (url, _):
        fetch([url], tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_wrong_content_is_never_taken(tmp_path):
    with server(b"not the file") as (url, log), pytest.raises(DataError, match="another md5"):
        fetch([url], tmp_path / "file", MD5)
    assert len(log) == 3
    assert [path.name for path in tmp_path.iterdir()] == [".file.lock"]


def test_the_next_mirror_is_tried(tmp_path):
    with server(CONTENT) as (url, _):
        fetch(["http://127.0.0.1:9/file", url], tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize(("name", "form"), [("cifar10", "file"), ("mnist", "folder")])
def test_without_a_network_one_message_says_what_to_bring(tmp_path, monkeypatch, name, form):
    from torchvision import datasets

    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(DataError, match=r"could not be downloaded .*Connection refused.*md5") as caught:
        read(name, tmp_path)
    assert f"Or bring {' '.join(OFFICIAL[name].files)} from elsewhere" in caught.value.remedy
    assert f"give the {form} as --source" in caught.value.remedy


@pytest.fixture
def small_cifar(tmp_path, monkeypatch):
    """torchvision's CIFAR10 for an archive of 6 images in its format; gives (archive, images, reader)."""
    from torchvision import datasets

    images = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    entries = {
        name: {"data": images[index : index + 1].reshape(1, -1), "labels": [index]}
        for index, name in enumerate(["data_batch_1", "data_batch_2", "test_batch"])
    }
    entries["batches.meta"] = {"label_names": list(OFFICIAL["cifar10"].class_names)}
    md5s = {}
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, entry in entries.items():
            content = pickle.dumps(entry)
            md5s[name] = hashlib.md5(content).hexdigest()
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))

    class SmallCIFAR10(datasets.CIFAR10):
        train_list = [[name, md5s[name]] for name in ("data_batch_1", "data_batch_2")]  # noqa: RUF012
        test_list = [["test_batch", md5s["test_batch"]]]  # noqa: RUF012
        meta = {"filename": "batches.meta", "key": "label_names", "md5": md5s["batches.meta"]}  # noqa: RUF012
        tgz_md5 = hashlib.md5(archive.read_bytes()).hexdigest()

    monkeypatch.setattr(datasets, "CIFAR10", SmallCIFAR10)
    return archive, images.transpose(0, 2, 3, 1), SmallCIFAR10


@pytest.mark.parametrize("form", ["archive", "folder with it", "unpacked", "root of unpacked", "download"])
def test_cifar_is_read_by_torchvision_from_every_form(tmp_path, small_cifar, form):
    archive, images, reader = small_cifar
    (tmp_path / "there").mkdir()
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "there")
    forms = {
        "archive": archive,
        "folder with it": tmp_path,
        "unpacked": tmp_path / "there/cifar-10-batches-py",
        "root of unpacked": tmp_path / "there",
        "download": "",
    }
    with server(archive.read_bytes(), cut=(500,)) as (url, _):
        reader.url = url
        image_set = read("cifar10", tmp_path, source=forms[form])
    np.testing.assert_array_equal(image_set.train.images, images[:2])
    np.testing.assert_array_equal(image_set.test.images, images[2:3])
    assert image_set.train.labels.tolist() == [0, 1]


def test_a_damaged_archive_is_refused(tmp_path, small_cifar):
    archive = small_cifar[0]
    whole = archive.read_bytes()
    for number, content in enumerate([whole[:2000], b"nothing", whole[:4000] + b"\0\0" + whole[4002:]]):
        archive.write_bytes(content)
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(DataError, match="is not the official cifar10"):
            read("cifar10", folder, source=archive)


def test_other_files_under_the_official_names_are_refused(tmp_path):
    for name in OFFICIAL["mnist"].files:
        with gzip.open(tmp_path / name, "w") as file:
            file.write(b"something")
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz has the md5"):
        read("mnist", tmp_path, source=tmp_path)


def test_our_names_of_files_and_classes_are_torchvisions():
    from torchvision import datasets

    for name, official in OFFICIAL.items():
        reader = getattr(datasets, official.reader)
        if name.startswith("cifar"):
            assert (official.files, official.folder) == ((reader.filename,), reader.base_folder)
        else:
            assert official.files == tuple(file for file, _ in reader.resources)
    assert OFFICIAL["fashion-mnist"].class_names == tuple(datasets.FashionMNIST.classes)


@needs_shared
def test_mnist_from_the_official_files(tmp_path):
    image_set = read("mnist", tmp_path, source=SHARED / "mnist")
    assert image_set.train.images.shape == (60000, 28, 28, 1)
    assert image_set.test.images.shape == (10000, 28, 28, 1)
    mean, std = channel_statistics(image_set.train.images)
    assert (round(mean[0], 4), round(std[0], 4)) == (0.1307, 0.3081)  # the published ones
    assert np.bincount(image_set.train.labels).tolist()[:3] == [5923, 6742, 5958]


# synthetic


def test_synthetic_is_the_same_on_every_machine(tmp_path):
    source = open_source(DataConfig(dataset="synthetic"), tmp_path)
    assert source.digest() == "288ea5eacb5edab43d2daa8f53fc138c641558093447e3fd7593281f20732357"
    image_set = source.read(tmp_path)
    assert image_set.train.images.shape == (2048, 32, 32, 3)
    assert np.ptp(np.bincount(image_set.train.labels)) <= 1
    assert np.ptp(np.bincount(image_set.test.labels)) <= 1


def test_synthetic_is_learnt_in_two_epochs(tmp_path):
    import torch
    from torch import nn

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more wait for each other on a busy machine
    image_set = open_source(DataConfig(dataset="synthetic"), tmp_path).read(tmp_path)
    train, test = (
        (torch.from_numpy(part.images).permute(0, 3, 1, 2).float() / 64 - 2, torch.from_numpy(part.labels))
        for part in (image_set.train, image_set.test)
    )
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(2048, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(2):
        for batch in torch.randperm(1792).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(train[0][batch]), train[1][batch]).backward()
            optimizer.step()
    net.eval()
    torch.set_num_threads(threads)
    assert (net(test[0]).argmax(1) == test[1]).float().mean() > 0.9


# names


def test_unknown_names_and_sources_are_told(tmp_path):
    with pytest.raises(DataError, match=r"no data set 'cifar1O'.*Did you mean 'cifar10'"):
        open_source(DataConfig(dataset="cifar1O"), tmp_path)
    with pytest.raises(DataError, match="--source x is given for synthetic"):
        open_source(DataConfig(dataset="synthetic"), tmp_path, "x")
    with pytest.raises(DataError, match="does not exist"):
        open_source(DataConfig(dataset="mnist"), tmp_path, f"{tmp_path}/nowhere")
    with pytest.raises(DataError, match="does not hold mnist"):
        open_source(DataConfig(dataset="mnist"), tmp_path, str(tmp_path)).digest()


def test_folder_names_tell_what_decides_the_files(tmp_path):
    names = {
        folder_name(DataConfig(dataset=dataset, **options))
        for dataset in ("cifar10", "npz:some/own.npz", "pictures", "/some/pictures/", "猫 狗/")
        for options in ({"normalize": "none"}, {"train_first": 10000, "size": 64, "split_seed": 3})
    }
    assert names == {
        f"{dataset}-val5000{options}"
        for dataset in ("cifar10", "npz-own", "folder-pictures", "folder-猫_狗")
        for options in ("", "-first10000-size64-split3")
    }
