"""Where a device's memory is short: the batch is split into parts of half as many images, and the run goes on.

The gradient stays that of the whole batch (contract 3); only BatchNorm then sees smaller parts.
"""

import json

from distcifar.cluster.job import Job
from distcifar.errors import ResourceError
from distcifar.files import write_json
from distcifar.tracking.journal import append_event
from distcifar.world import World


def known_microbatch(job: Job) -> int:
    """The largest number of images in one forward pass, as asked for or as learnt in this run; 0: no limit."""
    path = job.folder / "microbatch.json"
    learnt = int(json.loads(path.read_text())["images"]) if path.exists() else 0
    return min(filter(None, (learnt, job.spec.microbatch)), default=0)


def halved_microbatch(job: Job, world: World, images: int) -> None:
    """Notes that half as many images as now are to go through the network at once. ResourceError below two.

    images: of a step, on the rank that has run out of memory.
    """
    part = -(-images // job.recipe.optim.accumulate)
    now = min(known_microbatch(job) or part, part)
    if now < 4:
        raise ResourceError(
            f"{now} images at once are too many for the memory of rank {world.rank}'s device",
            "A forward pass takes at least two images",
            "Use a smaller model, --device cpu, or a device with more memory",
        )
    write_json(job.folder / "microbatch.json", {"images": now // 2})
    append_event(job.folder, "memory", f"rank {world.rank} ran out of memory with {now} images at once: now {now // 2}")
