"""Looks at a machine or a whole cluster, and tells what was found."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from distcifar.cluster import census, gcs
from distcifar.cluster.session import connected
from distcifar.config import RunSpec
from distcifar.doctor import checks_cluster as cluster
from distcifar.doctor import checks_machine as machine
from distcifar.doctor import checks_ray as ray
from distcifar.doctor import checks_software as software
from distcifar.doctor import checks_storage as storage
from distcifar.doctor import checks_tracking as tracking
from distcifar.doctor.findings import Check, Facts, Finding, error, exit_code, findings_of
from distcifar.doctor.gather import Place, gather, gather_node
from distcifar.doctor.secrets import secret_names
from distcifar.errors import ResourceError

MACHINE: tuple[Check, ...] = (
    software.python_version, software.packages_installed, software.packages_locked, software.torch_imports,
    software.driver_answers, software.driver_serves_the_wheel, software.wheel_serves_the_cards,
    software.cards_are_free, software.ffcv_libraries, software.numba_layer,
    machine.threads, machine.cores, machine.memory_is_there, machine.shared_memory, machine.open_files,
    machine.rays_disk,
    storage.writable, storage.space, storage.inodes, storage.latency, storage.promises, storage.left_aside,
    storage.stores,
    ray.ports, ray.token, ray.job_environment, ray.heads, ray.sessions,
    tracking.wandb_key, tracking.netrc_is_private, tracking.wandb_answers,
    tracking.upload_secrets, tracking.upload_size, tracking.config_secrets,
)  # fmt: skip
CLUSTER: tuple[Check, ...] = (
    cluster.nodes_answer, cluster.versions_are_equal, cluster.auth_is_equal, cluster.clocks, cluster.leaks,
    cluster.jobs,
)  # fmt: skip


@dataclass(frozen=True)
class Report:
    """What was found, and the facts behind it, JSON-ready; no secret is in them."""

    findings: list[Finding]
    facts: Facts

    def document(self, fixed: list[str]) -> dict[str, Any]:
        """The one JSON document of --json."""
        found = [asdict(finding) for finding in self.findings]
        return {"version": 1, "exit_code": exit_code(self.findings), "findings": found, "fixed": fixed} | {
            "facts": self.facts
        }


def examine(place: Place, address: str, say: Callable[[str], None]) -> Report:
    """Looks at this machine (seconds), and at the cluster at `address` if there is one (half a minute)."""
    say("Looking at this machine")
    facts = gather(place)
    findings = findings_of(facts, MACHINE)
    if not address:
        return Report(findings, {"machine": facts})
    say(f"Looking at the cluster at {address}")
    try:
        with connected(RunSpec(address=address), 0):
            seen = look_at_cluster(place)
    except ResourceError as reason:
        findings.append(error("cluster", reason.found, reason.rule, reason.remedy))
        return Report(findings, {"machine": facts})
    told = {facts["host"]: findings}  # several nodes may be on one machine
    for key, node in seen["machines"].items():
        if "problem" not in node:
            host = f"{node['host']} ({seen['nodes'][key]['address']})"
            news = _news(findings_of(node, MACHINE), told.get(node["host"], []))
            told[node["host"]] = [*told.get(node["host"], []), *news]
            findings = findings + [replace(found, where=host, fix="") for found in news]
    findings += findings_of(seen | {"client": facts["auth"]}, CLUSTER)
    return Report(findings, {"machine": facts, "cluster": seen})


def look_at_cluster(place: Place) -> Facts:
    """The sections of facts of CLUSTER's checks, of the cluster that this process is connected to."""
    there = replace(place, environment={}, working_dir=None)  # secrets of this machine's environment stay here
    machines = census.on_each_node(gather_node, there)
    return {
        "nodes": {node["id"]: node for node in gcs.nodes()},
        "machines": machines,
        "skews": census.clock_skews(node for node, machine in machines.items() if "problem" not in machine),
        "leaks": census.leaks(),
        "jobs": census.secrets_of_jobs(secret_names),
    }


def _news(found: list[Finding], known: list[Finding]) -> list[Finding]:
    """The problems in `found` that were not told of the same machine already."""
    told = {(finding.check, finding.what) for finding in known}
    return [finding for finding in found if finding.level != "ok" and (finding.check, finding.what) not in told]
