"""Faults of Ray on this machine, of keys, of uploads, and of clusters as a whole."""

import json
import subprocess
import sys
import time

from distcifar.cluster.census import clock_skew
from distcifar.doctor import ray_here, uploads
from distcifar.doctor.findings import Finding
from distcifar.doctor.gather import Place, _wandb
from tests.unit.doctor.faults import SECRET, Bench, aged, fault, free_port, told, written

NODES = {key: {"host": key, "address": f"10.0.0.{key[1]}", "alive": True, "died": ""} for key in ("n1", "n2")}
MACHINE = {
    "python": {"version": "3.11.9"},
    "packages": dict.fromkeys(("ray", "distcifar", "torch", "ffcv", "numpy"), "1"),
}
KEEPER = {"id": "ab", "name": "keeper", "namespace": "old", "class": "Keeper", "resources": {}}
CLOCK = {"skew": 0.001, "uncertainty": 0.002}


def listening(*ports: int) -> list[Finding]:
    """What is told of these ports only: this machine may have heads of others."""
    seen = ray_here.port_facts(ports)["listening"]
    return told(ports={"listening": [at for at in seen if at["port"] in ports]})


@fault("a head without a token, open to all", "ports", "error", "head 0.0.0.0:", "RAY_AUTH_MODE=token")
def open_head(bench: Bench) -> list[Finding]:
    """A process named gcs_server that listens on 0.0.0.0"""
    return listening(bench.listening("gcs_server"))


@fault("a dashboard without a token, open to all", "ports", "error", "unknown 0.0.0.0:", "--dashboard-host 127.0.0.1")
def open_dashboard(bench: Bench) -> list[Finding]:
    """An HTTP server on 0.0.0.0 that gives its jobs to everyone"""
    return listening(bench.http(200))


@fault("something unknown on a port of Ray's", "ports", "warning", "Not known who listens", "firewall")
def unknown_port(bench: Bench) -> list[Finding]:
    """A process on 0.0.0.0 that closes connections"""
    bench.patch.setattr(ray_here, "PROBE_SECONDS", 0.1)
    return listening(bench.listening("something"))


@fault("a token that others can read", "Ray's token", "warning", "Others on this machine", "chmod 600", "permissions")
def open_token(bench: Bench) -> list[Finding]:
    """A file of mode 644"""
    written(bench.home / ".ray" / "auth_token", SECRET, 0o644)
    return told(auth=ray_here.auth_facts({}, bench.home))


@fault("authentication without a token", "Ray's token", "error", "there is none in", "get-auth-token --generate")
def no_token(bench: Bench) -> list[Finding]:
    """RAY_AUTH_MODE=token in an empty home"""
    return told(auth=ray_here.auth_facts({"RAY_AUTH_MODE": "token"}, bench.home))


@fault("a mistyped authentication mode", "Ray's token", "error", "tokne", "RAY_AUTH_MODE=token")
def mistyped_mode(bench: Bench) -> list[Finding]:
    """RAY_AUTH_MODE=tokne"""
    return told(auth=ray_here.auth_facts({"RAY_AUTH_MODE": "tokne"}, bench.home))


@fault("a key in a job's runtime_env", "secrets", "warning", "carries WANDB_API_KEY", ".netrc")
def secret_of_job(bench: Bench) -> list[Finding]:
    """RAY_JOB_CONFIG_JSON_ENV_VAR as Ray writes it"""
    config = {"runtime_env": {"env_vars": {"WANDB_API_KEY": SECRET, "OMP_NUM_THREADS": "1", "TOKENS_FILE": "/a/b/c/1"}}}
    return told(auth=ray_here.auth_facts({"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(config)}, bench.home))


@fault("RAY_ADDRESS of a dead head", "head", "error", "RAY_ADDRESS names a dead head", "unset RAY_ADDRESS")
def dead_address(bench: Bench) -> list[Finding]:
    """A port on which nobody listens"""
    return told(head=ray_here.head_facts({"RAY_ADDRESS": f"127.0.0.1:{free_port()}"}, bench.ray_temp))


@fault("Ray's note of a dead head", "head", "warning", "ray_current_cluster names a dead head", "rm ", "dead-head")
def dead_note(bench: Bench) -> list[Finding]:
    """ray_current_cluster with a port on which nobody listens"""
    written(bench.ray_temp / "ray_current_cluster", f"127.0.0.1:{free_port()}")
    return told(head=ray_here.head_facts({}, bench.ray_temp))


@fault("many folders of dead heads", "sessions", "warning", "60 folder(s)", "--fix", "sessions")
def dead_sessions(bench: Bench) -> list[Finding]:
    """60 old ones; a new one, one with new logs, one that a living process names"""
    for number in range(63):
        session = bench.ray_temp / f"session_2026-01-01_00-00-00_1_{number}"
        log = written(session / "logs" / "debug_state.txt", "")
        if number != 2:
            aged(log, 3600)
        if number != 0:
            aged(session, 3600)
    words = [sys.executable, "-c", "print(); input()", str(bench.ray_temp / "session_2026-01-01_00-00-00_1_1")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as living:
        assert living.stdout is not None
        living.stdout.readline()  # a process that is just beginning has no command line yet
        facts = ray_here.session_facts(bench.ray_temp, time.time())
        living.kill()
    return told(sessions=facts)


def tracked(place: Place) -> list[Finding]:
    """What is told of W&B."""
    return told(wandb=_wandb(place))


@fault("a W&B key cut short", "W&B key", "error", "(39 characters)", "wandb login")
def short_key(bench: Bench) -> list[Finding]:
    """WANDB_API_KEY without its last letter"""
    return tracked(bench.place(WANDB_API_KEY=SECRET[1:], WANDB_MODE="offline"))


@fault("a W&B key with quotes", "W&B key", "error", "quotes around it", "wandb login")
def quoted_key(bench: Bench) -> list[Finding]:
    """A .netrc"""
    written(bench.home / ".netrc", f"machine localhost:1\n  login user\n  password '{SECRET}'\n")
    return tracked(bench.place(WANDB_BASE_URL="http://localhost:1", WANDB_MODE="offline"))


@fault("a .netrc that others can read", "netrc", "warning", "Others on this machine", "chmod 600", "permissions")
def open_netrc(bench: Bench) -> list[Finding]:
    """Mode 644"""
    written(bench.home / ".netrc", f"machine localhost:1\n  login user\n  password {SECRET}\n", 0o644)
    return tracked(bench.place(WANDB_BASE_URL="http://localhost:1", WANDB_MODE="offline"))


@fault("a W&B server that does not answer", "W&B server", "warning", "Connection refused", "WANDB_MODE=offline")
def no_server(bench: Bench) -> list[Finding]:
    """WANDB_BASE_URL with a port on which nobody listens"""
    return tracked(bench.place(WANDB_API_KEY=SECRET, WANDB_BASE_URL=f"http://127.0.0.1:{free_port()}"))


@fault("a key in a file that would be uploaded", "upload", "error", "a.env:2", ".rayignore")
def uploaded_secret(bench: Bench) -> list[Finding]:
    """Two files with a key, one of them named in .rayignore"""
    for name in ("a.env", "b.env"):
        written(bench.upload / name, f"EPOCHS=3\nWANDB_API_KEY={SECRET}\n")
    written(bench.upload / ".rayignore", "b.env\n")
    return told(upload=uploads.upload_facts(bench.upload))


@fault("too much to upload", "upload size", "warning", "120 MiB", ".rayignore")
def large_upload(bench: Bench) -> list[Finding]:
    """A file of 120 MiB, and one that .gitignore names"""
    for name in ("large.bin", "ignored.bin"):
        with open(bench.upload / name, "wb") as file:
            file.truncate(120 << 20)
    written(bench.upload / ".gitignore", "ignored.*\n")
    return told(upload=uploads.upload_facts(bench.upload))


@fault("a key in cluster.yaml", "cluster file", "error", "cluster.yaml:1", "Take them out")
def cluster_secret(bench: Bench) -> list[Finding]:
    """A set-up command that exports it"""
    written(bench.upload / "cluster.yaml", f"setup_commands: ['export WANDB_API_KEY={SECRET}']\n")
    return told(config=uploads.config_secrets(bench.upload))


@fault("a node that does not answer", "nodes", "error", "n2 (10.0.0.2) does not answer", "ray start")
def silent_node(bench: Bench) -> list[Finding]:
    """Facts"""
    return told(nodes=NODES, machines={"n1": MACHINE, "n2": {"problem": "no answer in 90 s"}})


@fault("a node that was lost", "nodes", "warning", "n2 (10.0.0.2) was lost: no heartbeat", "ray start")
def lost_node(bench: Bench) -> list[Finding]:
    """Facts; a third node left on purpose"""
    left = {"host": "n3", "address": "10.0.0.3", "alive": False, "died": ""}
    lost = NODES["n2"] | {"alive": False, "died": "no heartbeat"}
    return told(nodes={**NODES, "n2": lost, "n3": left}, machines={"n1": MACHINE})


@fault("nodes of different versions", "ray versions", "error", "2.9 on n2", "requirements.lock")
def other_version(bench: Bench) -> list[Finding]:
    """Facts"""
    other = MACHINE | {"packages": {**MACHINE["packages"], "ray": "2.9"}}
    return told(nodes=NODES, machines={"n1": MACHINE, "n2": other})


@fault("authentication not alike", "authentication", "warning", "disabled: n2", "everywhere")
def other_mode(bench: Bench) -> list[Finding]:
    """Facts"""
    machines = {key: MACHINE | {"auth": {"mode": mode}} for key, mode in (("n1", "token"), ("n2", ""))}
    return told(nodes=NODES, machines=machines, client={"mode": "token"})


@fault("a clock that is off", "clocks", "warning", "n2 (10.0.0.2) is +3.0 s off", "set-ntp")
def wrong_clock(bench: Bench) -> list[Finding]:
    """A clock three seconds ahead, asked as a node is"""
    return told(nodes=NODES, skews={"n1": CLOCK, "n2": clock_skew(lambda: time.time() + 3)})


@fault("a placement group of a dead driver", "placement groups", "warning", "'CPU': 2.0", "--fix", "leaks")
def leaked_group(bench: Bench) -> list[Finding]:
    """Facts here; on a real cluster in test_cluster.py"""
    return told(leaks={"groups": [{"id": "ab", "name": "trial", "resources": {"CPU": 2.0}}], "actors": []})


@fault("a detached actor of a dead driver", "detached actors", "warning", "keeper (Keeper)", "--fix", "leaks")
def leaked_actor(bench: Bench) -> list[Finding]:
    """Facts here; on a real cluster in test_cluster.py"""
    return told(leaks={"groups": [], "actors": [KEEPER | {"ours": True}]})


@fault("somebody's detached actor", "detached actors", "warning", "keeper (Keeper)", "get_actor('keeper', 'old')")
def lasting_actor(bench: Bench) -> list[Finding]:
    """Facts here; on a real cluster in test_cluster.py"""
    return told(leaks={"groups": [], "actors": [KEEPER | {"ours": False}]})


@fault("a key in the runtime_env of a cluster's job", "secrets", "warning", "job 01000000 carries", ".netrc")
def secret_of_cluster(bench: Bench) -> list[Finding]:
    """Facts here; on a real cluster in test_cluster.py"""
    return told(jobs=[{"job": "01000000", "names": ["WANDB_API_KEY"]}])
