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
MEETING_SECONDS = 60.0  # that workers who have their places may take until they have met and read the data
NOT_MET = (
    f"The workers have their places, and nothing was heard of them for {MEETING_SECONDS:.0f} s: they start, read their "
    "data, or cannot reach each other. Where that stays so: --verbose shows what they say, and "
    "python jobs/doctor.py --address auto looks at names and ports"
)


@dataclass(frozen=True)
class Holder:
    """Resources that are reserved for a program on the cluster."""

    job: str  # Ray's number of the program, hexadecimal; "" for all that hold something without a placement group
    resources: Mapping[str, float]
    entrypoint: str = ""  # its command line
    submission: str = ""  # of `ray job submit`; empty for a program that was started otherwise
    ended: bool = False  # it has, and left this behind

    def __str__(self) -> str:
        if not self.job:
            return f"{_amounts(self.resources)} by tasks or actors of other programs"
        name = f"{self.entrypoint or 'a program'} ({self.submission or f'job {self.job}'})"
        return f"{_amounts(self.resources)} by {name}" + (", which has ended" if self.ended else "")

    @property
    def remedy(self) -> str:
        """What frees it."""
        if not self.job:
            return "`ray list actors` names those programs: end them"
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
        self._told, self._begun = "", False

    def sign_of_life(self) -> None:
        """The training goes on."""
        self._sign, self._told, self._begun = time.monotonic(), "", True

    def look(self) -> None:
        """Looks at the cluster now and then while there is no sign. Raises ResourceError when it was long enough."""
        now = time.monotonic()
        if now - self._sign < PATIENCE_SECONDS or now - self._look < LOOK_SECONDS:
            return
        self._look = now
        have = ray.cluster_resources()
        waiting = is_waiting(self._workers, have)
        words = waiting_words(self._workers, have, holders(have)) if waiting else ""
        if not waiting and not self._begun and now - self._sign > MEETING_SECONDS:
            words = NOT_MET
        if words and words != self._told:  # Ray takes a request back now and then, and makes it again
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
    held = [holder for holder in holders(ray.cluster_resources()) if holder.ended]
    if held:
        told = "; ".join(map(str, held))
        announce(f"Places are held by nobody: {told}. {held[0].remedy}")


def is_waiting(workers: Workers, have: Mapping[str, float]) -> bool:
    """Whether places are wanted by this program and are not given, or cannot be.

    Where the number of workers may change, Ray asks for none while another training has all of them.
    """
    number = ray.get_runtime_context().get_job_id()
    states = [group.state for group in gcs.groups() if group.creator_job_id.hex() == number]
    unasked = workers.least > 0 and gcs.GROUP.CREATED not in states
    return lacks(workers, have) or unasked or any(state in WAITING for state in states)


def holders(have: Mapping[str, float]) -> list[Holder]:
    """What of the resources `have` of the cluster other programs hold.

    By program where they have placement groups, as Ray Train and Tune make them; together what has none.
    """
    own = ray.get_runtime_context().get_job_id()
    programs = {program.job_id.hex(): program for program in gcs.programs()}
    placed = [group for group in gcs.groups() if group.state == gcs.GROUP.CREATED]
    found = [_holder(group, programs) for group in placed if group.creator_job_id.hex() != own]
    free, groups = ray.available_resources(), [gcs.held(group) for group in placed]
    rest = {
        name: have.get(name, 0.0) - free.get(name, 0.0) - sum(group.get(name, 0.0) for group in groups)
        for name in ("CPU", "GPU")
    }
    loose = {name: amount for name, amount in rest.items() if amount >= 1}
    return [*found, Holder("", loose)] if loose else found


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
