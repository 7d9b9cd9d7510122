"""`ray up` of docs/cluster-local.yaml on two hosts over SSH, a training on both, who is let in, and `ray down`.

The hosts are namespaces (tests/support/two_hosts.py) with an sshd each. What is changed in the file is what its head
says that users change. The log of a run is in docs/two-hosts.log: --basetemp=DIR keeps it as DIR/.../two-hosts.log.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.two_hosts import HOME, Host, inner, two_hosts, why_not

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PLACE = f"{HOME}/distcifar"  # where the file puts the project on a host
SSHD = "/usr/sbin/sshd"


@dataclass(frozen=True)
class Laptop:
    """Where `ray up` is typed: a home of its own, the cluster's file, and a log of what was typed and said."""

    home: Path
    file: Path
    log: Path

    def environment(self, *, token: bool = True) -> dict[str, str]:
        place = {"HOME": str(self.home), "RAY_TMPDIR": str(self.home), "TMPDIR": str(self.home), "TERM": "dumb"}
        return {
            **place, "PATH": f"{BIN}:{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0", "LANG": "C.UTF-8",
            "RAY_AUTH_MODE": "token" if token else "disabled",
        }  # fmt: skip

    def ray(self, *words: str | Path, timeout: float = 600, check: bool = True, token: bool = True) -> str:
        """What `ray WORDS` says, typed in the repository's root."""
        start = time.monotonic()
        done = subprocess.run(
            [BIN / "ray", *words], cwd=ROOT, env=self.environment(token=token), stdin=subprocess.DEVNULL, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout, check=False,
        )  # fmt: skip
        self.write(f"$ ray {' '.join(map(str, words))}\n{done.stdout}({time.monotonic() - start:.0f} s)\n")
        assert not check or done.returncode == 0, done.stdout
        return done.stdout

    def write(self, text: str) -> None:
        with self.log.open("a") as file:
            file.write(re.sub(r"\x1b\[[0-9;]*m", "", text))


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, ...]]:
    reason = why_not() or next((f"{name} is not there" for name in (SSHD, "rsync") if not shutil.which(name)), "")
    if reason:
        pytest.skip(reason)
    with two_hosts(tmp_path_factory.mktemp("hosts")) as found:
        yield found


@pytest.fixture(scope="module")
def laptop(hosts: tuple[Host, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    home = tmp_path_factory.mktemp("laptop")
    made = Laptop(home, home / "cluster.yaml", home / "two-hosts.log")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / "key"], check=True)
    with contextlib.ExitStack() as ends:
        for host in hosts:
            prepare(host, (home / "key.pub").read_text())
            daemon = ends.enter_context(
                host.popen([SSHD, "-D", "-e", "-f", "/etc/ssh/test"], stderr=subprocess.DEVNULL)
            )
            ends.callback(daemon.kill)
        made.file.write_text(filled_in(hosts, home / "key"))
        subprocess.run(  # says the token, which is for no log
            [BIN / "ray", "get-auth-token", "--generate"], env=made.environment(), capture_output=True, check=True
        )
        yield made


def prepare(host: Host, key: str) -> None:
    """What an owner has done: SSH with a key, and the set-up, once. The set-up's files here are this repository's."""
    lines = ["HostKey /etc/ssh/test-key", "AuthorizedKeysFile /etc/ssh/test-users", "PasswordAuthentication no",
             "PermitRootLogin prohibit-password", "UsePAM no", "UseDNS no", "PidFile none"]  # fmt: skip
    host.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/etc/ssh/test-key"])
    for path, text in {"/etc/ssh/test": "\n".join(lines), "/etc/ssh/test-users": key}.items():
        host.run(["python3", "-c", "import sys; open(sys.argv[1], 'w').write(sys.argv[2])", path, text])
    script = f"mkdir -p /run/sshd {PLACE}; ln -s {ROOT}/.venv {PLACE}/.venv; echo {PLACE} >{ROOT}/.venv/ready"
    host.run(["sh", "-ec", script])  # in this host's own files, not in the repository


def filled_in(hosts: tuple[Host, ...], key: Path) -> str:
    """docs/cluster-local.yaml for `hosts`."""
    text = (ROOT / "docs/cluster-local.yaml").read_text()
    changes = {
        "192.168.1.10": hosts[0].address, "192.168.1.11": hosts[1].address, "ssh_user: ubuntu": "ssh_user: root",
        "~/.ssh/distcifar": str(key), "/mnt/shared": str(hosts[0].shared),
        "cluster_name: distcifar": f"cluster_name: distcifar-{os.getpid()}",
    }  # fmt: skip
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def cluster(hosts: tuple[Host, ...], laptop: Laptop) -> Iterator[str]:
    """The cluster, up with both hosts; its address through `ray dashboard`'s tunnel."""
    port = free_port()
    laptop.ray("up", laptop.file, "--yes")
    try:
        wait_for(lambda: nodes(laptop) == 2, 600, "both nodes")
        tunnel = subprocess.Popen(
            [BIN / "ray", "dashboard", laptop.file, "--port", str(port)], cwd=ROOT, env=laptop.environment(),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        with tunnel:
            try:
                wait_for(lambda: answer("GET", f"http://127.0.0.1:{port}/api/version") != 0, 60, "the tunnel")
                yield f"http://127.0.0.1:{port}"
            finally:
                os.killpg(tunnel.pid, 15)
    finally:
        laptop.ray("down", laptop.file, "--yes", check=False)


def test_the_hosts_are_two(tmp_path: Path):
    """Own names, files, processes and links; and nothing is left of them."""
    if reason := why_not():
        pytest.skip(reason)
    with pytest.raises(ZeroDivisionError), two_hosts(tmp_path) as hosts:
        one, two = hosts
        one.run(["sh", "-c", f"echo seen >{HOME}/own; echo seen >/tmp/own; echo seen >{one.shared}/both"])
        for path in (f"{HOME}/own", "/tmp/own"):
            assert one.run(["cat", path]) == "seen\n"
            assert not Path(path).exists()
            assert "No such file" in two.run(["cat", path], check=False)
        assert two.run(["cat", two.shared / "both"]) == "seen\n"
        assert [host.run(["hostname"]).strip() for host in hosts] == [host.name for host in hosts]
        sleeping = one.popen(["sleep", "1000"])
        assert "sleep 1000" not in two.run(["ps", "-eo", "args"])
        outlives = inner(sleeping)
        reach = ["python3", "-c", f"import socket; socket.create_connection(('{two.address}', 1), 1)"]
        assert "refused" in one.run(reach, check=False), "someone is there"
        two.cut()
        assert "timed out" in one.run(reach, check=False)
        two.join()
        wait_for(lambda: "refused" in one.run(reach, check=False), 10, "the cable")
        raise ZeroDivisionError
    assert not Path(f"/proc/{outlives}").exists()
    assert sleeping.wait() != 0
    assert one.switch not in subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout


def test_both_hosts_train(hosts: tuple[Host, ...], laptop: Laptop, cluster: str):
    runs = hosts[0].shared / "runs"
    train = [
        "python",
        "jobs/train.py",
        "debug",
        "--workers",
        "2",
        "--cpus-per-worker",
        os.cpu_count(),
        "--name",
        "both",
    ]
    places = ["--runs", runs, "--data-root", runs.parent / "data"]
    laptop.ray("job", "submit", "--address", cluster, "--working-dir", ".", "--", *map(str, train), *places)
    summary = json.loads((runs / "both/summary.json").read_text())
    trained = {host.name: training_processes(host) for host in hosts}
    laptop.write(f"{summary['workers']} workers, test accuracy {summary['test_accuracy']:.3f}; by host: {trained}\n")
    assert summary["workers"] == 2
    assert trained == {"host-1": 1, "host-2": 1}
    wanted = {"GLOO_SOCKET_IFNAME=eth0", "NCCL_SOCKET_IFNAME==eth0", "RAY_AUTH_MODE=token", "RAY_USAGE_STATS_ENABLED=0"}
    for host in hosts:
        assert wanted <= set(host.run(["sh", "-c", "cat /proc/$(pgrep -xo raylet)/environ"]).split("\0"))


def test_only_who_has_the_token_is_let_in(hosts: tuple[Host, ...], laptop: Laptop, cluster: str):
    """The dashboard through the tunnel, the head's and a worker's agents from the other host, and the head itself."""
    agents = [
        (verb, f"http://{host.address}:52365/api/job_agent/jobs/{job}") for host in hosts for verb, job in STRANGERS
    ]
    answers = {f"{verb} {url}": answer(verb, url) for verb, url in agents}
    answers |= {
        f"{verb} jobs/{job} by the tunnel": answer(verb, f"{cluster}/api/jobs/{job}") for verb, job in STRANGERS
    }
    laptop.write("without a token: " + "; ".join(f"{what}: {code}" for what, code in answers.items()) + "\n")
    assert set(answers.values()) == {401}
    assert answer("GET", f"http://{hosts[0].address}:8265/api/version") == 0, "the dashboard is for the head alone"
    told = laptop.ray("status", "--address", f"{hosts[0].address}:6379", token=False, check=False, timeout=120)
    assert "AuthenticationError" in told
    for host in hosts:
        found = listeners(host)
        laptop.write(f"{host.name} listens at: {', '.join(found)}\n")
        assert not any(line.endswith(":8265") and not line.startswith("127.") for line in found)
        assert host.run(["stat", "-c", "%a", f"{HOME}/.ray/auth_token"]).strip() == "600"


def test_rays_client_is_let_in_with_the_token_and_left_out_without(
    hosts: tuple[Host, ...], laptop: Laptop, cluster: str
):
    script = f"import ray; ray.init('ray://{hosts[0].address}:10001'); print(ray.cluster_resources()['CPU'])"
    for token in (True, False):
        came = subprocess.run(
            [sys.executable, "-c", script],
            env=laptop.environment(token=token),
            capture_output=True,
            text=True,
            timeout=300,
        )
        last = (came.stderr if came.returncode else f"{came.stdout.strip()} CPUs").strip().splitlines()[-1]
        laptop.write(f"Ray's client with{'' if token else 'out'} the token: {last}\n")
        assert (came.returncode == 0) == token, came.stderr


def test_ray_down_leaves_nothing_behind(hosts: tuple[Host, ...], laptop: Laptop, cluster: str):
    laptop.ray("down", laptop.file, "--yes")
    start = time.monotonic()
    wait_for(lambda: not any(ray_processes(host) for host in hosts), 300, "the end of all of Ray's processes")
    laptop.write(f"Ray's last process on both hosts ended {time.monotonic() - start:.0f} s after `ray down`\n")
    assert (laptop.home / ".ray/auth_token").read_text() not in laptop.log.read_text()


def nodes(laptop: Laptop) -> int:
    """How many nodes `ray status` counts."""
    return sum(
        map(int, re.findall(r"^ (\d+) local\.cluster\.node", laptop.ray("exec", laptop.file, "ray status"), re.M))
    )


STRANGERS = (("POST", ""), ("DELETE", "raysubmit_1"), ("POST", "raysubmit_1/stop"), ("GET", "raysubmit_1"))


def training_processes(host: Host) -> int:
    """How many the host had, by the logs that Ray left in the host's own /tmp."""
    script = "ls /tmp/ray/session_latest/logs/train/ray-train-app-worker-*.log 2>/dev/null | wc -l"
    return int(host.run(["sh", "-c", script]))


def listeners(host: Host) -> list[str]:
    """Local addresses of the host's listening TCP sockets."""
    return sorted({line.split()[3] for line in host.run(["ss", "-Hltn"]).splitlines()})


def ray_processes(host: Host) -> list[str]:
    names = host.run(["ps", "-eo", "args"]).splitlines()
    return [line for line in names if re.search(r"raylet|gcs_server|ray::|dashboard", line)]


def answer(verb: str, url: str) -> int:
    """The status of an HTTP request that shows no token; 0 where nothing answers."""
    request = urllib.request.Request(url, method=verb, data=b"{}" if verb == "POST" else None)
    try:
        return urllib.request.urlopen(request, timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def wait_for(happened, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(2)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
