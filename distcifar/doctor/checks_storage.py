"""Checks of the folders of runs and data: space, inodes, flushed writes, renames, locks, what was left."""

from collections.abc import Iterator

from distcifar.doctor.findings import Facts, Finding, error, ok, warning

MIB, GIB = 2**20, 2**30
LEAST_FREE, LITTLE_FREE = 200 * MIB, 2 * GIB  # a run with its checkpoints; several of them
LEAST_INODES = 1000
SLOW_SECONDS = 0.1  # a flushed write of 4 KiB; each checkpoint waits for several


def writable(storage: Facts) -> Iterator[Finding]:
    """Files can be written and flushed at all."""
    for name, folder in storage.items():
        if "failure" in folder:
            why = "Neither checkpoints nor metrics can be kept there"
            yield error(
                f"{name} folder", f"{folder['path']}: {folder['failure']}", why, "Choose another folder, or mend it"
            )


def stores(stores: Facts) -> Iterator[Finding]:
    """What is at a URL answers, to this machine with its own credentials."""
    for name, store in stores.items():
        if "failure" in store:
            why = "Workers on this machine cannot " + (
                "keep a run there" if name == "runs" else "fetch data from there"
            )
            remedy = "Check address, network, and this machine's credentials (for s3:// those that the AWS tools use)"
            yield error(f"{name} at a URL", store["failure"], why, remedy)
        else:
            yield ok(f"{name} at a URL", f"{store['place']} answers in {1000 * store['seconds']:.0f} ms")


def space(storage: Facts) -> Iterator[Finding]:
    """There is room for a run."""
    for name, folder in storage.items():
        told = f"{folder['path']} has {folder['free_bytes'] / GIB:.1f} GiB free"
        why = "A run that cannot save its checkpoint stops"
        remedy = "Make room there, or choose a folder on another disk"
        if folder["free_bytes"] < LEAST_FREE:
            yield error(f"{name} space", told, why, remedy)
        elif folder["free_bytes"] < LITTLE_FREE:
            yield warning(f"{name} space", told, why, remedy)
        else:
            yield ok(f"{name} space", told)


def inodes(storage: Facts) -> Iterator[Finding]:
    """New files can be made: a disk with room may have no inodes left."""
    for name, folder in storage.items():
        if folder["inodes"] and folder["free_inodes"] < LEAST_INODES:
            what = f"{folder['path']}: {folder['free_inodes']} of {folder['inodes']} inodes are left"
            why = "No file can be made without one, whatever room there is"
            yield error(f"{name} inodes", what, why, "Remove folders of many small files, or choose another disk")


def latency(storage: Facts) -> Iterator[Finding]:
    """A small flushed write is quick."""
    for name, folder in storage.items():
        if (seconds := folder.get("write_seconds")) is None:
            continue
        told = f"{1000 * seconds:.1f} ms for a flushed write of 4 KiB (slowest {1000 * folder['slowest_seconds']:.0f})"
        if seconds > SLOW_SECONDS:
            why = "A checkpoint waits for several of them"
            yield warning(f"{name} latency", told, why, "A local disk for --runs, or fewer saves: --checkpoint-steps")
        else:
            yield ok(f"{name} latency", told)


def promises(storage: Facts) -> Iterator[Finding]:
    """A rename replaces a file at once, and a lock keeps a second process out."""
    for name, folder in storage.items():
        if not folder.get("renames", True):
            why = "Files are to be there whole or not at all: a killed run may be damaged"
            yield error(
                f"{name} renames", f"A rename in {folder['path']} does not replace", why, "Choose another folder"
            )
        if not folder.get("locks", True):
            why = "Two processes may train one run, or prepare the same data"
            remedy = "On NFS mount with local_lock=none and a lock server, or choose another folder"
            yield error(f"{name} locks", f"A lock in {folder['path']} keeps nobody out", why, remedy)


def left_aside(storage: Facts) -> Iterator[Finding]:
    """Killed processes have left nothing half-written."""
    for name, folder in storage.items():
        if left := folder.get("aside"):
            what = f"{len(left)} half-written file(s) or folder(s) in {folder['path']}, a day old or older"
            why = "Killed processes have left them; nothing reads them, and they take room"
            yield warning(f"{name} leftovers", what, why, "doctor.py --fix removes them", "leftovers")
