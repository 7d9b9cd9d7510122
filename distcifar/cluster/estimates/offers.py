"""What a training costs on machines for hire: times that were measured there, or predictions that are called so."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from distcifar.cluster.estimates.estimate import estimate
from distcifar.cluster.estimates.figures import Measured
from distcifar.cluster.estimates.prices import Card, Instance, PriceTable
from distcifar.config import Recipe, RunSpec

NOT_MEASURED = "not measured"
PASSES = 3  # forward, and backward for the inputs and for the weights: each the same products


@dataclass(frozen=True)
class Offer:
    """So many machines of a kind, and how long they are busy; nothing is made up where that is not known."""

    instance: Instance
    count: int
    seconds: float | None
    basis: str  # where the time comes from
    device_bytes: float | None = None  # of one GPU that are needed

    def price(self, hourly: float) -> float | None:
        """USD at that price an hour for each machine."""
        return None if self.seconds is None else hourly * self.count * self.seconds / 3600


def offers(
    table: PriceTable, names: Sequence[str], recipe: Recipe, spec: RunSpec, measured: Sequence[Measured], ranks: int
) -> list[Offer]:
    """One for each instance of `table` in `names`. measured: of this kind of training; this machine's is the first."""
    found = (table.instance(name) for name in names)
    return [_offer(table, each, recipe, spec, measured, ranks) for each in found if each is not None]


def cheapest(table: PriceTable, ranks: int) -> list[str]:
    """Of each card the instance whose machines for `ranks` GPUs cost least."""
    found = []
    for card in table.cards:
        with_it = [each for each in table.instances if each.card == card.name]
        if with_it:
            found.append(min(with_it, key=lambda each: math.ceil(ranks / each.gpus) * each.on_demand).name)
    return found


def _offer(
    table: PriceTable, instance: Instance, recipe: Recipe, spec: RunSpec, measured: Sequence[Measured], ranks: int
) -> Offer:
    count, card = math.ceil(ranks / max(1, instance.gpus)), table.card(instance.card)
    if card is None:
        return Offer(instance, count, None, NOT_MEASURED)
    on_gpus = [each for each in measured if each.on_gpu and each.ranks == ranks]
    same = next((each for each in on_gpus if table.card(each.machine) == card), None)
    nearest = same or next((each for each in on_gpus if table.card(each.machine) is not None), None)
    if nearest is None:
        return Offer(instance, count, None, NOT_MEASURED)
    there = estimate(recipe, spec, nearest.work, nearest.figures, ranks, on_gpu=True)
    seconds = (there.start or 0.0) + there.training
    if same is not None:
        return Offer(instance, count, seconds, f"measured {same.date[:10]} on {same.machine}", there.device_bytes)
    precision = nearest.figures.precision
    known = table.card(nearest.machine)
    assert known is not None
    fraction = share_of_peak(recipe, nearest, known)
    basis = f"predicted: {fraction:.1%} of the card's {precision} peak, as measured on {nearest.machine}"
    seconds *= known.peak(precision) / card.peak(precision)
    return Offer(instance, count, seconds, basis, there.device_bytes)


def share_of_peak(recipe: Recipe, measured: Measured, card: Card) -> float:
    """How much of the card's arithmetic a step uses, counting the net's products only."""
    images = math.ceil(recipe.batch_size / measured.ranks)
    step = measured.figures.step.seconds(ranks=1, images=images, gradient_bytes=0)
    return PASSES * measured.work.flops * images / step / card.peak(measured.figures.precision)
