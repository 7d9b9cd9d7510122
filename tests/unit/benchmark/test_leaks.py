"""What a long training keeps: the judgement, that it finds a leak, and two hundred epochs without one."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from distcifar.benchmark.growth import RECIPE, made_up_data
from distcifar.benchmark.leaks import Growth, Usage, growth, train_with_exits, usage
from distcifar.data.build import open_data
from distcifar.training.build import build_state
from distcifar.world import World
from tests.support import fresh, one_thread, small_recipe

EPOCHS = 200
BAND = 20_000  # bytes an epoch: 4 MB in two hundred; a thread that stays costs 50 kB of stack and more of its mapping


def test_growth_counts_from_the_end_of_the_warm_up():
    steady = [Usage(10 + (i < 5), 4, 1000 + 100 * (i < 5)) for i in range(20)]
    assert growth(steady) == Growth(0, 0, pytest.approx(0.0, abs=1e-6))
    leaking = [Usage(10 + i, 4 + 2 * i, 1000 + 7 * i) for i in range(20)]
    assert growth(leaking) == Growth(14, 28, pytest.approx(7.0))


def test_a_file_and_a_thread_that_stay_are_seen():
    import threading

    before, done = usage(), threading.Event()
    thread = threading.Thread(target=done.wait)
    with open(__file__):
        thread.start()
        after = usage()
        done.set()
        thread.join()
    assert (after.files, after.threads) == (before.files + 1, before.threads + 1)


def test_each_epoch_is_left_once_and_every_step_is_still_done_once():
    recipe = small_recipe(epochs=3)
    with one_thread():
        state, data = fresh(recipe)
        found = train_with_exits(recipe, state, data.loaders, World())
    assert len(found) == 3
    assert state.progress.step == 3 * data.loaders.train.steps_per_epoch


@pytest.mark.slow
def test_two_hundred_streamed_epochs_that_are_left_early_leave_nothing_behind(tmp_path: Path):
    recipe = replace(RECIPE, epochs=EPOCHS, batch_size=128)
    folder = made_up_data(tmp_path / "data", 512)
    with one_thread():
        data = open_data(recipe, folder, World(), mode="streamed", threads=1)
        found = train_with_exits(recipe, build_state(recipe, data, "", World()), data.loaders, World())
        assert len(found) == EPOCHS
        grown = growth(found)
        assert (grown.files, grown.threads) == (0, 0)
        assert abs(grown.bytes_per_epoch) < BAND
        # And it would be seen: iterators that are kept, as a break out of FFCV's own loop keeps them.
        kept = [data.loaders.train.batches(0) for _ in range(3)]
        before = usage()
        for batches in kept:
            next(batches)
        assert usage().threads >= before.threads + 3
        for batches in kept:
            with closing(batches):  # type: ignore[type-var]
                pass
        assert usage().threads == before.threads
