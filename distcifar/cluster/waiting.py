"""Why the workers of a run do not start: what they need, what the cluster has, who holds the rest, and what to type."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from distcifar.cluster import gcs
from distcifar.cluster.session import Workers
from distcifar.errors import ResourceError

WAITING = (gcs.GROUP.PENDING, gcs.GROUP.RESCHEDULING)
PATIENCE_SECONDS = 15.0  # without a sign of the workers, after which the user is told what they wait for
LOOK_SECONDS = 5.0  # between two looks at the cluster


@dataclass(frozen=True)
class Holder:
    """Resources that are reserved for a program on the cluster."""

    job: str  # Ray's number of the program, hexadecimal
    resources: Mapping[str, float]
    entrypoint: str = ""  # its command line
    submission: str = ""  # of `ray job submit`; empty for a program that was started otherwise
    ended: bool = False  # it has, and left this behind

    def __str__(self) -> str:
        name = f"{self.entrypoint or 'a program'} ({self.submission or f'job {self.job}'})"
        return f"{_amounts(self.resources)} by {name}" + (", which has ended" if self.ended else "")

    @property
    def remedy(self) -> str:
        """What frees it."""
        if self.ended:
            return "python jobs/doctor.py --address auto --fix frees what a program has left"
        return f"ray job stop {self.submission}" if self.submission else "end that program"


class Patience:
    """Tells the user what a run waits for, again when it has become something else.

    wait_minutes: after which a cluster that is too small is no longer waited for (RunSpec); 0: it is, for nodes that it
    has lost.
    """

    def __init__(self, workers: Workers, wait_minutes: float, announce: Callable[[str], None]) -> None:
        self._workers, self._wait, self._announce = workers, 60 * wait_minutes, announce
        self._sign = self._look = time.monotonic()
        self._told = ""

    def sign_of_life(self) -> None:
        """The training goes on."""
        self._sign = time.monotonic()

    def look(self) -> None:
        """Looks at the cluster now and then while there is no sign. Raises ResourceError when it was long enough."""
        now = time.monotonic()
        if now - self._sign < PATIENCE_SECONDS or now - self._look < LOOK_SECONDS:
            return
        self._look = now
        have = ray.cluster_resources()
        words = waiting_words(self._workers, have, holders()) if is_waiting(self._workers, have) else ""
        if words and words != self._told:
            self._announce(words)
        self._told = words
        if self._wait and now - self._sign > self._wait and lacks(self._workers, have):
            raise ResourceError(
                f"No nodes have come for {self._wait / 60:g} minutes. {words}",
                "--wait-minutes is how long a cluster that is too small is waited for",
                "Look at `ray status` and the autoscaler's log (monitor.out on the head), or use fewer --workers",
            )


class Lookout:
    """Notices nodes that the cluster loses while a run goes on; not those that are taken away on purpose."""

    def __init__(self) -> None:
        self._alive, self._look = _alive(gcs.nodes()), time.monotonic()

    def lost(self) -> list[str]:
        """A sentence for each node that is lost since the last look, which is seconds ago."""
        now = time.monotonic()
        if now - self._look < LOOK_SECONDS:
            return []
        nodes = gcs.nodes()
        gone = [node for node in nodes if node["id"] in self._alive and not node["alive"] and node["died"]]
        self._alive, self._look = _alive(nodes), now
        return [f"{node['host']} ({node['address']}) does not answer any more: {_short(node['died'])}" for node in gone]


def _alive(nodes: Sequence[Mapping[str, Any]]) -> set[str]:
    return {node["id"] for node in nodes if node["alive"]}


def _short(reason: str) -> str:
    return reason.split(". ")[0].strip().rstrip(".")


def lacks(workers: Workers, have: Mapping[str, float]) -> bool:
    """Whether a cluster with the resources `have` is too small for `workers`, whoever holds what of it."""
    count = workers.least or workers.count
    return any(have.get(name, 0.0) < amount * count for name, amount in workers.resources().items())


def waiting_words(workers: Workers, have: Mapping[str, float], held: Sequence[Holder]) -> str:
    """What keeps `workers` from being started on a cluster with the resources `have`, held by others as given."""
    count, each = workers.least or workers.count, workers.resources()
    free = {name: have.get(name, 0.0) - sum(holder.resources.get(name, 0.0) for holder in held) for name in each}
    told = ", ".join(f"{_amount(name, have.get(name, 0.0))} of which {max(0.0, free[name]):g} free" for name in each)
    need = _amounts({name: amount * count for name, amount in each.items()})
    words = f"Waiting for places: {count} worker(s) need {need}; the cluster has {told}."
    if lacks(workers, have):
        return f"{words} It is too small until nodes join; `ray status` tells whether one is being started"
    taking = [holder for holder in held if any(holder.resources.get(name) for name in each)]
    if not taking and workers.least:
        return ""  # Ray asks for as many as there were before a node was lost, and then for fewer
    if not taking:
        return f"{words} No node has room for a worker of {_amounts(each)}; with --cpus-per-worker 1 it needs less"
    places = min(int(free[name] // amount) for name, amount in each.items())
    fewer = f"To begin with fewer: --workers {places}. " if places > 0 else ""
    remedies = " or ".join(dict.fromkeys(holder.remedy for holder in taking))
    return f"{words} Held: {'; '.join(map(str, taking))}. {fewer}To free places: {remedies}"


def warn_of_leaks(announce: Callable[[str], None]) -> None:
    """Tells of places that programs which have ended still hold, before the first that lacks them waits."""
    held = [holder for holder in holders() if holder.ended]
    if held:
        told = "; ".join(map(str, held))
        announce(f"Places are held by nobody: {told}. {held[0].remedy}")


def is_waiting(workers: Workers, have: Mapping[str, float]) -> bool:
    """Whether places were asked for by this program and are not given, or cannot be."""
    own = ray.get_runtime_context().get_job_id()
    return lacks(workers, have) or any(
        group.creator_job_id.hex() == own and group.state in WAITING for group in gcs.groups()
    )


def holders() -> list[Holder]:
    """What is reserved on the cluster for other programs: placement groups, as Ray Train and Tune make them."""
    own = ray.get_runtime_context().get_job_id()
    programs = {program.job_id.hex(): program for program in gcs.programs()}
    placed = [group for group in gcs.groups() if group.state == gcs.GROUP.CREATED and group.creator_job_id.hex() != own]
    return [_holder(group, programs) for group in placed]


def _holder(group: Any, programs: Mapping[str, Any]) -> Holder:
    number = group.creator_job_id.hex()
    program = programs.get(number)
    if program is None:
        return Holder(number, gcs.held(group))
    submission = program.config.metadata.get("job_submission_id", "")
    return Holder(number, gcs.held(group), program.entrypoint, submission, program.is_dead)


def _amounts(resources: Mapping[str, float]) -> str:
    return " and ".join(_amount(name, amount) for name, amount in resources.items() if amount)


def _amount(name: str, amount: float) -> str:
    return f"{amount:g} {name}{'' if amount == 1 else 's'}"
