"""Checks of a cluster as a whole: nodes that do not answer, other versions, clocks, leaks, secrets of its jobs."""

from collections.abc import Iterator

from distcifar.doctor.checks_ray import in_clear_text
from distcifar.doctor.findings import Facts, Finding, error, ok, warning

SKEW_SECONDS = 1.0
ALIKE = ("ray", "distcifar", "torch", "ffcv", "numpy")


def nodes_answer(nodes: Facts, machines: Facts) -> Iterator[Finding]:
    """Each living node ran the doctor; those that were lost are told."""
    for node in nodes.values():
        if node["died"]:
            what = f"{_name(node)} was lost: {node['died']}"
            yield warning(
                "nodes", what, "Workers that ran there were lost", "Look at its machine; `ray start` there again"
            )
    for key, machine in machines.items():
        if "problem" in machine:
            why = "Workers that are put there will not start either"
            what = f"{_name(nodes[key])} does not answer: {machine['problem']}"
            yield error(
                "nodes", what, why, "make setup there; ray stop and ray start there; or look at its memory and disk"
            )
    if answered := [key for key, machine in machines.items() if "problem" not in machine]:
        yield ok("nodes", f"{len(answered)} answered")


def versions_are_equal(nodes: Facts, machines: Facts) -> Iterator[Finding]:
    """Python and packages have the same versions everywhere."""
    equal = True
    for name in ("python", *ALIKE):
        versions: dict[str, list[str]] = {}
        for key, machine in machines.items():
            if version := _version(machine, name):
                versions.setdefault(version, []).append(_name(nodes[key]))
        if len(versions) > 1:
            told = "; ".join(f"{version} on {', '.join(hosts)}" for version, hosts in sorted(versions.items()))
            why = "Workers understand each other only with equal versions, and give equal numbers only then"
            yield error(f"{name} versions", told, why, "make setup on each node, with the same requirements.lock")
            equal = False
    if equal:
        yield ok("versions", "equal on all nodes")


def _version(machine: Facts, name: str) -> str | None:
    """None where the node has not told."""
    section, key = ("python", "version") if name == "python" else ("packages", name)
    told = machine.get(section, {})
    return str(told[key] or "not installed") if key in told else None


def auth_is_equal(nodes: Facts, machines: Facts, client: Facts) -> Iterator[Finding]:
    """Each node, and this machine, has the same mode of authentication."""
    modes: dict[str, list[str]] = {client["mode"] or "disabled": ["this program"]}
    for key, machine in machines.items():
        if "mode" in machine.get("auth", {}):
            modes.setdefault(machine["auth"]["mode"] or "disabled", []).append(_name(nodes[key]))
    if len(modes) > 1:
        told = "; ".join(f"{mode}: {', '.join(hosts)}" for mode, hosts in sorted(modes.items()))
        why = "A node or a program without the head's mode is refused, after twenty seconds"
        yield warning("authentication", f"RAY_AUTH_MODE differs ({told})", why, "export RAY_AUTH_MODE=token everywhere")


def clocks(nodes: Facts, skews: Facts) -> Iterator[Finding]:
    """Clocks agree."""
    for key, clock in skews.items():
        if "problem" in clock:
            yield warning("clocks", f"{_name(nodes[key])}: {clock['problem']}", "Not measured", "Look again")
        elif abs(clock["skew"]) - clock["uncertainty"] > SKEW_SECONDS:
            what = f"The clock of {_name(nodes[key])} is {clock['skew']:+.1f} s off (± {clock['uncertainty']:.2f})"
            why = "Which checkpoint is newest is told wrongly, and logs of two nodes cannot be compared"
            yield warning("clocks", what, why, "sudo timedatectl set-ntp true on each node")
    if all("problem" not in clock and abs(clock["skew"]) <= SKEW_SECONDS for clock in skews.values()):
        yield ok("clocks", f"within {max((abs(clock['skew']) for clock in skews.values()), default=0):.3f} s")


def leaks(leaks: Facts) -> Iterator[Finding]:
    """Nothing of dead drivers holds places."""
    why = "What they hold is not free for others, whose trainings wait without an end"
    remedy = "doctor.py --address HOST:PORT --fix removes them"
    if leaks["groups"]:
        held = ", ".join(f"{group['name'] or group['id'][:12]} {group['resources']}" for group in leaks["groups"])
        yield warning("placement groups", f"{len(leaks['groups'])} of dead drivers: {held}", why, remedy, "leaks")
    for ours in (True, False):
        if actors := [actor for actor in leaks["actors"] if actor["ours"] == ours]:
            names = ", ".join(f"{actor['name'] or actor['id'][:12]} ({actor['class']})" for actor in actors)
            kill = f"If nobody wants them: ray.kill(ray.get_actor({actors[0]['name']!r}, {actors[0]['namespace']!r}))"
            what = f"{len(actors)} of dead drivers: {names}"
            yield warning("detached actors", what, why, remedy if ours else kill, "leaks" if ours else "")
    if not leaks["groups"] and not leaks["actors"]:
        yield ok("leaks", "none of dead drivers")


def jobs(jobs: list[Facts]) -> Iterator[Finding]:
    """No job carries a secret in clear text."""
    for job in jobs:
        yield in_clear_text(f"job {job['job']}", job["names"])


def _name(node: Facts) -> str:
    return f"{node['host']} ({node['address']})"
