"""Runs what was asked for; tables on the screen, one JSON file and one picture."""

import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rich.console import Console

from distcifar.benchmark import checks, growth, loader, saving, scaling, simulation, speedrun, startup, step, tracking
from distcifar.benchmark.place import Place
from distcifar.benchmark.plot import draw
from distcifar.benchmark.results import Comparison, document
from distcifar.benchmark.screen import show
from distcifar.benchmark.settings import Part, Settings
from distcifar.config import to_dict
from distcifar.files import write_json
from distcifar.training.allocator import keep_freed_memory

MEASURE: dict[Part, Callable[[Place], list[Comparison]]] = {
    "loader": loader.loader,
    "step": step.step,
    "startup": startup.startup,
    "scaling": scaling.scaling,
    "speedrun": speedrun.speedrun,
    "growth": growth.growth,
    "saving": saving.saving,
    "tracking": tracking.tracking,
    "simulation": simulation.simulation,
}


def run_benchmark(what: Literal[Part, "all"], settings: Settings, environment: Mapping[str, str]) -> Path:
    """Measures one part, or all in sequence; returns the JSON file. environment: of the processes that are started."""
    console = Console(width=120, highlight=False)
    keep_freed_memory()  # as a training does
    found: list[Comparison] = []
    with tempfile.TemporaryDirectory(prefix="distcifar-benchmark-") as folder:
        place = Place(settings, Path(folder), environment, lambda text: console.print(text, markup=False))
        if what == "all" and place.on_gpu:
            found += _shown(checks.check_device(place), console)
        for part in MEASURE if what == "all" else (what,):
            place = Place(settings, Path(folder) / part, environment, place.announce)
            place.scratch.mkdir()
            found += _shown(MEASURE[part](place), console)
    name = f"{what}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    path = Path(settings.out) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    result = document(what, to_dict(settings), found)
    write_json(path, result)
    hardware = result["hardware"]
    on = " and ".join([f"{hardware['cores']} cores of {hardware['processor']}", *hardware["gpus"]])
    draw(found, path.with_suffix(".png"), title=f"{what}, {result['date'][:10]}, {on}")
    console.print(f"Results: {path} and {path.with_suffix('.png').name}", markup=False)
    return path


def _shown(found: list[Comparison], console: Console) -> list[Comparison]:
    for comparison in found:
        show(comparison, console)
    return found
