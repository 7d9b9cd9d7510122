"""Following a run at a URL: the events of the workers, of the driver and of ranks that failed, each once."""

import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from distcifar.cluster.stored.layout import NOTES
from distcifar.cluster.stored.mirror import EVENTS, Mirror
from distcifar.cluster.stored.pull import Follower
from distcifar.store import Store
from distcifar.tracking.journal import read_events

NUMBERS = st.lists(st.integers(0, 9), max_size=4, unique=True)


def lines(numbers: list[int], place: str) -> bytes:
    return b"".join(json.dumps({"kind": "note", "place": place, "number": n}).encode() + b"\n" for n in numbers)


@settings(deadline=None, max_examples=40)
@given(mine=NUMBERS, theirs=NUMBERS, failed=NUMBERS, torn=st.booleans(), looks=st.integers(0, 3))
def test_each_event_of_driver_workers_and_failed_ranks_is_there_once(
    tmp_path_factory, mine: list[int], theirs: list[int], failed: list[int], torn: bool, looks: int
):
    """Whatever line a full disk has torn, and however often the store was looked at before."""
    folder: Path = tmp_path_factory.mktemp("run")
    store = Store(tmp_path_factory.mktemp("store").as_uri())
    (folder / EVENTS).write_bytes(lines(mine, "mine") + b'{"kind": "note", "place": "to' * torn)
    store.write(EVENTS, lines(theirs, "theirs"))
    store.write(f"{NOTES}1.jsonl", lines(failed, "failed") + lines(theirs[1:], "theirs"))
    follower = Follower(Mirror(folder, store, "token"))
    for _ in range(looks):
        follower.pull()
    follower.pull(whole=True)
    follower.pull(whole=True)
    found = [(event["place"], event["number"]) for event in read_events(folder)]
    expected = [(p, n) for p, ns in (("mine", mine), ("theirs", theirs), ("failed", failed)) for n in ns]
    assert sorted(found) == sorted(expected)
    there = b"".join(store.read(stored) or b"" for stored in Mirror(folder, store, "other").look() if NOTES in stored)
    assert looks == 0 or set(lines(mine, "mine").splitlines()) <= set(there.splitlines()), "left for others at once"
