"""What control groups allow, in both versions, and what Ray wants of /dev/shm under them."""

from pathlib import Path

import pytest

from distcifar.doctor import machine
from tests.unit.doctor.faults import told, written

GIB = 1 << 30


def test_the_least_quota_of_a_group_and_all_above_it_counts(tmp_path: Path):
    """As on Slurm's login nodes, where user-1000.slice has the quota; in both versions at once the least."""
    membership = "4:cpu,cpuacct:/user.slice/user-1000.slice\n2:memory:/\n0::/user.slice/user-1000.slice/session\n"
    assert machine.cpu_quota(membership, tmp_path) is None
    written(tmp_path / "cpu.max", "max 100000\n")
    written(tmp_path / "user.slice/user-1000.slice/cpu.max", "600000 100000\n")
    written(tmp_path / "user.slice/user-1000.slice/session/cpu.max", "max 100000\n")
    assert machine.cpu_quota(membership, tmp_path) == 6
    for name, text in (("quota", "50000\n"), ("period", "100000\n")):
        written(tmp_path / "cpu" / "user.slice" / f"cpu.cfs_{name}_us", text)
    assert machine.cpu_quota(membership, tmp_path) == 0.5
    written(tmp_path / "cpu" / "user.slice" / "cpu.cfs_quota_us", "-1\n")
    assert machine.cpu_quota(membership, tmp_path) == 6


def test_in_a_container_the_root_is_its_own_group(tmp_path: Path):
    """It is told its path on the host, and sees no such folder."""
    written(tmp_path / "memory" / "memory.limit_in_bytes", f"{8 * GIB}\n")
    written(tmp_path / "memory" / "memory.usage_in_bytes", f"{5 * GIB}\n")
    written(tmp_path / "memory" / "memory.stat", f"inactive_file 7\ntotal_inactive_file {GIB}\n")
    assert machine.memory_limits("3:memory:/docker/ab\n", tmp_path) == [(8 * GIB, 4 * GIB)]
    assert machine.memory_limits("", tmp_path) == []


@pytest.mark.parametrize(
    ("available", "size", "level"),
    [
        (8.0, 3.0, "ok"),  # docker --memory 8g --shm-size 3g
        (8.0, 2.0, "warning"),
        (500.0, 10.0, "ok"),  # Ray takes no more than /dev/shm has, from ten billion bytes on
        (500.0, 9.0, "warning"),
    ],
)
def test_ray_wants_a_share_of_what_is_available_and_of_large_machines_less(available: float, size: float, level: str):
    memory = {"total_bytes": 1000 * GIB, "available_bytes": available * GIB}
    shm = {"path": "/dev/shm", "total_bytes": size * GIB}
    assert {found.check: found.level for found in told(shm=shm, memory=memory)}["shared memory"] == level
