"""Samples of process, node and GPU: plausible, cheap, and never in the way of the training."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from distcifar.cluster import hardware
from distcifar.cluster.hardware import Hardware, Meter, samples_of
from distcifar.world import World

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
NODE = {"host", "cpu_percent", "rss_bytes", "node_cpu_percent", "node_memory_bytes", "node_memory_total_bytes"}
ENOUGH = 20.0  # seconds that a busy machine may take for what is due at once


class NvmlError(Exception):
    """As pynvml.NVMLError."""


def nvml(**changes: object) -> SimpleNamespace:
    """A driver with one card, which is only found by its UUID."""
    handles = {"GPU-0a": "handle"}
    calls = {
        "NVMLError": NvmlError,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByUUID": handles.__getitem__,
        "nvmlDeviceGetName": {"handle": "RTX"}.__getitem__,
        "nvmlDeviceGetMemoryInfo": {"handle": SimpleNamespace(used=5, total=9)}.__getitem__,
        "nvmlDeviceGetUtilizationRates": {"handle": SimpleNamespace(gpu=71)}.__getitem__,
    }
    return SimpleNamespace(**{**calls, **changes})


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU as torch sees it."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="0a"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 4)


def failing(*_: object) -> None:
    raise NvmlError("Driver Not Loaded")


def test_a_sample_tells_of_process_and_node_and_is_json():
    meter = Hardware(CPU)
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    found = meter.sample()
    assert found.keys() == NODE
    assert json.loads(json.dumps(found)) == found
    assert found["cpu_percent"] > 10, "it has been busy all the time"
    assert 0 < found["node_cpu_percent"] <= 100
    assert 10e6 < found["rss_bytes"] < found["node_memory_bytes"] < found["node_memory_total_bytes"]


@pytest.mark.usefixtures("card")
def test_a_gpu_is_asked_for_by_its_uuid(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    found = Hardware(CUDA).sample()
    assert {name: found[name] for name in found.keys() - NODE} == {
        "gpu": "RTX", "gpu_percent": 71, "gpu_memory_bytes": 5, "gpu_memory_total_bytes": 9, "torch_peak_bytes": 4,
    }  # fmt: skip


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("name", ["nvmlInit", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetMemoryInfo"])
def test_a_driver_that_fails_gives_its_reason_instead_of_values_and_is_not_asked_again(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    asked = []
    monkeypatch.setitem(sys.modules, "pynvml", nvml(**{name: lambda *_: (asked.append(name), failing())}))
    meter = Hardware(CUDA)
    for _ in range(3):
        found = meter.sample()
        assert found.keys() - NODE == {"gpu_problem", "torch_peak_bytes"}
        assert found["gpu_problem"] == "Driver Not Loaded"
    assert asked == [name]


@pytest.mark.usefixtures("card")
def test_the_real_library_fails_in_the_same_way():
    """Without a driver, or with one that knows no such card."""
    found = Hardware(CUDA).sample()
    assert found.keys() - NODE == {"gpu_problem", "torch_peak_bytes"}
    assert found["gpu_problem"]


@pytest.mark.gpu
def test_the_real_gpu_is_measured():
    used = torch.zeros(2**20, device="cuda")
    found = Hardware(torch.device("cuda", 0)).sample()
    assert found["torch_peak_bytes"] >= used.nbytes
    assert found["torch_peak_bytes"] < found["gpu_memory_bytes"] < found["gpu_memory_total_bytes"]
    assert 0 <= found["gpu_percent"] <= 100


def test_a_sample_costs_less_than_a_millisecond():
    """In CPU time, and the best of several: other processes are not this one's."""
    meter = Hardware(CPU)
    spent = []
    for _ in range(20):
        start = time.thread_time()
        meter.sample()
        spent.append(time.thread_time() - start)
    assert min(spent) < 1e-3


# What a rank leaves


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(hardware, "SAMPLE_SECONDS", 0.01)


def soon(folder: Path, ranks: int = 1) -> Iterator[dict]:
    """The samples of `ranks`, as soon as there are any."""
    until = time.monotonic() + ENOUGH
    while not (found := samples_of(folder, ranks)) and time.monotonic() < until:
        time.sleep(0.005)
    return found


@pytest.mark.usefixtures("fast")
def test_a_rank_leaves_its_newest_sample_while_it_lives_and_nothing_afterwards(tmp_path: Path):
    before = threading.active_count()
    with Meter(tmp_path, World(1, 2)):
        (found,) = soon(tmp_path, ranks=2)
    assert found.keys() == NODE | {"rank"}
    assert found["rank"] == 1
    assert threading.active_count() == before
    assert not (tmp_path / "ranks").exists()


def test_what_a_killed_start_has_left_is_not_taken_for_a_measurement(tmp_path: Path):
    (tmp_path / "ranks").mkdir()
    for rank in (0, 3):
        (tmp_path / f"ranks/{rank}.hardware.json").write_text('{"host": "old"}')
    with Meter(tmp_path, World(0, 2)):
        assert samples_of(tmp_path, 2) == []
    assert (tmp_path / "ranks/3.hardware.json").exists(), "not its own"


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("error", [psutil.AccessDenied(), OSError("no /proc")])
def test_a_system_that_does_not_tell_is_asked_again(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    answers = iter([error, {"host": "a"}])

    def sample(_: Hardware) -> dict:
        answer = next(answers, {"host": "a"})
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(Hardware, "sample", sample)
    with Meter(tmp_path, World()):
        assert soon(tmp_path) == [{"rank": 0, "host": "a"}]


@pytest.mark.usefixtures("fast")
def test_a_driver_that_stands_still_does_not_keep_the_run_from_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked, over = threading.Event(), threading.Event()
    monkeypatch.setattr(Hardware, "sample", lambda _: (asked.set(), over.wait(ENOUGH), {})[2])
    start = time.monotonic()
    with Meter(tmp_path, World()):
        assert asked.wait(ENOUGH / 2)
    assert time.monotonic() - start < ENOUGH / 2
    over.set()


@pytest.mark.usefixtures("fast")
def test_a_vanished_run_directory_is_not_made_anew(tmp_path: Path):
    with Meter(tmp_path / "gone", World()):
        time.sleep(0.1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "\0"])
def test_a_sample_that_cannot_be_read_is_left_out(tmp_path: Path, text: str):
    (tmp_path / "ranks").mkdir()
    (tmp_path / "ranks/0.hardware.json").write_text(text)
    (tmp_path / "ranks/1.hardware.json").write_text('{"host": "b"}')
    assert samples_of(tmp_path, 2) == [{"rank": 1, "host": "b"}]
