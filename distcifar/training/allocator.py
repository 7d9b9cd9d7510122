"""Keeping freed memory: on a CPU a tenth of a small net's step is the kernel handing out fresh pages."""

import ctypes
import ctypes.util

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # <malloc.h>
TOP_PAD_BYTES = 64 << 20


def keep_freed_memory() -> bool:
    """Tells glibc to reuse large freed blocks instead of returning them to the system; False without glibc.

    Activations of many megabytes are allocated and freed at every step; by default each is a new mapping whose
    pages are cleared one fault at a time. Costs: the process keeps its peak memory.
    """
    library = ctypes.util.find_library("c")
    if library is None or not hasattr(ctypes.CDLL(library), "mallopt"):
        return False
    mallopt = ctypes.CDLL(library).mallopt
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, TOP_PAD_BYTES))
    return all(mallopt(name, value) for name, value in settings)
