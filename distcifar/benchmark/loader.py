"""The data path against its peers, in one process and one run: crop 4, flip, normalise to float32 on the CPU.

Peers: the common PyTorch script (PIL images, torchvision transforms, a DataLoader with two workers), the same with
torchvision's newer tensor transforms, and FFCV's own augmentations (its documentation's CIFAR pipeline with
NormalizeImage). All read the same images.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distcifar.benchmark.place import DATALOADER_WORKERS, Place
from distcifar.benchmark.results import Comparison, lines_of
from distcifar.benchmark.rounds import Side, by_turns
from distcifar.config import AugmentConfig, DataConfig
from distcifar.data.beton import read_all
from distcifar.data.loader import TrainLoader
from distcifar.data.manifest import Manifest
from distcifar.data.pixels import PixelPipeline
from distcifar.data.stores import ResidentStore, Store, StreamedStore
from distcifar.world import World

BATCH = 512
DATALOADER_IMAGES = 10_240  # of an epoch: it is thirty times as slow as the rest
PLAIN, FFCV = "DataLoader, PIL, torchvision transforms", "FFCV's own flip, translate, NormalizeImage"

Epoch = Callable[[int], Iterator[int]]  # yields the number of images of each batch of epoch e


def loader(place: Place) -> list[Comparison]:
    """Images per second of each path over the training images."""
    prepared = place.prepare(DataConfig(dataset="synthetic", validation=256) if place.settings.quick else place.data)
    path, manifest, threads = prepared.train, prepared.manifest, place.threads
    images, labels = read_all(path, manifest)
    world = World()
    workers = min(DATALOADER_WORKERS, threads)
    paths: dict[str, Epoch] = {
        PLAIN: _dataloader(images, labels, manifest, workers, tensors=False),
        "DataLoader, v2 tensor transforms": _dataloader(images, labels, manifest, workers, tensors=True),
        FFCV: _ffcv_augmented(path, manifest, threads),
        "distcifar streamed: FFCV raw + kernel": _ours(
            StreamedStore(path, manifest.num_samples, world.device, threads), manifest
        ),
        "distcifar resident: kernel": _ours(ResidentStore(images, labels, world.device), manifest),
    }
    sides = {name: _images_per_second(epoch) for name, epoch in paths.items()}
    found = by_turns(sides, place.settings.rounds, title="loader")
    notes = (f"{manifest.num_samples:,} images, batch {BATCH}, {threads} thread(s), {workers} DataLoader worker(s).",)
    return [Comparison("Data path", "images/s", lines_of(found), baseline=PLAIN, notes=notes)]


def _images_per_second(epoch: Epoch) -> Side:
    def measure(number: int) -> float:
        start = time.perf_counter()
        return sum(epoch(number)) / (time.perf_counter() - start)

    return measure


def _ours(store: Store, manifest: Manifest) -> Epoch:
    config = AugmentConfig(crop_padding=4, flip="random")
    pixels = PixelPipeline(
        config, 0, manifest.size, manifest.num_samples, manifest.mean, manifest.std, torch.device("cpu")
    )
    loader = TrainLoader(store, pixels, BATCH, 0, World())
    return lambda epoch: (len(batch.images) for batch in loader.batches(epoch))


def _ffcv_augmented(path: Path, manifest: Manifest, threads: int) -> Epoch:
    before = torch.get_num_threads()
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.ndarray import NDArrayDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, RandomTranslate, ToTensor, ToTorchImage

    torch.set_num_threads(before)
    mean, std = np.array(manifest.mean) * 255, np.array(manifest.std) * 255
    loader = Loader(
        str(path),
        batch_size=BATCH,
        num_workers=threads,
        order=OrderOption.RANDOM,
        drop_last=False,
        pipelines={
            "image": [
                NDArrayDecoder(),
                RandomHorizontalFlip(),
                RandomTranslate(padding=4),
                NormalizeImage(mean, std, np.float32),
                ToTensor(),
                ToTorchImage(),
            ],
            "label": [IntDecoder(), ToTensor()],
        },
    )
    return lambda epoch: (len(images) for images, _ in loader)


def _dataloader(images: Any, labels: Any, manifest: Manifest, workers: int, *, tensors: bool) -> Epoch:
    """tensors: transforms on uint8 tensors, without PIL."""
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms
    from torchvision.transforms import v2

    moves = [transforms.RandomCrop(manifest.size, padding=4), transforms.RandomHorizontalFlip()]
    normalise = transforms.Normalize(manifest.mean, manifest.std)
    to_float: list[Any] = [transforms.ToTensor()]
    if tensors:
        moves = [v2.RandomCrop(manifest.size, padding=4), v2.RandomHorizontalFlip()]
        normalise = v2.Normalize(list(manifest.mean), list(manifest.std))
        to_float = [v2.ToDtype(torch.float32, scale=True)]
    change = transforms.Compose([*moves, *to_float, normalise])

    class Images(Dataset[Any]):
        def __len__(self) -> int:
            return min(len(labels), DATALOADER_IMAGES)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            image = images[index]
            shown = torch.from_numpy(image).permute(2, 0, 1) if tensors else Image.fromarray(image.squeeze())
            return change(shown), int(labels[index])

    loader = DataLoader(Images(), batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=True)
    return lambda epoch: (len(batch) for batch, _ in loader)
