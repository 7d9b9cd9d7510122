"""A winner that holds: the best configurations again, at full length and with seeds that the search has not seen."""

from collections.abc import Sequence
from dataclasses import replace

from distcifar.cluster.job import Announce
from distcifar.cluster.sweeps.room import Room
from distcifar.cluster.sweeps.search import Told, rerun
from distcifar.config.space import apply
from distcifar.sweep.folder import CONFIRMED, Sweep, read_results
from distcifar.sweep.ranking import Confirmed, Ranked, mean_and_error


def confirm(
    sweep: Sweep, room: Room, ranked: Sequence[Ranked], told: Told, announce: Announce
) -> list[Confirmed] | None:
    """The best of `ranked`, confirmed as sweep.spec.confirm says, best mean first; None where the user has stopped it.

    A configuration one of whose runs has failed is left out. The winner's models alone are measured on the test
    images, once.
    """
    best, seeds = sweep.spec.confirmed
    chosen = [row for row in ranked if "failed" not in row.states][:best]
    if not chosen:
        return []
    announce(f"Confirming the best {len(chosen)} with {seeds} new seed(s) each, {sweep.recipe.total_epochs} epochs")
    configs = [config for row in chosen for config in confirming_configs(sweep, row, seeds)]
    if rerun(sweep, room, configs, told, announce).stopped:
        return None
    found = sorted(confirmed_of(sweep, chosen, seeds), key=lambda row: (-row.mean, row.group))
    for row in chosen:
        if row.group not in {confirmed.group for confirmed in found}:
            announce(f"The configuration of trial {row.trials[0]:03d} is not confirmed: a run of it has failed")
    if not found:
        return []
    winner = next(row for row in chosen if row.group == found[0].group)
    configs = confirming_configs(sweep, winner, seeds)
    ended = rerun(sweep, room, configs, lambda result: None, announce, measure=True)
    if ended.stopped:
        return None
    tested = {result["run"]: float(result["test_accuracy"]) for result in ended.results}
    test = tuple(tested[config["run"]] for config in configs if config["run"] in tested)
    return [replace(found[0], winner=True, test=test), *found[1:]]


def confirming_configs(sweep: Sweep, row: Ranked, seeds: int) -> list[dict[str, object]]:
    """What Tune is told of the confirmation of a configuration; its seeds follow those of the search."""
    first = sweep.recipe.seed + sweep.spec.seeds
    return [{"run": f"c{row.group:03d}-{n}", "seed": first + n, **row.point} for n in range(seeds)]


def confirmed_of(sweep: Sweep, chosen: Sequence[Ranked], seeds: int) -> list[Confirmed]:
    """What has come of it: of each configuration the best epochs of its runs, where none has failed."""
    last = {result.run: result for result in read_results(sweep.folder, CONFIRMED)}
    # One that the recipe's early stopping has ended is told so after its last epoch was decided on.
    scores = {r.run: r.score for r in last.values() if r.decision == "stop" or sweep.recipe.early_stop}
    found = []
    for row in chosen:
        configs = confirming_configs(sweep, row, seeds)
        mine = [scores[str(config["run"])] for config in configs if config["run"] in scores]
        if len(mine) == seeds:
            mean, error = mean_and_error(mine)
            digest = apply(sweep.recipe, row.point).digest()
            found.append(
                Confirmed(row.group, digest, tuple(int(str(c["seed"])) for c in configs), tuple(mine), mean, error)
            )
    return found
