"""What run.json says of a machine's GPUs."""

from pathlib import Path

import pynvml
import pytest

from distcifar.cluster import facts
from distcifar.cluster.facts import hardware


def test_gpus_are_named_by_the_driver_or_by_nvml_where_it_has_no_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """As under WSL2; the second of three cards is lost."""

    def handle(index: int) -> int:
        if index == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return index

    ended: list[bool] = []
    monkeypatch.setattr(facts, "DRIVERS_GPUS", tmp_path)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: ended.append(True))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 3)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", handle)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", "abc".__getitem__)
    assert hardware()["gpus"] == ["a", "c"]
    assert ended == [True]
    (tmp_path / "0000").mkdir()
    (tmp_path / "0000" / "information").write_text("Model: \t\t NVIDIA L4\nIRQ: 5\n")
    assert hardware()["gpus"] == ["NVIDIA L4"]
    assert ended == [True], "not asked"


def test_no_gpu_is_no_mistake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def refused() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(facts, "DRIVERS_GPUS", tmp_path)
    monkeypatch.setattr(pynvml, "nvmlInit", refused)
    assert hardware()["gpus"] == []
