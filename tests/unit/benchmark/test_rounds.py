"""Sides by turns, and what counts as the time of steps."""

import time

from distcifar.benchmark.rounds import by_turns, seconds_of_steps
from distcifar.training.reports import EpochReport, StepReport


def test_every_side_is_measured_in_every_round_and_none_always_comes_first():
    calls: list[tuple[str, int]] = []

    def side(name: str):
        def measure(number: int) -> float:
            calls.append((name, number))
            return number + 0.5

        return measure

    found = by_turns({name: side(name) for name in "abc"}, 3, title="t", warm_up=1)
    assert found == {name: [1.5, 2.5, 3.5] for name in "abc"}
    rounds = [[name for name, number in calls if number == n] for n in range(4)]
    assert rounds == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]
    assert [number for _, number in calls] == sorted(number for _, number in calls)


def test_steps_are_timed_with_what_is_done_with_their_rows_but_evaluations_are_not():
    def reports():
        for _ in range(2):
            for _ in range(2):
                time.sleep(0.01)
                yield StepReport([{}, {}], save=False, stopping=False)
            time.sleep(0.5)
            yield EpochReport({}, None, improved=False)

    seen = []
    found = reports()
    seconds = seconds_of_steps(found, 6, lambda report: seen.append(time.sleep(0.01)))
    assert len(seen) == 3
    assert 0.06 <= seconds < 0.5
