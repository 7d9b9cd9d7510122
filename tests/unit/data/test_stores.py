"""Resident and streamed stores answer alike; streaming leaves no threads behind and torch's thread count alone."""

import json
import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distcifar.data import stores as module
from distcifar.data.beton import write_beton
from distcifar.data.stores import BUFFER_SHARE, FIRST_AHEAD, MOST_AHEAD, StreamedStore, next_ahead
from distcifar.errors import DataError
from tests.unit.data.conftest import CPU, IMAGES, KINDS, LABELS, N, two_cores


@pytest.fixture(params=KINDS)
def store(request, stores):
    return stores[request.param]


def fetched(store, batches):
    """What the store yields, copied before it goes on: streamed tensors live until the next batch."""
    return [(images[rows].numpy().copy(), labels.clone()) for images, rows, labels in store.fetch(batches)]


def test_opening_takes_few_bytes_for_each_image(tmp_path):
    """FFCV's own table takes more than a kilobyte for each: a gigabyte for a million."""
    count, path = 5000, tmp_path / "many.beton"
    write_beton(path, np.zeros((count, 2, 2, 3), np.uint8), np.zeros(count, np.int64))
    from ffcv.reader import Reader

    from distcifar.data.ffcv_reader import open_loader

    loader = open_loader(path, 4, 1)
    tracemalloc.start()
    type(loader.memory_manager)(Reader(str(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * count


# ---- what is fetched


def test_images_and_labels_are_those_of_the_ids_in_their_order(store):
    """Jumbled ids, one twice, and a smaller last batch."""
    ids = np.random.default_rng(2).permutation(np.append(np.arange(N), 7))
    batches = [ids[start : start + 4] for start in range(0, len(ids), 4)]
    answers = fetched(store, batches)
    assert [len(labels) for _, labels in answers] == [4] * 8 + [2]
    for batch, (images, labels) in zip(batches, answers, strict=True):
        np.testing.assert_array_equal(images, IMAGES[batch])
        assert labels.dtype == torch.int64
        assert labels.tolist() == LABELS[batch].tolist()


def test_stores_count_their_samples_and_fetch_nothing_when_asked_for_nothing(store):
    assert store.num_samples == N
    assert list(store.fetch([])) == []


def test_a_store_can_be_asked_again_and_by_two_at_once(streamed):
    """As when weights are computed from the first images while an epoch is under way."""
    batches = [np.array([1, 2, 3, 4]), np.array([5, 6, 7, 8])]
    one, other = streamed.fetch(batches), streamed.fetch(batches[::-1])
    for mine, others in zip(batches, batches[::-1], strict=True):
        for ids, (images, rows, _) in ((mine, next(one)), (others, next(other))):
            np.testing.assert_array_equal(images[rows].numpy(), IMAGES[ids])
    assert [labels.tolist() for _, labels in fetched(streamed, batches)] == [LABELS[ids].tolist() for ids in batches]


def test_batches_that_ffcv_would_cut_elsewhere_are_refused(streamed):
    """FFCV chops the concatenated ids into equal chunks: 2 + 4 ids would come back as 4 + 2."""
    with pytest.raises(ValueError, match="last batch may be smaller"):
        next(streamed.fetch([np.arange(2), np.arange(4)]))


# ---- how far ahead

PLENTY = 1 << 40


def settled(wait_at, batch_bytes=1, free=PLENTY):
    """Where the rule ends up if each number of batches ahead leads to the wait that `wait_at` says, and its way."""
    ahead, waits, way = FIRST_AHEAD, {}, [FIRST_AHEAD]
    for _ in range(20):
        waits[ahead] = wait_at(ahead)
        ahead = next_ahead(ahead, waits, batch_bytes, free)
        way.append(ahead)
    return ahead, way


def test_who_does_not_wait_reads_no_further_ahead():
    assert settled(lambda ahead: 0.0) == (2, [2] * 21)


def test_uneven_decoding_is_read_further_ahead_until_nobody_waits():
    assert settled(lambda ahead: {2: 0.4, 4: 0.1, 8: 0.01}[ahead])[0] == 8


def test_slow_decoding_is_not_given_memory_in_vain():
    """It is tried once."""
    assert settled(lambda ahead: 0.5) == (2, [2, 4, *[2] * 19])


def test_the_number_has_a_limit():
    assert settled(lambda ahead: 1 / ahead**2)[0] <= MOST_AHEAD
    assert settled(lambda ahead: 0.9 if ahead < 64 else 0.0)[0] <= MOST_AHEAD
    assert settled(lambda ahead: 0.9 * 0.4 ** np.log2(ahead / 2) + 0.021)[0] == 16, "from 32 on it is hardly less"


@given(st.integers(1, 1 << 40), st.integers(1, 1 << 40), st.floats(0, 1))
def test_batches_ahead_never_take_more_than_their_share_of_the_memory(batch_bytes, free, wait):
    ahead, _ = settled(lambda ahead: wait / ahead, batch_bytes, free)
    assert ahead == FIRST_AHEAD or (ahead + 2) * batch_bytes <= BUFFER_SHARE * free


def test_reading_further_ahead_in_mid_epoch_changes_no_batch(beton, monkeypatch):
    monkeypatch.setattr(module, "REVIEWED", 3)
    store = StreamedStore(beton, N, CPU, threads=1)
    monkeypatch.setattr(module, "next_ahead", lambda ahead, *_: min(2 * ahead, 16))
    ids = np.random.default_rng(3).integers(0, N, 50)
    batches = [ids[start : start + 4] for start in range(0, len(ids), 4)]
    threads = threading.active_count()
    for batch, (images, labels) in zip(batches, fetched(store, batches), strict=True):
        np.testing.assert_array_equal(images, IMAGES[batch])
        assert labels.tolist() == LABELS[batch].tolist()
    assert store.ahead == 16
    assert threading.active_count() == threads


def test_two_readers_of_one_store_may_read_differently_far_ahead(beton):
    store = StreamedStore(beton, N, CPU, threads=1)
    batches = [np.arange(start, start + 4) for start in range(0, 28, 4)] * 3
    near = store.fetch(batches)
    next(near)
    store.ahead = 9
    far = store.fetch(batches)
    next(far)
    for batch, one, other in zip(batches[1:], near, far, strict=True):
        np.testing.assert_array_equal(one[0].numpy(), IMAGES[batch])
        np.testing.assert_array_equal(other[0].numpy(), IMAGES[batch])


class Copy:
    """A copy to a GPU that is over when the test says so."""

    def __init__(self):
        self.over = threading.Event()

    def synchronize(self):
        assert self.over.wait(30)


@pytest.mark.timeout(60)
def test_a_buffer_is_not_filled_again_before_it_is_copied(streamed):
    from distcifar.data.ffcv_reader import Epoch

    copies, kept = [], []
    order = np.arange(32, dtype=np.uint64)
    with Epoch(streamed._loader(4), order, 1) as epoch:
        for _ in range(2):
            kept.append(next(epoch)[0])
            copies.append(Copy())
            epoch.copying(copies[-1])
        time.sleep(0.2)  # a thread that did not wait would have used all three buffers twice by now
        for number, images in enumerate(kept):
            np.testing.assert_array_equal(images, IMAGES[4 * number : 4 * number + 4])
        for copied in copies:
            copied.over.set()
        rest = [images[:, 0, 0, 0].tolist() for images, _ in epoch]
        assert rest == [list(range(start, start + 4)) for start in range(8, 32, 4)]
    assert epoch.wait_share() <= 1


# ---- early ends


def test_ending_early_30_times_leaks_neither_threads_nor_mappings(streamed, beton):
    def mappings():
        with open("/proc/self/maps") as maps:
            return sum(str(beton) in line for line in maps)

    batches = [np.arange(4)] * 6
    next(streamed.fetch(batches))
    threads, mapped = threading.active_count(), mappings()
    for _ in range(30):
        for _batch in streamed.fetch(batches):
            break
    assert threading.active_count() == threads
    assert mappings() == mapped > 0


def test_ending_early_does_not_read_the_rest_of_the_epoch(streamed, monkeypatch):
    """Stopping a run on a large set must not take as long as finishing its epoch."""
    from ffcv.loader.epoch_iterator import EpochIterator

    decoded = []
    decode = EpochIterator.run_pipeline
    monkeypatch.setattr(
        EpochIterator, "run_pipeline", lambda self, *given: (decoded.append(1), decode(self, *given))[1]
    )
    next(streamed.fetch([np.arange(4)] * 100))
    assert 1 <= len(decoded) <= 10  # what was taken, FFCV's three ahead, and one under way when it heard


def test_an_error_in_the_reader_of_the_batches_ends_the_thread(streamed):
    threads = threading.active_count()

    def train():
        for _batch in streamed.fetch([np.arange(4)] * 6):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert threading.active_count() == threads


# ---- errors in FFCV's thread


@pytest.fixture
def failing(monkeypatch):
    """Lets the decoding of the third batch of each epoch fail."""
    from ffcv.loader.epoch_iterator import EpochIterator

    decode = EpochIterator.run_pipeline

    def run_pipeline(self, number, *rest):
        if number == 2:
            raise OSError("the disk is gone")
        return decode(self, number, *rest)

    monkeypatch.setattr(EpochIterator, "run_pipeline", run_pipeline)


@pytest.mark.timeout(60)  # the reader used to wait for ever
def test_an_error_in_the_decoding_reaches_the_reader_in_words(streamed, beton, failing):
    threads, labels = threading.active_count(), []
    with pytest.raises(DataError) as caught:
        for _images, _rows, batch_labels in streamed.fetch([np.arange(4)] * 6):
            labels += batch_labels.tolist()
    assert labels == [*LABELS[:4]] * 2, "what was decoded before is not lost"
    assert f"{beton} could not be streamed: OSError: the disk is gone" in caught.value.found
    assert "--repair" in caught.value.remedy
    assert isinstance(caught.value.__cause__, OSError)
    assert threading.active_count() == threads


@pytest.mark.timeout(60)
def test_a_reader_that_ends_before_the_error_hears_nothing_of_it(streamed, failing):
    threads = threading.active_count()
    for _batch in streamed.fetch([np.arange(4)] * 6):
        break
    assert threading.active_count() == threads


@pytest.mark.timeout(60)
def test_after_an_error_the_store_can_be_asked_again(streamed, failing):
    with pytest.raises(DataError):
        fetched(streamed, [np.arange(4)] * 3)
    assert [labels.tolist() for _, labels in fetched(streamed, [np.arange(4)])] == [LABELS[:4].tolist()]


# ---- threads


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=two_cores)])
def test_streaming_leaves_torchs_thread_count_alone(beton, threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        fetched(StreamedStore(beton, N, CPU, threads), [np.arange(4)] * 2)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


FRESH_PROCESS = """
import sys, json, threading
from pathlib import Path
import numpy, torch
torch.set_num_threads(3)
from distcifar.data.stores import StreamedStore
store = StreamedStore(Path(sys.argv[1]), int(sys.argv[2]), torch.device("cpu"), threads=1)
_, _, labels = next(store.fetch([numpy.arange(4)] * 3))
print(json.dumps({"torch": torch.get_num_threads(), "labels": labels.tolist(), "threads": threading.active_count()}))
"""


@pytest.mark.slow
def test_the_first_import_of_ffcv_leaves_torchs_thread_count_alone(beton):
    """Importing ffcv sets torch to one thread: a CPU worker that resumes on prepared data would crawl."""
    process = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS, str(beton), str(N)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout.splitlines()[-1])
    assert found == {"torch": 3, "labels": LABELS[:4].tolist(), "threads": 1}
