"""FFCV's own CIFAR pipeline (as documented: flip, translate, normalise on the CPU) before the plain training loop.

    python ffcv_pipeline.py REQUEST.json

Reads the betons that distcifar prepared; the net, optimizer, schedule and loop are those of plain.py, in channels_last
and with mixed precision on a GPU, as FFCV's example has it.
"""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import plain
import torch


def loader(request: dict, split: str, *, shuffle: bool) -> Any:
    threads = torch.get_num_threads()
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.ndarray import NDArrayDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, RandomTranslate, Squeeze, ToTensor, ToTorchImage

    augment = request["recipe"]["augment"]
    known = {"crop_padding", "crop_fill", "flip"}
    if any(value for name, value in augment.items() if name not in known) or augment["crop_fill"] != "zeros":
        plain.skip("FFCV's own pipeline has crops from black pixels and flips only")
    moves = [RandomHorizontalFlip()] if shuffle and augment["flip"] == "random" else []
    moves += [RandomTranslate(padding=augment["crop_padding"])] if shuffle and augment["crop_padding"] else []
    mean, std = np.array(request["mean"]) * 255, np.array(request["std"]) * 255
    images = [NDArrayDecoder(), *moves, NormalizeImage(mean, std, np.float32), ToTensor(), ToTorchImage()]
    found = Loader(
        str(Path(request["betons"]) / f"{split}.beton"),
        batch_size=request["recipe"]["batch_size"] if shuffle else 500,
        num_workers=request["threads"],
        order=OrderOption.RANDOM if shuffle else OrderOption.SEQUENTIAL,
        drop_last=False,
        seed=request["seed"],
        pipelines={"image": images, "label": [IntDecoder(), ToTensor(), Squeeze()]},
    )
    torch.set_num_threads(threads)  # FFCV has set it to one
    return found


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    recipe, epochs = request["recipe"], request["epochs"]
    torch.manual_seed(request["seed"])
    with np.load(request["data"]) as file:
        labels, size, channels = file["train_y"], file["test_x"].shape[1], file["test_x"].shape[3]
        splits = ["val", "test"] if "val_x" in file.files else ["test"]
    train_loader = loader(request, "train", shuffle=True)
    measured = {split: loader(request, split, shuffle=False) for split in splits}
    net = plain.build_net(recipe["model"], channels, size, int(labels.max()) + 1)
    net = net.to(plain.DEVICE).to(memory_format=torch.channels_last)
    optimizer = plain.build_optimizer(net, recipe["optim"])
    scheduler, every = plain.build_schedule(optimizer, recipe["schedule"], epochs, len(train_loader))
    threads, seconds = torch.get_num_threads(), []
    start = time.perf_counter()
    with torch.autocast(plain.DEVICE.type, torch.float16, enabled=plain.DEVICE.type == "cuda"):
        for _ in range(epochs):
            begun = time.perf_counter()
            batches = iter(train_loader)
            torch.set_num_threads(threads)  # each epoch sets it again
            loss = plain.train_epoch(net, batches, optimizer, scheduler, every, recipe["label_smoothing"])
            seconds.append(time.perf_counter() - begun)
            validation = plain.evaluate(net, measured["val"]) if "val" in measured else (loss, math.nan)
            if every == "epoch":
                scheduler.step()
            elif every == "plateau":
                scheduler.step(validation[0])
        accuracy = plain.evaluate(net, measured["test"])[1]
    line = {"peer": "FFCV's own pipeline", "seconds": time.perf_counter() - start, "epochs": epochs}
    print(json.dumps({**line, "accuracy": accuracy, "images": len(labels), "epoch_seconds": seconds}))


if __name__ == "__main__":
    main()
