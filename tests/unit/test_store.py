"""Files at a URL: whole or not at all, also over a line that is cut."""

import pickle
import resource
import signal
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from pyarrow import fs

from distcifar import store as stores
from distcifar.errors import StorageError
from distcifar.store import Store, is_url
from tests.support.object_store import ObjectStore, object_store, refusing


@pytest.fixture(scope="module")
def s3() -> Iterator[ObjectStore]:
    with object_store() as found:
        yield found


@pytest.fixture(params=["s3", "file"])
def store(request: pytest.FixtureRequest, s3: ObjectStore, tmp_path: Path) -> Store:
    return Store(s3.url(tmp_path.name) if request.param == "s3" else (tmp_path / "store").as_uri())


def test_a_url_is_told_from_a_path():
    assert [is_url(place) for place in ("s3://b/x", "file:///x", "/x", "x", Path("s3"))] == [True, True] + 3 * [False]


def test_what_is_written_is_read_listed_and_deleted(store: Store, tmp_path: Path):
    (tmp_path / "big").write_bytes(bytes(range(256)) * 40_000)
    store.write("a/b.txt", b"one")
    store.write("a/b.txt", b"other")
    store.write("big", tmp_path / "big")
    assert store.read("a/b.txt") == b"other"
    assert store.read_at("big", 255, 3) == b"\xff\x00\x01"
    assert {name: found.size for name, found in store.listing().items()} == {"a/b.txt": 5, "big": 256 * 40_000}
    assert store.below("a").read("b.txt") == b"other"
    store.delete("a/b.txt")
    store.delete("a/b.txt")
    assert store.read("a/b.txt") is None
    assert set(store.listing()) == {"big"}
    assert pickle.loads(pickle.dumps(store)).read_at("big", 0, 2) == b"\x00\x01"


def test_an_open_file_is_written_whatever_becomes_of_its_name(store: Store, tmp_path: Path):
    (tmp_path / "here").write_bytes(b"content")
    with open(tmp_path / "here", "rb") as file:
        file.read(3)
        (tmp_path / "here").unlink()
        store.write("there", file)
    assert store.read("there") == b"content"
    with pytest.raises(FileNotFoundError):
        store.write("there", tmp_path / "here")


def test_what_lies_below_a_name_goes_at_once(store: Store):
    for name in ("a/b/c", "a/b/d/e", "a/bc"):
        store.write(name, b"x")
    store.delete_below("a/b")
    store.delete_below("a/b")
    assert set(store.listing()) == {"a/bc"}


def test_who_reads_while_it_is_written_sees_the_older_one_or_the_new_one(store: Store):
    contents = [bytes([letter]) * 300_000 for letter in b"ab"]
    store.write("x", contents[0])
    over = threading.Event()

    def write() -> None:
        other = Store(store.url)
        for turn in range(30):
            other.write("x", contents[turn % 2])
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not over.is_set():
        assert store.read("x") in contents
    writer.join()
    assert set(store.listing()) == {"x"}


@pytest.mark.parametrize("name", ["Vögel/鳥", "a b", "50%", "a%20b", "what?#x", "~+=:@&"])
def test_any_name_can_be_below_a_place(store: Store, name: str):
    below = store.below(name)
    below.write(name, b"x")
    assert set(store.listing()) == {f"{name}/{name}"}
    assert store.read(f"{name}/{name}") == b"x"
    assert set(Store(below.url).listing()) == {name}, "the URL names the same place when it is typed"
    below.delete(name)
    assert store.listing() == {}


class Interrupted(BaseException):
    """Ctrl-C."""


def test_who_is_interrupted_while_writing_leaves_the_old_one_or_the_new_one(store: Store):
    old, new = b"old", bytes(range(256)) * 80_000

    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for seconds in (0.002, 0.03, 0.08):
            store.write("x", old)
            with pytest.raises(Interrupted):
                signal.setitimer(signal.ITIMER_REAL, seconds)
                while True:
                    store.write("x", new)
            while any(thread.name == "store" for thread in threading.enumerate()):  # also one that was just starting
                time.sleep(0.002)
            assert store.read("x") in (old, new)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert set(store.listing()) == {"x"}


class Broken(BytesIO):
    """A file on a disk that ends earlier than the file."""

    def read(self, count: int | None = -1) -> bytes:
        found = super().read(count)
        if not found:
            raise OSError(5, "Input/output error")
        return found


@pytest.mark.parametrize("readable", [0, 50, 150])
def test_a_file_that_cannot_be_read_to_its_end_is_never_taken_for_whole(
    store: Store, readable: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store.write("x", b"old")
    monkeypatch.setattr(stores, "CHUNK", 100)
    monkeypatch.setattr(stores, "_opened", lambda _: Broken(bytes(readable)))
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it is no matter of the store"))
    with pytest.raises(StorageError, match=r"cannot be read to its end: .*Input/output error"):
        store.write("x", b"new")
    short = readable < 50 or store.url.startswith("file")
    assert store.read("x") in ([b"old"] if short else [b"old", None])


def test_a_write_that_fails_leaves_nothing_beside_it(tmp_path: Path):
    store = Store(tmp_path.as_uri(), tries=3, pause=0)
    store.write("x", b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # like a disk without room
    try:
        with pytest.raises(StorageError):
            store.write("x", bytes(1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert store.read("x") == b"old"


def test_an_empty_place_has_nothing(store: Store):
    assert store.listing() == {}
    assert store.read("x") is None


def test_a_cut_connection_is_tried_again(s3: ObjectStore):
    content = bytes(range(256)) * 20_000
    store = Store(s3.url("cut", over_line=True), pause=0.01)
    store.write("x", content)
    s3.line.cut_after, s3.line.cuts = [100_000, 300_000], 0
    assert store.read("x") == content
    assert s3.line.cuts >= 1


def test_opening_a_place_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On AWS it is a request, for the bucket's region."""
    real, opened = fs.FileSystem, []

    class Opening:
        @staticmethod
        def from_uri(url: str) -> object:
            opened.append(url)
            if len(opened) < 3:
                raise OSError("When resolving region for bucket 'b': AWS Error NETWORK_CONNECTION")
            return real.from_uri(url)

    monkeypatch.setattr(fs, "FileSystem", Opening)
    assert Store(tmp_path.as_uri(), pause=0).listing() == {}
    opened.clear()
    with pytest.raises(StorageError, match="resolving region") as caught:
        Store(tmp_path.as_uri(), tries=1).listing()
    assert "is no place" not in str(caught.value)


def test_who_is_patient_waits_ten_minutes_and_is_told_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    failures, pauses, told = [OSError("AWS Error NETWORK_CONNECTION")] * 17, [], []
    open_really = Store._open

    def opened(store: Store) -> object:
        if failures:
            raise failures.pop()
        return open_really(store)

    monkeypatch.setattr(Store, "_open", opened)
    monkeypatch.setattr(time, "sleep", pauses.append)
    store = Store(tmp_path.as_uri()).patient(told.append).below("a")
    assert store.listing() == {}
    assert len(told) == 1
    assert f"{store.place} does not answer: AWS Error NETWORK_CONNECTION" in told[0]
    assert max(pauses) == 30
    assert pauses[:3] == [0.5, 1, 2]
    pauses.clear()
    failures.extend([OSError("down")] * 1000)
    with pytest.raises(StorageError, match="down"):
        store.listing()
    assert 420 <= sum(pauses) + 6 * len(pauses) <= 660, "with the six seconds that the AWS client tries by itself"
    failures[:] = [OSError("cut")]
    told.clear()
    assert store.listing() == {}
    assert not told, "what the second try mends is not told"


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_told_at_once(status: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("a refusal stays one"))
    with refusing(status) as (url, asked):
        store = Store(url).patient(pytest.fail)
        for action in (lambda: store.read("x"), lambda: store.write("x", b""), store.listing):
            with pytest.raises(StorageError, match=r"ACCESS_DENIED.*answered.*credentials"):
                action()
    assert len(asked) == 3


def test_what_is_not_there_is_told_at_once(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it does not come by itself"))
    with pytest.raises(StorageError, match="/none: "):
        store.read_at("none", 0, 1)
    if store.url.startswith("s3"):
        with pytest.raises(StorageError, match="NO_SUCH_BUCKET"):
            Store(store.url.replace("//bucket/", "//nobody/")).write("x", b"")


@pytest.mark.slow  # six seconds of the AWS client's own patience
def test_a_place_that_does_not_answer_is_told_with_its_address(s3: ObjectStore):
    nobody = s3.url("down").replace(str(s3.port), "9")
    with pytest.raises(StorageError, match=r"s3://bucket/down/x: .*answers within 1 tries.*credentials"):
        Store(nobody, tries=1).read("x")


@pytest.mark.parametrize("wrong", ["nothing://here", "s3://bucket/a[b]"])
def test_what_is_no_url_for_files_is_told(wrong: str):
    with pytest.raises(StorageError, match="is no place for files"):
        Store(wrong).listing()


def test_a_password_in_a_url_is_refused_and_not_repeated():
    with pytest.raises(StorageError, match=r"has a password in it.*AWS_ACCESS_KEY_ID") as caught:
        Store("s3://name:hunter2@bucket/a").listing()
    assert "hunter2" not in str(caught.value)
