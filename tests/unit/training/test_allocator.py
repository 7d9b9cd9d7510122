"""Freed memory is kept for the next step, and returned when asked. In a process of its own: glibc's settings stay."""

import json
import subprocess
import sys

import pytest

from distcifar.training import allocator

# Blocks of 100 kB, each second one freed: what is free lies between blocks in use, where nothing is returned by itself.
PROGRAM = """
import json
from distcifar.training.allocator import keep_freed_memory, return_freed_memory
from distcifar.training.reports import resident_bytes
assert keep_freed_memory()
blocks = [b"x" * 100_000 for _ in range(2000)]
full = resident_bytes()
blocks = blocks[::2]
freed = resident_bytes()
assert return_freed_memory()
print(json.dumps([full, freed, resident_bytes()]))
"""


def test_freed_memory_is_kept_until_it_is_to_be_returned():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    full, freed, returned = json.loads(done.stdout)
    assert full - freed < 20e6
    assert freed - returned > 80e6


@pytest.mark.parametrize("function", [allocator.keep_freed_memory, allocator.return_freed_memory])
def test_without_glibc_nothing_happens(function, monkeypatch):
    monkeypatch.setattr(allocator.ctypes.util, "find_library", lambda name: None)
    assert not function()
