"""From prepared files to the loaders of one rank: verified first, resident where they fit."""

import os
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from distcifar.config import Recipe
from distcifar.data.beton import read_all, verify
from distcifar.data.loader import EvalLoader, Loaders, TrainLoader
from distcifar.data.manifest import Manifest
from distcifar.data.pixels import PixelPipeline, normalisation
from distcifar.data.stores import ResidentStore, Store, StreamedStore, decode_all
from distcifar.errors import ResourceError
from distcifar.world import World

RESIDENT_SHARE = 0.25  # of the free memory that resident images may take; the rest is for training
EVALUATION_BATCH = {"cpu": 250, "cuda": 500}  # images at once: only speed and memory depend on it


@dataclass(frozen=True)
class OpenData:
    """The loaders of one rank, and what the training images are."""

    loaders: Loaders
    manifest: Manifest
    mode: str  # resident or streamed


@dataclass(frozen=True)
class OpenStores:
    """Verified images, ready for any recipe on them."""

    stores: dict[str, Store]  # by split
    manifest: Manifest  # of the training images
    mode: str


def open_data(recipe: Recipe, folder: Path, world: World, *, mode: str, threads: int) -> OpenData:
    """Verifies the betons in `folder` and builds loaders over them.

    mode: resident, streamed, or auto (resident if the ranks can afford it). threads: of FFCV's decoding and of
    the CPU kernel. Raises DataError for a damaged file before any pixel of it is used.
    """
    validation = bool(recipe.data.validation)
    return load(open_stores(folder, world, mode=mode, threads=threads, validation=validation), recipe, world)


def open_stores(folder: Path, world: World, *, mode: str, threads: int, validation: bool) -> OpenStores:
    """The images in `folder`, verified; see `open_data`."""
    _use_threads(threads, world)
    splits = ("train", "val", "test") if validation else ("train", "test")
    manifests = {split: verify(folder / f"{split}.beton") for split in splits}
    if mode == "auto":
        mode = "resident" if _fits(manifests, world) else "streamed"
    stores: dict[str, Store] = {}
    for split, manifest in manifests.items():
        path = folder / f"{split}.beton"
        if mode == "resident" and manifest.data.storage == "jpeg":
            stores[split] = ResidentStore(*decode_all(path, manifest, threads), world.device)
        elif mode == "resident":
            stores[split] = ResidentStore(*read_all(path, manifest), world.device)
        else:
            stores[split] = StreamedStore(path, manifest.num_samples, world.device, threads)
    return OpenStores(stores, manifests["train"], mode)


def load(opened: OpenStores, recipe: Recipe, world: World) -> OpenData:
    """Loaders of `recipe` over images that are open."""
    manifest = opened.manifest
    mean, std = normalisation(recipe.data.normalize, manifest.mean, manifest.std)
    pixels = PixelPipeline(recipe.augment, recipe.seed, manifest.size, manifest.num_samples, mean, std, world.device)
    train = TrainLoader(
        opened.stores["train"], pixels, recipe.batch_size, recipe.seed, world, recipe.drop_last, recipe.total_epochs
    )
    measured = {
        split: EvalLoader(store, pixels, EVALUATION_BATCH[world.device.type], world)
        for split, store in opened.stores.items()
        if split != "train"
    }
    loaders = Loaders(train, measured.get("val"), measured["test"], manifest.num_classes)
    return OpenData(loaders, manifest, opened.mode)


def _use_threads(threads: int, world: World) -> None:
    """Lets the CPU kernel use `threads` cores; ResourceError for more than there are, which numba refuses."""
    cores = len(os.sched_getaffinity(0))
    if threads > cores:
        raise ResourceError(
            f"loader_threads is {threads} on a machine of {cores} core(s)",
            "A thread that prepares batches has a core of its own",
            f"Use --loader-threads {cores}, or leave it out",
        )
    if world.device.type == "cpu":
        import numba  # a second: not for a GPU

        # TBB's threads, numba's first choice where it is installed, take the cores from torch's for a while after each
        # batch: 2 to 3 ms a step; OpenMP's 1 ms.
        numba.config.THREADING_LAYER_PRIORITY = ["omp", "workqueue", "tbb"]  # type: ignore[attr-defined]
        of_torch = torch.get_num_threads()
        numba.set_num_threads(threads)
        torch.set_num_threads(of_torch)  # numba has set it to all cores: it is one and the same OpenMP


def _fits(manifests: dict[str, Manifest], world: World) -> bool:
    """Whether a copy of all splits for each rank takes at most RESIDENT_SHARE of the free memory."""
    wanted = sum(manifest.pixel_bytes for manifest in manifests.values())
    if world.device.type == "cuda":
        return wanted <= RESIDENT_SHARE * torch.cuda.mem_get_info(world.device)[0]
    return wanted * world.size <= RESIDENT_SHARE * psutil.virtual_memory().available
