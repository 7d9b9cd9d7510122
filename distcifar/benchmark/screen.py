"""Comparisons as tables on the screen."""

from rich.console import Console
from rich.table import Table

from distcifar.benchmark.results import Comparison

MOST_ROWS = 25


def show(comparison: Comparison, console: Console) -> None:
    """A table: medians, lowest, highest, ratio to the baseline (bold); below it the goals and what is to be known."""
    ratio = ["ratio"] if comparison.baseline else []
    table = Table(comparison.title, comparison.unit, "lowest", "highest", *ratio, title_justify="left")
    every = -(-len(comparison.lines) // MOST_ROWS)  # of a long curve a few points; all are in the JSON file
    for line in comparison.lines[::every]:
        figures = [spelled(value) for value in (line.median, min(line.values), max(line.values))]
        found = [f"{comparison.ratio(line.name, comparison.baseline):.2f}"] if comparison.baseline else []
        table.add_row(line.name, *figures, *found, style="bold" if line.name == comparison.baseline else "")
        for part, value in line.parts.items():
            table.add_row(f"    {part}", spelled(value), "", "", *[""] * len(found), style="dim")
    console.print(table)
    for goal in comparison.goals:
        judged = comparison.judged(goal)
        verdict = "reached" if judged["reached"] else "not reached"
        console.print(
            f"Goal: {goal.line} at least {goal.at_least:g} x {goal.than}: {judged['found']:.2f} x, {verdict}.",
            markup=False,
        )
    for note in comparison.notes:
        console.print(note, markup=False)
    console.print()


def spelled(value: float) -> str:
    """Three digits that count: 12,345 or 0.0123."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
