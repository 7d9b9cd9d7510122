"""An estimate on the screen: what the training takes here, what it costs elsewhere, and what is assumed."""

from rich.console import Console
from rich.table import Table

from distcifar.cluster.estimates.estimate import Estimate
from distcifar.cluster.estimates.offers import Offer
from distcifar.cluster.estimates.run import Outlook
from distcifar.tracking.console import clock

UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def show_outlook(outlook: Outlook, console: Console) -> None:
    """Two tables and the notes."""
    found = outlook.estimate
    on = f"{found.ranks} worker(s)"
    table = Table(title=f"{outlook.recipe.name}, estimated: {on} on {outlook.machine}", title_justify="left")
    table.show_header = False
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for row in _rows(found, outlook.images_per_s):
        table.add_row(*row)
    console.print(table)
    console.print(_prices(outlook))
    for note in outlook.notes:
        console.print(note, markup=False)


def _rows(found: Estimate, images_per_s: float) -> list[tuple[str, str, str]]:
    start = "not known" if found.start is None else f"{found.start:.0f} s"
    rows = [
        (
            "time",
            clock((found.start or 0.0) + found.training),
            f"start {start}, then {clock(found.training)} of training",
        ),
        ("steps", f"{found.steps:,}", f"{images_per_s:,.0f} images/s"),
        ("memory", size(found.ranks * found.host_bytes), f"{size(found.host_bytes)} a worker"),
    ]
    if found.device_bytes is not None:
        rows.append(("GPU memory", size(found.device_bytes), "of each GPU"))
    parts = (
        f"data {size(found.data_bytes)}, {found.checkpoints} checkpoints of {size(found.checkpoint_bytes)}"
        f" (one more while it is written), journal {size(found.journal_bytes)}"
    )
    return [*rows, ("disk", size(found.disk_bytes), parts)]


def _prices(outlook: Outlook) -> Table:
    columns = ("instances", "GPUs", "time", "USD on demand", "USD spot", "USD/h", "time is")
    table = Table(*columns, title="On machines for hire", title_justify="left")
    for offer in outlook.offers:
        table.add_row(*_offer_row(offer, outlook))
    return table


def _offer_row(offer: Offer, outlook: Outlook) -> list[str]:
    instance = offer.instance
    card = outlook.table.card(instance.card)
    gpus = f"{offer.count * instance.gpus} x {instance.card}" if instance.gpus else ""
    short = card is not None and (offer.device_bytes or 0.0) > 1e9 * card.memory_gb
    basis = f"{offer.basis}; its {card.memory_gb:g} GB are too few" if short and card else offer.basis
    return [
        f"{offer.count} x {instance.name}",
        gpus,
        "" if offer.seconds is None else clock(offer.seconds),
        money(offer.price(instance.on_demand)),
        money(offer.price(instance.spot)),
        f"{instance.on_demand:g} / {instance.spot:g}",
        basis,
    ]


def money(dollars: float | None) -> str:
    """USD with cents, or as many digits as tell it from nothing."""
    return "" if dollars is None else f"{dollars:.2f}" if dollars >= 0.1 else f"{dollars:.2g}"


def size(count: float) -> str:
    """Bytes with three digits that count: 1.43 GB."""
    unit, scale = next(((unit, scale) for unit, scale in UNITS if count >= scale), ("B", 1.0))
    return f"{count / scale:.3g} {unit}"
