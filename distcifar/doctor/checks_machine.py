"""Checks of the machine: threads, memory, shared memory, open files, Ray's disk."""

import math
from collections.abc import Iterator

from distcifar.doctor.findings import Facts, Finding, error, ok, warning

GIB = 2**30
LEAST_MEMORY = 1 * GIB  # available: one worker with torch, without a GPU
# Of the available memory, what Ray wants in /dev/shm; and at most, unless /dev/shm itself has more
# (resolve_object_store_memory of ray/_private/utils.py, where the latter is REQUIRE_SHM_SIZE_THRESHOLD).
RAYS_SHARE, RAYS_MOST = 0.3, 10**10
LEAST_FILES = 4096  # of a Ray head with a few workers
FULL, NEARLY_FULL = 0.95, 0.90  # Ray stops writing objects on a disk that is FULL


def threads(torch: Facts, cpu: Facts) -> Iterator[Finding]:
    """torch has as many threads as cores that it may use, or fewer."""
    usable = usable_cores(cpu)
    count = torch.get("threads", 0)
    if count > usable:
        what = f"torch has {count} threads on {usable} usable core(s)" + f" (OMP_NUM_THREADS={cpu['omp']})" * bool(
            cpu["omp"]
        )
        why = "Threads that share a core wait for each other at each operation"
        yield warning("threads", what, why, f"export OMP_NUM_THREADS={usable}")
    else:
        yield ok("threads", f"{count} of torch on {usable} usable core(s)")


def cores(cpu: Facts) -> Iterator[Finding]:
    """The container's quota allows what its number of cores promises."""
    if cpu["quota"] is not None and cpu["quota"] < cpu["affinity"]:
        what = f"{cpu['affinity']} cores are seen, and a quota of {cpu['quota']:g} is allowed"
        why = "Whoever counts cores starts too many threads, which are stopped in the middle of their work"
        remedy = (
            f"export OMP_NUM_THREADS={usable_cores(cpu)}; ray start --num-cpus {usable_cores(cpu)}; or a larger --cpus"
        )
        yield warning("cores", what, why, remedy)
    else:
        yield ok("cores", f"{cpu['affinity']} of {cpu['cores']}")


def usable_cores(cpu: Facts) -> int:
    """Cores of this process, within its quota."""
    return max(1, math.floor(min(cpu["affinity"], cpu["quota"] or cpu["affinity"])))


def memory_is_there(memory: Facts) -> Iterator[Finding]:
    """There is memory for a worker."""
    told = f"{memory['available_bytes'] / GIB:.1f} of {memory['total_bytes'] / GIB:.1f} GiB available"
    if memory["available_bytes"] < LEAST_MEMORY:
        why = "A training takes about a GiB; Linux or Ray ends workers when memory runs out"
        yield warning("memory", told, why, "End other programs, or use a larger machine (container: --memory)")
    else:
        yield ok("memory", told)


def shared_memory(shm: Facts, memory: Facts) -> Iterator[Finding]:
    """/dev/shm holds what Ray wants to keep there."""
    if "missing" in shm:
        remedy = f"mkdir {shm['path']}; mount -t tmpfs tmpfs {shm['path']}; in a container ask for one (--shm-size)"
        yield error("shared memory", f"There is no {shm['path']}", "Ray does not start without it", remedy)
        return
    size, wanted = shm["total_bytes"], min(RAYS_SHARE * memory["available_bytes"], RAYS_MOST)
    if size < wanted:
        why = "Ray then keeps its objects on a disk, and NCCL between two GPUs may fail"
        gib = math.ceil(wanted / GIB)
        remedy = f"docker run --shm-size={gib}g, or: mount -o remount,size={gib}g {shm['path']}"
        yield warning("shared memory", f"{shm['path']} has {_size(size)}, Ray wants {_size(wanted)}", why, remedy)
    else:
        yield ok("shared memory", f"{_size(size)} in {shm['path']}")


def open_files(files: Facts) -> Iterator[Finding]:
    """Enough files may be open at once."""
    if 0 <= files["soft"] < LEAST_FILES:
        hard = files["hard"] if 0 <= files["hard"] < 65536 else 65536
        why = "Ray keeps several files and connections open for each worker, and fails with 'Too many open files'"
        remedy = f"ulimit -n {hard} before `ray start` (docker run --ulimit nofile={hard})"
        yield warning("open files", f"At most {files['soft']} at once, {LEAST_FILES} are wanted", why, remedy)
    else:
        yield ok("open files", f"at most {files['soft']}")


def rays_disk(temp: Facts) -> Iterator[Finding]:
    """The disk of Ray's sessions is not full."""
    used = 1 - temp["free_bytes"] / temp["total_bytes"]
    told = f"{temp['path']}: {used:.0%} full, {_size(temp['free_bytes'])} free"
    why = f"Ray puts no objects on a disk that is {FULL:.0%} full, and workers do not start"
    remedy = "Make room there (--fix removes folders of dead heads), or ray start --temp-dir on another disk"
    if used >= FULL:
        yield error("Ray's disk", told, why, remedy)
    elif used >= NEARLY_FULL:
        yield warning("Ray's disk", told, why, remedy)
    else:
        yield ok("Ray's disk", told)


def _size(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.0f} MiB"
