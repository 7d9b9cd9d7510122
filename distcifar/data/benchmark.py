"""The data path against its peers, in one process and one run: crop 4, flip, normalise to float32 on the CPU.

Peers: the common PyTorch script (PIL images, torchvision transforms, a DataLoader with two workers) and FFCV's
own augmentations (its documentation's CIFAR pipeline with NormalizeImage). All read the same images.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distcifar.config import AugmentConfig
from distcifar.data.beton import read_all, verify
from distcifar.data.loader import TrainLoader
from distcifar.data.manifest import Manifest
from distcifar.data.pixels import PixelPipeline
from distcifar.data.stores import ResidentStore, Store, StreamedStore
from distcifar.world import World

BATCH = 512
DATALOADER_IMAGES = 10_240  # of an epoch: it is thirty times as slow as the rest

Epoch = Callable[[int], Iterator[int]]  # yields the number of images of each batch of epoch e


def compare_loaders(path: Path, *, rounds: int = 5, threads: int = 2) -> list[dict[str, Any]]:
    """Images per second of each path over the beton at `path`: a row each with median, lowest and highest.

    Rounds are interleaved, so that a slow moment of the machine hits all; the first, which compiles, is apart.
    """
    manifest = verify(path)
    images, labels = read_all(path, manifest)
    world = World()
    paths: dict[str, Epoch] = {
        "DataLoader, torchvision transforms": _dataloader(images, labels, manifest, threads),
        "FFCV's own augmentations": _ffcv_augmented(path, manifest, threads),
        "distcifar streamed (FFCV raw + kernel)": _ours(
            StreamedStore(path, manifest.num_samples, world.device, threads), manifest
        ),
        "distcifar resident (kernel)": _ours(ResidentStore(images, labels, world.device), manifest),
    }
    speeds: dict[str, list[float]] = {name: [] for name in paths}
    for round_ in range(rounds + 1):
        for name, epoch in paths.items():
            start = time.perf_counter()
            seen = sum(epoch(round_))
            if round_:
                speeds[name].append(seen / (time.perf_counter() - start))
    return [
        {"path": name, "median": statistics.median(found), "min": min(found), "max": max(found)}
        for name, found in speeds.items()
    ]


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


def _dataloader(images: Any, labels: Any, manifest: Manifest, threads: int) -> Epoch:
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    class Images(Dataset[Any]):
        change = transforms.Compose(
            [
                transforms.RandomCrop(manifest.size, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(manifest.mean, manifest.std),
            ]
        )

        def __len__(self) -> int:
            return min(len(labels), DATALOADER_IMAGES)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return self.change(Image.fromarray(images[index].squeeze())), int(labels[index])

    loader = DataLoader(Images(), batch_size=BATCH, shuffle=True, num_workers=threads, persistent_workers=True)
    return lambda epoch: (len(batch) for batch, _ in loader)
