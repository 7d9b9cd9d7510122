"""Keeping freed memory: on a CPU a tenth of a small net's step is the kernel handing out fresh pages."""

import ctypes
import ctypes.util

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # <malloc.h>
TOP_PAD_BYTES = 64 << 20


def return_freed_memory() -> bool:
    """Returns what is free at this moment to the system, also from between blocks in use; False without glibc.

    Between two phases whose blocks are of other sizes (start, training, evaluation): kept blocks of the one seldom fit
    the other, and the process would hold both. Costs the page faults of one step.
    """
    glibc = _glibc()
    return glibc is not None and bool(glibc.malloc_trim(0))


def keep_freed_memory() -> bool:
    """Tells glibc to reuse large freed blocks instead of returning them to the system; False without glibc.

    Activations of many megabytes are allocated and freed at every step; by default each is a new mapping whose
    pages are cleared one fault at a time. Costs: the process keeps its peak memory.
    """
    glibc = _glibc()
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, TOP_PAD_BYTES))
    return glibc is not None and all(glibc.mallopt(name, value) for name, value in settings)


def _glibc() -> ctypes.CDLL | None:
    library = ctypes.util.find_library("c")
    found = ctypes.CDLL(library) if library else None
    return found if hasattr(found, "malloc_trim") and hasattr(found, "mallopt") else None
