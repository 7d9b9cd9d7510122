"""Prepared data as a table for people."""

import shlex
from typing import TYPE_CHECKING

from distcifar.config import DataConfig
from distcifar.data.manifest import SPLITS
from distcifar.data.prepare import PreparedData

if TYPE_CHECKING:
    from rich.table import Table

_LISTED_CLASSES = 20


def summary_table(prepared: PreparedData) -> "Table":
    """Classes x splits with counts, and a row each for their sum and their size on disk."""
    from rich.table import Table

    manifest = prepared.manifest
    splits = [split for split in SPLITS if split in prepared.manifests]
    counts = {split: prepared.manifests[split].class_counts for split in splits}
    mode = "grey" if manifest.channels == 1 else "RGB"
    title = f"{manifest.data.dataset}: {manifest.width} x {manifest.height} {mode}, {manifest.num_classes} classes"
    table = Table(title=title, title_justify="left")
    table.add_column("class")
    for split in splits:
        table.add_column(split, justify="right")
    if manifest.num_classes <= _LISTED_CLASSES:
        for index, name in enumerate(manifest.class_names):
            table.add_row(name, *(f"{counts[split][index]:,}" for split in splits))
    else:
        spread = (f"{min(counts[split]):,} to {max(counts[split]):,}" for split in splits)
        table.add_row("each class", *spread)
    table.add_section()
    table.add_row("all", *(f"{sum(counts[split]):,}" for split in splits))
    table.add_row("MB", *(f"{prepared.manifests[split].size_bytes / 1e6:,.1f}" for split in splits))
    return table


def statistics_line(prepared: PreparedData) -> str:
    """Mean and standard deviation of the training pixels, 0-1 scale, channel by channel."""
    manifest = prepared.manifest
    mean, std = (" ".join(f"{value:.4f}" for value in values) for values in (manifest.mean, manifest.std))
    return f"mean {mean}   std {std}   (0-1 scale, of the training images)"


def print_summary(prepared: PreparedData, seconds: float) -> None:
    """Prints the table, the statistics, where the files lie, and what to type next."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(summary_table(prepared))
    lines = [
        statistics_line(prepared),
        f"{prepared.folder} is whole (sha256 {prepared.digest[:16]}...), after {seconds:.1f} s",
        f"next: {train_command(prepared)}",
    ]
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def train_command(prepared: PreparedData) -> str:
    """A command that trains on these data."""
    data = prepared.manifest.data
    root = prepared.folder.parent
    words = ["python", "jobs/train.py", "quick"]
    given = {
        "--data.dataset": "" if data.dataset == "cifar10" else data.dataset,
        "--data.validation": "" if data.validation == DataConfig().validation else str(data.validation),
        "--data.size": str(data.size or ""),
        "--data.train-first": str(data.train_first or ""),
        "--data.split-seed": str(data.split_seed or ""),
        "--data.storage": "" if data.storage == "raw" else data.storage,
        "--data-root": "" if str(root) == "data" else str(root),
    }
    for flag, value in given.items():
        words += [flag, value] if value else []
    return shlex.join(words)
