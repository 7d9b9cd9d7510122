"""A running cluster looked at: what each node says, clocks, what dead drivers have left, secrets in clear text."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distcifar.cluster import gcs

NODE_SECONDS = 90.0  # in which a node must have answered: it starts a process that imports torch
CLOCK_SECONDS = 10.0  # for one question to a node that has answered before
CLOCK_TRIES = 5  # of which the one with the shortest way there and back counts
Names = Callable[[str], list[str]]  # the names of what looks like a secret in a JSON document


def on_each_node(function: Callable[..., Any], *words: Any, seconds: float = NODE_SECONDS) -> dict[str, Any]:
    """What `function(*words)` gives on each living node, by its id; {"problem": why} where there is no answer."""
    asked = {_on(node["id"], function, *words): node["id"] for node in gcs.nodes() if node["alive"]}
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=seconds) if asked else ([], [])
    answers: dict[str, Any] = {asked[answer]: {"problem": f"no answer in {seconds:.0f} s"} for answer in late}
    for answer in late:
        ray.cancel(answer, force=True)
    for answer in ready:
        try:
            answers[asked[answer]] = ray.get(answer)
        except ray.exceptions.RayError as reason:  # it died, or its Python does not have this package
            answers[asked[answer]] = {"problem": str(reason).strip().splitlines()[-1]}
    return answers


def _on(node: str, function: Callable[..., Any], *words: Any) -> Any:
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(function)
    return task.remote(*words)


def clock_skews(ids: Iterable[str], seconds: float = CLOCK_SECONDS) -> dict[str, Any]:
    """For each of these nodes {"skew", "uncertainty"} against this machine's clock, in seconds; or {"problem"}."""

    def asked(node: str) -> dict[str, Any]:
        try:
            return clock_skew(lambda: ray.get(_on(node, _now), timeout=seconds))
        except ray.exceptions.RayError as reason:
            return {"problem": str(reason).strip().splitlines()[-1]}

    return {node: asked(node) for node in ids}


def _now() -> float:
    return time.time()


def clock_skew(ask: Callable[[], float], clock: Callable[[], float] = time.time) -> dict[str, float]:
    """How far the clock behind `ask` is ahead, as NTP does it: its time against the middle of the way there and back.

    The skew is wrong by at most half of that way's seconds ("uncertainty"). The shortest of several ways counts.
    """
    tries = []
    for _ in range(CLOCK_TRIES):
        begun, there, ended = clock(), ask(), clock()
        tries.append((ended - begun, there - (begun + ended) / 2))
    way, skew = min(tries)
    return {"skew": skew, "uncertainty": way / 2}


def leaks() -> dict[str, Any]:
    """What outlived its driver: {"groups": [{"id", "name", "resources"}], "actors": [{"id", "name", ...}]}.

    Groups that a living actor has made or runs in are none. Ray's own lasting actors (of jobs, Serve, Ray Data) are
    none; those of Ray Train are ("ours"): they guard one training. Of others only their owner knows.
    """
    dead = {program.job_id for program in gcs.programs() if program.is_dead}
    actors = [actor for actor in gcs.actors() if actor.state != gcs.ACTOR.DEAD]
    used = {actor.placement_group_id for actor in actors}
    groups = [group for group in gcs.groups() if group.state != gcs.GROUP.REMOVED and group.creator_job_id in dead]
    lasting = [actor for actor in actors if actor.is_detached and actor.job_id in dead and not _is_rays_own(actor)]
    return {
        "groups": [
            _group(group) for group in groups if group.creator_actor_dead and group.placement_group_id not in used
        ],
        "actors": [_actor(actor) for actor in lasting],
    }


def _group(group: Any) -> dict[str, Any]:
    return {"id": group.placement_group_id.hex(), "name": group.name, "resources": gcs.held(group)}


def _actor(actor: Any) -> dict[str, Any]:
    return {
        "id": actor.actor_id.hex(),
        "name": actor.name,
        "namespace": actor.ray_namespace,
        "class": actor.class_name,
        "ours": _module(actor).startswith("ray.train."),
        "resources": dict(actor.required_resources),
    }


def _is_rays_own(actor: Any) -> bool:
    return _module(actor).startswith("ray.") and not _module(actor).startswith("ray.train.")


def _module(actor: Any) -> str:
    return str(actor.function_descriptor.python_function_descriptor.module_name)


def remove_leaks(found: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Removes the groups and the actors of ours that `leaks` has found, each told before; what has gone is passed."""
    for group in found["groups"]:
        say(f"Removing placement group {group['name'] or group['id'][:12]}, which holds {group['resources']}")
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group["id"]))))
    for actor in (actor for actor in found["actors"] if actor["ours"]):
        say(f"Ending detached actor {actor['name'] or actor['id'][:12]} ({actor['class']})")
        try:
            ray.kill(ray.get_actor(actor["name"], namespace=actor["namespace"]))
        except ValueError as reason:
            say(f"It could not be ended: {reason}")


def secrets_of_jobs(secret_names: Names) -> list[dict[str, Any]]:
    """Jobs, also past ones, whose runtime_env has secrets in clear text: {"job", "names"}. Their values stay here."""
    found = []
    for job in gcs.programs():
        documents = (job.config.runtime_env_info.serialized_runtime_env, job.job_info.runtime_env_json)
        if names := {name for document in documents for name in secret_names(document)}:
            found.append({"job": job.job_id.hex(), "names": sorted(names)})
    return found
