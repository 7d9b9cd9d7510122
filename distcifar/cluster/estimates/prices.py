"""What machines cost by the hour: a table in a file, with its date, that a user can replace by another."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from distcifar.config import from_dict
from distcifar.config.values import conform, require, require_range
from distcifar.errors import ConfigError

TABLE = Path(__file__).parent / "prices.json"
REMEDY = "distcifar/cluster/estimates/prices.json shows the form"


@dataclass(frozen=True, kw_only=True)
class Card:
    """A kind of GPU. Peaks are the maker's, dense, in 10^12 operations a second."""

    name: str  # as it stands in what torch and the driver call it: NVIDIA A10G
    memory_gb: float
    fp32_tflops: float
    half_tflops: float  # bf16 or fp16 on matrix units

    def __post_init__(self) -> None:
        conform(self, self.name)
        for field in ("memory_gb", "fp32_tflops", "half_tflops"):
            require_range(f"{self.name} {field}", getattr(self, field), 0, open_low=True)

    def peak(self, precision: str) -> float:
        """Operations a second at best, in a recipe's precision."""
        return 1e12 * (self.fp32_tflops if precision == "fp32" else self.half_tflops)


@dataclass(frozen=True, kw_only=True)
class Instance:
    """A kind of machine for hire. Prices are USD an hour."""

    name: str
    cores: int
    memory_gb: float
    on_demand: float
    spot: float
    gpus: int = 0
    card: str = ""

    def __post_init__(self) -> None:
        conform(self, self.name)
        require(
            self.gpus >= 0 and bool(self.gpus) == bool(self.card),
            f"{self.name} has {self.gpus} GPU(s) and the card {self.card!r}",
            "An instance with GPUs names their kind",
            REMEDY,
        )
        for field in ("on_demand", "spot"):
            require_range(f"{self.name} {field}", getattr(self, field), 0, open_low=True)


@dataclass(frozen=True, kw_only=True)
class PriceTable:
    """Instances and the cards in them, with when and from where the prices are."""

    date: str
    source: str
    cards: tuple[Card, ...]
    instances: tuple[Instance, ...]

    def __post_init__(self) -> None:
        known = {card.name for card in self.cards}
        for instance in self.instances:
            require(
                not instance.card or instance.card in known,
                f"{instance.name} has the card {instance.card!r}",
                f"The cards of this table are {', '.join(sorted(known))}",
                REMEDY,
            )

    def card(self, name: str) -> Card | None:
        """The card that a device name such as "NVIDIA A10G" speaks of; None where the table has none."""
        words = re.split(r"[\s-]+", name)
        return next((card for card in self.cards if card.name in words), None)

    def instance(self, name: str) -> Instance | None:
        """The instance of that name; None where the table has none."""
        return next((instance for instance in self.instances if instance.name == name), None)


def read_prices(path: Path = TABLE) -> PriceTable:
    """The table in `path`. Raises ConfigError where it cannot be read or does not have prices.json's form."""
    try:
        text = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The price table {path} cannot be read ({error})", "It is a JSON file", f"Correct --prices; {REMEDY}"
        ) from None
    return from_dict(PriceTable, text)


def instance_types(cluster: Path) -> list[str]:
    """The types that a cluster.yaml names, in its order, each once; none where there is no such file."""
    if not cluster.is_file():
        return []
    found = re.findall(r"^[^#\n]*\bInstanceType:\s*[\"']?([\w.-]+)", cluster.read_text(), re.MULTILINE)
    return list(dict.fromkeys(found))
