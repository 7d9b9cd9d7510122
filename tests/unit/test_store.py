"""Files at a URL: whole or not at all, also over a line that is cut."""

import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from distcifar.errors import StorageError
from distcifar.store import Store, is_url
from tests.support.object_store import ObjectStore, object_store


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
