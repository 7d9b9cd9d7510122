"""What Ray, torch and NCCL raise is told in one sentence; the texts are theirs, where they could be had."""

from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from distcifar.cluster.plain_words import TRANSLATIONS, in_plain_words
from distcifar.cluster.remote import own_error
from distcifar.errors import ConfigError, ResourceError, RunError

VERSIONS = """Version mismatch: The cluster was started with:
    Ray: 2.59.0
    Python: 3.12.3
This process on 10.0.0.9 was started with:
    Ray: 2.60.0
    Python: 3.11.7
"""
TEXTS = {
    "driver": "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver",
    "card": "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be",
    "network": "[../third_party/gloo/gloo/transport/tcp/pair.cc:144] Gloo connectFullMesh failed with timeout",
    "NCCL": "NCCL error in: ProcessGroupNCCL.cpp:94, unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
    "disk": "OSError: [Errno 28] No space left on device: '/tmp/ray/session_2026-11-22/logs'",
    "other disk": "OSError: [Errno 28] No space left on device: '/home/ann/.cache/distcifar/data/x.beton'",
    "memory": "Task was killed due to the node running low on memory.\nMemory on the node (IP: 10.0.0.2, ID: ab)",
    "node": "The actor died unexpectedly.\nThe actor died because its node has died. Node Id: 3f",
    "versions": VERSIONS,
    "token": "ray.exceptions.AuthenticationError: Authentication failed: Unauthorized",
}


@pytest.mark.parametrize(("text", "known"), list(zip(TEXTS.values(), TRANSLATIONS, strict=True)), ids=list(TEXTS))
def test_each_is_told_with_rule_and_remedy(text: str, known: Any):
    error = in_plain_words(RuntimeError(text))
    assert isinstance(error, ResourceError)
    assert (error.rule, error.remedy) == (known.rule, known.remedy)
    assert "\n" not in str(error)
    assert "{" not in str(error)


def test_versions_are_told_as_they_are():
    told = str(in_plain_words(RuntimeError(VERSIONS)))
    for part in ("2.59.0", "3.12.3", "2.60.0", "3.11.7"):
        assert part in told


def test_a_disk_that_is_full_is_told_by_its_path_and_is_not_taken_for_rays():
    told = str(in_plain_words(RuntimeError(TEXTS["other disk"])))
    assert "is full: '/home/ann/.cache/distcifar/data/x.beton'" in told
    assert "/tmp/ray)" not in told
    assert "is full." in str(in_plain_words(OSError(28, "No space left on device")))


@pytest.mark.parametrize("text", ["", "list index out of range", "CUDA out of memory. Tried to allocate", "a node"])
def test_what_is_not_known_stays_as_it_was(text: str):
    error = RuntimeError(text)
    assert in_plain_words(error) is None
    assert own_error(error) is error


def test_what_is_below_counts_too():
    outer = RuntimeError("the controller failed")
    outer.__cause__ = OSError(28, "No space left on device", "/tmp/ray/session_x/logs")
    assert "/tmp/ray" in str(in_plain_words(outer))


class Failed(Exception):
    """As Ray Train raises it."""

    def __init__(self, failures: dict[int, BaseException]) -> None:
        super().__init__("workers failed")
        self.worker_failures = failures


def test_a_workers_own_mistake_goes_before_all_else():
    mine = ConfigError("lr is -1", "it is positive", "correct it")
    assert own_error(Failed({0: RuntimeError(TEXTS["network"]), 1: mine})) is mine
    told = own_error(Failed({0: ValueError("odd"), 1: RuntimeError(TEXTS["network"])}))
    assert "cannot reach each other" in str(told)
    assert isinstance(told.__cause__, Failed), "for --debug"
    unknown = own_error(Failed({0: ValueError("odd")}))
    assert isinstance(unknown, RunError)
    assert "rank 0: ValueError: odd" in str(unknown)


def test_a_rank_that_nobody_joins_is_told_as_a_matter_of_the_network():
    """The text is torch's own, of the version that is installed."""
    with pytest.raises(dist.DistError) as alone:
        dist.TCPStore("127.0.0.1", 0, world_size=2, is_master=True, timeout=timedelta(seconds=1))
    assert "cannot reach each other" in str(in_plain_words(alone.value)), alone.value
