"""What NVML tells of several cards: one that fails hides no other, and those that CUDA may not see are not judged."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from distcifar.doctor import machine
from tests.unit.doctor.faults import told
from tests.unit.doctor.machine_faults import TORCH

GIB = 1 << 30
LOST, UNTOLD = pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST), pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


class Driver:
    """NVML with made-up cards {name, capability, used, reserved, mig, error}; all else is the real library's."""

    def __init__(self, *cards: dict[str, Any], old: bool = False) -> None:
        self.cards, self.old = cards, old

    def __getattr__(self, name: str) -> Any:
        if name.startswith("nvmlDeviceGet"):  # no real driver is asked by mistake
            raise AttributeError(name)
        return getattr(pynvml, name)

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None: ...

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 13020

    def nvmlSystemGetDriverVersion(self) -> str:
        return "595.1"

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if "error" in self.cards[index]:
            raise self.cards[index]["error"]
        return index

    def nvmlDeviceGetName(self, at: int) -> str:
        return str(self.cards[at].get("name", "RTX"))

    def nvmlDeviceGetUUID(self, at: int) -> str:
        return f"GPU-{at}{at}{at}"

    def nvmlDeviceGetCudaComputeCapability(self, at: int) -> tuple[int, int]:
        found: tuple[int, int] = self.cards[at].get("capability", (9, 0))
        return found

    def nvmlDeviceGetComputeMode(self, at: int) -> int:
        return pynvml.NVML_COMPUTEMODE_DEFAULT

    def nvmlDeviceGetMigMode(self, at: int) -> list[int]:
        if "mig" not in self.cards[at]:
            raise UNTOLD
        return [pynvml.NVML_DEVICE_MIG_ENABLE] * 2

    def nvmlDeviceGetMemoryInfo(self, at: int, version: int | None = None) -> SimpleNamespace:
        card = self.cards[at]
        if "mig" in card:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)
        if version and self.old:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        used = card.get("used", 0) + (0 if version else card.get("reserved", 0))
        return SimpleNamespace(total=8 * GIB, used=used)


def problems(monkeypatch: pytest.MonkeyPatch, driver: Driver, **environment: str) -> list[tuple[str, str]]:
    """(check, level) of all that is not ok."""
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    found = told(torch=TORCH, gpus=machine.gpu_facts(environment))
    return [(finding.check, finding.level) for finding in found if finding.level != "ok"]


def test_a_card_that_fails_hides_no_other(monkeypatch: pytest.MonkeyPatch):
    driver = Driver({}, {"error": LOST}, {"used": 6 * GIB})
    assert problems(monkeypatch, driver) == [("GPU 1", "error"), ("GPU 2 RTX", "warning")]


def test_a_divided_card_whose_memory_is_not_told_is_no_failure(monkeypatch: pytest.MonkeyPatch):
    assert problems(monkeypatch, Driver({"mig": True})) == [("GPU 0 RTX", "warning")]


def test_each_of_several_equal_cards_is_named(monkeypatch: pytest.MonkeyPatch):
    busy = {"used": 6 * GIB}
    assert [check for check, _ in problems(monkeypatch, Driver({}, busy, {}, busy))] == ["GPU 1 RTX", "GPU 3 RTX"]


@pytest.mark.parametrize(
    "environment",
    [
        {"CUDA_VISIBLE_DEVICES": "0"},
        {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
        {"CUDA_VISIBLE_DEVICES": "GPU-1"},
        {"CUDA_VISIBLE_DEVICES": ""},
    ],
)
def test_an_old_card_for_the_screen_that_is_hidden_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
):
    driver = Driver({"name": "GT 710", "capability": (3, 5)}, {})
    assert problems(monkeypatch, driver, **environment) == []
    assert problems(monkeypatch, driver) == [("architecture", "error")]


@pytest.mark.parametrize(
    ("visible", "seen"),
    [(None, [0, 1, 2]), ("2,0", [0, 2]), ("1,7,0", [1]), ("-1", []), ("GPU-b, GPU-a", [0, 1]),
     ("MIG-12", [2]), ("NoDevFiles", [])],
)  # fmt: skip
def test_what_cuda_may_see(visible: str | None, seen: list[int]):
    cards = [{"index": index, "uuid": f"GPU-{'abc'[index]}", "mig": index == 2} for index in range(3)]
    assert [card["index"] for card in machine.visible_cards(cards, visible, "PCI_BUS_ID")] == seen


@pytest.mark.parametrize(("old", "told_busy"), [(False, False), (True, True)])
def test_what_the_driver_keeps_is_not_called_others_work(monkeypatch: pytest.MonkeyPatch, old: bool, told_busy: bool):
    driver = Driver({"used": GIB, "reserved": GIB // 2}, old=old)
    assert bool(problems(monkeypatch, driver)) == told_busy


@pytest.mark.parametrize(
    ("device", "reason", "level"),
    [
        ("dxg", pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "error"),
        ("dxg", pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "ok"),  # a card of another maker
        ("nvidia0", pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "error"),
        ("nvidiactl", pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "ok"),
    ],
)
def test_a_driver_that_does_not_answer_under_wsl_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, reason: int, level: str
):
    def refused() -> None:
        raise pynvml.NVMLError(reason)

    (tmp_path / device).touch()
    monkeypatch.setattr(machine, "DEVICES", tmp_path)
    monkeypatch.setattr(pynvml, "nvmlInit", refused)
    assert [finding.level for finding in told(gpus=machine.gpu_facts({}))] == [level]
