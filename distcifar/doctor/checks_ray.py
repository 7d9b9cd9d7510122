"""Checks of Ray on one machine: who may command it, tokens, dead heads."""

import ipaddress
from collections.abc import Iterator

from distcifar.doctor.findings import Facts, Finding, error, ok, warning

GIB = 2**30
MANY_SESSIONS, LARGE_SESSIONS = 50, 1 * GIB


def ports(ports: Facts) -> Iterator[Finding]:
    """Nothing of Ray takes commands from other machines without a token."""
    outside = [at for at in ports["listening"] if not _is_loopback(at["address"])]
    open_to_all = [_named(at) for at in outside if at["auth"] == "disabled"]
    unknown = [_named(at) for at in outside if at["auth"] == "unknown"]
    if open_to_all:
        why = "Whoever reaches these ports runs any program here, as you"
        remedy = "ray stop; export RAY_AUTH_MODE=token; ray start --head --dashboard-host 127.0.0.1; and a firewall"
        yield error("ports", f"Open without a token: {', '.join(open_to_all)}", why, remedy)
    if unknown:
        why = "If it is Ray without a token, whoever reaches the port runs any program here"
        remedy = "Run the doctor as that process's user; a firewall for all of Ray's ports"
        yield warning("ports", f"Not known who listens, on a port of Ray's: {', '.join(unknown)}", why, remedy)
    if not open_to_all and not unknown:
        yield ok(
            "ports", f"{len(outside)} of Ray are reachable, all with a token" if outside else "none of Ray is open"
        )


def _is_loopback(address: str) -> bool:
    plain = ipaddress.ip_address(address.partition("%")[0])
    plain = getattr(plain, "ipv4_mapped", None) or plain
    return plain.is_loopback


def _named(at: Facts) -> str:
    return f"{at['role']} {at['address']}:{at['port']}"


def token(auth: Facts) -> Iterator[Finding]:
    """A token where the mode asks for one, and nobody else reads it."""
    if auth["mode"] not in ("", "token", "disabled"):
        what = f"RAY_AUTH_MODE={auth['mode']}"
        yield error("Ray's token", what, "Ray knows token and disabled", "export RAY_AUTH_MODE=token")
    elif auth["mode"] == "token" and not auth["token"]:
        why = "Ray ends with 'no authentication token was found'"
        remedy = f"ray get-auth-token --generate on the head; copy it to {auth['path']} on each machine"
        yield error("Ray's token", f"RAY_AUTH_MODE=token, and there is none in {auth['path']}", why, remedy)
    elif auth["exposed"]:
        why = "Whoever reads it commands your clusters"
        remedy = f"chmod 600 {auth['path']} (or doctor.py --fix)"
        yield warning("Ray's token", f"Others on this machine can read {auth['path']}", why, remedy, "permissions")
    else:
        yield ok("Ray's token", f"{'there' if auth['token'] else 'none yet'}, mode {auth['mode'] or 'not set'}")


def job_environment(auth: Facts) -> Iterator[Finding]:
    """This job's runtime_env has no secret in clear text."""
    if auth["job_secrets"]:
        yield in_clear_text("this job", auth["job_secrets"])


def in_clear_text(job: str, names: list[str]) -> Finding:
    """The finding about a job whose runtime_env has secrets."""
    what = f"The runtime_env of {job} carries {', '.join(names)} in clear text"
    why = "`ray job list`, the dashboard, logs and each process of the job show it"
    return warning("secrets", what, why, "A ~/.netrc of mode 600 on the nodes instead; then make a new key at W&B")


def heads(head: Facts) -> Iterator[Finding]:
    """The heads that programs connect to by default answer."""
    for at in head["heads"]:
        if at["answers"]:
            yield ok("head", f"{at['address']} answers ({at['source']})")
        else:
            named = at["source"] == "RAY_ADDRESS"
            remedy = "unset RAY_ADDRESS, or start the head" if named else f"rm {at['source']} (or doctor.py --fix)"
            what = f"{at['source']} names a dead head, {at['address']}"
            why = "Whatever connects to it waits for ten minutes and fails"
            yield error("head", what, why, remedy) if named else warning("head", what, why, remedy, "dead-head")


def sessions(sessions: Facts) -> Iterator[Finding]:
    """Dead heads have not left too much."""
    told = f"{len(sessions['dead'])} folder(s) of dead heads in {sessions['path']}, {sessions['bytes'] / GIB:.1f} GiB"
    if len(sessions["dead"]) > MANY_SESSIONS or sessions["bytes"] > LARGE_SESSIONS:
        why = "Ray never removes them, and stops when their disk is full"
        yield warning("sessions", told, why, "doctor.py --fix removes them", "sessions")
    else:
        yield ok("sessions", told)
