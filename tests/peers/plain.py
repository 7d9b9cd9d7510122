"""The common PyTorch script, as a peer of ours: one file, torchvision's transforms, a DataLoader, eager float32.

    python plain.py REQUEST.json

What is asked and answered: docs/benchmarks.md. Nothing of distcifar is imported. The nets, the optimizer and the
schedule are those of the request's recipe, written as the tutorials write them.
"""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

SKIPPED = 77
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def skip(reason: str) -> None:
    print(reason, file=sys.stderr)
    sys.exit(SKIPPED)


class Images(Dataset):
    def __init__(self, images: np.ndarray, labels: np.ndarray, transform: Any) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def train_transform(augment: dict, size: int, normalise: Any) -> Any:
    known = {"crop_padding", "crop_fill", "flip", "brightness", "contrast", "saturation", "hue", "rotation"}
    others = {name for name, value in augment.items() if name not in known and value}
    if others or augment["flip"] == "alternate":
        skip(f"plain.py does not do {', '.join(sorted(others)) or 'alternating flips'}")
    steps: list[Any] = []
    if augment["crop_padding"]:
        fill = "reflect" if augment["crop_fill"] == "reflect" else "constant"
        steps.append(transforms.RandomCrop(size, padding=augment["crop_padding"], padding_mode=fill))
    if augment["flip"] == "random":
        steps.append(transforms.RandomHorizontalFlip())
    colours = [augment[name] for name in ("brightness", "contrast", "saturation", "hue")]
    if any(colours):
        steps.append(transforms.ColorJitter(*colours))
    if augment["rotation"]:
        steps.append(transforms.RandomRotation(augment["rotation"], transforms.InterpolationMode.BILINEAR))
    return transforms.Compose([*steps, transforms.ToTensor(), normalise])


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


def resnet(model: dict, channels: int, classes: int) -> nn.Module:
    width = model["widths"][0]
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    if model["stem_pool"]:
        layers.append(nn.MaxPool2d(3, 2, 1))
    inputs = width
    for stage, width in enumerate(model["widths"]):
        for block in range(model["blocks"]):
            layers.append(BasicBlock(inputs, width, 2 if stage and not block else 1))
            inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def cnn(model: dict, channels: int, size: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for item in model["layout"]:
        if item == "M":
            layers.append(nn.MaxPool2d(2))
            size //= 2
            continue
        layers.append(nn.Conv2d(channels, int(item), model["kernel"], padding=model["padding"]))
        layers += [nn.BatchNorm2d(int(item))] if model["batchnorm"] else []
        layers.append(nn.ReLU())
        channels, size = int(item), size + 1 - model["kernel"] + 2 * model["padding"]
    layers.append(nn.Flatten())
    width = channels * size * size
    for outputs in model["hidden"]:
        layers += [nn.Linear(width, outputs), nn.ReLU(), nn.Dropout(model["dropout"])]
        width = outputs
    return nn.Sequential(*layers, nn.Linear(width, classes))


def build_net(model: dict, channels: int, size: int, classes: int) -> nn.Module:
    if model["name"] not in ("cnn", "resnet") or model["init"] == "dirac":
        skip(f"plain.py has no {model['name']} with {model['init']} weights")
    net = cnn(model, channels, size, classes) if model["name"] == "cnn" else resnet(model, channels, classes)
    if model["init"] == "xavier":
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
    return net


def build_optimizer(net: nn.Module, optim: dict) -> torch.optim.Optimizer:
    lr, decay = optim["lr"], optim["weight_decay"]
    if optim["name"] == "sgd":
        settings = {"momentum": optim["momentum"], "nesterov": optim["nesterov"]}
        return torch.optim.SGD(net.parameters(), lr=lr, weight_decay=decay, **settings)
    if optim["name"] not in ("adam", "adamw"):
        skip(f"plain.py has no optimizer {optim['name']}")
    kind = torch.optim.Adam if optim["name"] == "adam" else torch.optim.AdamW
    return kind(net.parameters(), lr=lr, betas=tuple(optim["betas"]), weight_decay=decay)


def build_schedule(optimizer: torch.optim.Optimizer, schedule: dict, epochs: int, steps: int) -> tuple[Any, str]:
    """A scheduler, and when it steps: after each "step" or "epoch", or "plateau" with the validation loss."""
    name, every = schedule["name"], schedule["every"]
    length = epochs * steps if every == "step" else epochs
    kinds = torch.optim.lr_scheduler
    if name == "constant":
        return kinds.LambdaLR(optimizer, lambda _: 1.0), "epoch"
    if name == "plateau":
        return kinds.ReduceLROnPlateau(optimizer, factor=schedule["gamma"], patience=schedule["patience"]), "plateau"
    if name == "cosine":
        return kinds.CosineAnnealingLR(optimizer, length), every
    if name == "linear":
        return kinds.LambdaLR(optimizer, lambda at: 1 - (1 - schedule["final"]) * at / length), every
    if name == "onecycle":
        peak = optimizer.param_groups[0]["lr"]
        shape = {"pct_start": schedule["peak"], "div_factor": 1 / schedule["start"], "cycle_momentum": False}
        return kinds.OneCycleLR(optimizer, peak, total_steps=length, **shape), every
    return skip(f"plain.py has no schedule {name}"), ""


@torch.no_grad()
def evaluate(net: nn.Module, loader: DataLoader) -> tuple[float, float]:
    """Mean loss and accuracy."""
    net.eval()
    loss, correct, seen = 0.0, 0, 0
    for images, labels in loader:
        images, labels = images.to(DEVICE), labels.to(DEVICE)
        logits = net(images)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += (logits.argmax(1) == labels).sum().item()
        seen += len(labels)
    return loss / seen, correct / seen


def read_loaders(request: dict) -> tuple[DataLoader, DataLoader | None, DataLoader]:
    """Of the training, validation (where the request has them) and test images."""
    with np.load(request["data"]) as file:
        data = {name: file[name] for name in file.files}
    normalise = transforms.Normalize(request["mean"], request["std"])
    augmented = train_transform(request["recipe"]["augment"], data["train_x"].shape[1], normalise)
    as_it_is = transforms.Compose([transforms.ToTensor(), normalise])

    def loader(split: str) -> DataLoader:
        images = data[f"{split}_x"]
        images = images.squeeze(-1) if images.shape[3] == 1 else images
        training = split == "train"
        dataset = Images(images, data[f"{split}_y"], augmented if training else as_it_is)
        batch = request["recipe"]["batch_size"] if training else 500
        return DataLoader(dataset, batch, shuffle=training, num_workers=request["threads"])

    return loader("train"), loader("val") if "val_x" in data else None, loader("test")


def net_for(loader: DataLoader, model: dict) -> nn.Module:
    """The recipe's net for the images of `loader`."""
    channels, size = loader.dataset[0][0].shape[:2]
    return build_net(model, channels, size, int(loader.dataset.labels.max()) + 1)


def train_epoch(net: nn.Module, loader: Any, optimizer: Any, scheduler: Any, every: str, smoothing: float) -> float:
    """One pass; its mean loss."""
    net.train()
    criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)
    total, seen = 0.0, 0
    for images, labels in loader:
        images, labels = images.to(DEVICE), labels.to(DEVICE)
        optimizer.zero_grad()
        loss = criterion(net(images), labels)
        loss.backward()
        optimizer.step()
        if every == "step":
            scheduler.step()
        total += loss.item() * len(labels)
        seen += len(labels)
    return total / seen


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    recipe, epochs = request["recipe"], request["epochs"]
    torch.manual_seed(request["seed"])
    train_loader, val_loader, test_loader = read_loaders(request)
    net = net_for(train_loader, recipe["model"]).to(DEVICE)
    optimizer = build_optimizer(net, recipe["optim"])
    scheduler, every = build_schedule(optimizer, recipe["schedule"], epochs, len(train_loader))
    start, epoch_seconds = time.perf_counter(), []
    for epoch in range(epochs):
        begun = time.perf_counter()
        loss = train_epoch(net, train_loader, optimizer, scheduler, every, recipe["label_smoothing"])
        epoch_seconds.append(time.perf_counter() - begun)
        measured = evaluate(net, val_loader) if val_loader else (loss, math.nan)
        print(f"epoch {epoch + 1}: loss {loss:.4f}, validation accuracy {measured[1]:.4f}")
        if every == "epoch":
            scheduler.step()
        elif every == "plateau":
            scheduler.step(measured[0])
    accuracy = evaluate(net, test_loader)[1]
    line = {"peer": "plain PyTorch", "seconds": time.perf_counter() - start, "epochs": epochs, "accuracy": accuracy}
    line |= {"images": len(train_loader.dataset), "epoch_seconds": epoch_seconds}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
