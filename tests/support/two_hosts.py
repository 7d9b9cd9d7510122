"""Two hosts on one machine, for tests of what happens between machines. Needs root, and Linux.

Each host is a set of namespaces: its own address and link, host name, processes, /dev/shm and /tmp. Its files are an
overlay of this machine's in memory, so every program is there, and what a host writes only that host sees. One folder,
`shared`, is the same for all, as NFS would be. Neither host's name resolves, as on a home network without DNS.

    with two_hosts(tmp_path) as hosts:
        server = hosts[0].popen(["python3", "-m", "http.server", "80"])
        hosts[1].run(["curl", f"http://{hosts[0].address}"])
        hosts[1].cut()

Everything of a host dies with its first process, which dies with this one: nothing is looked for by name.
"""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAMS = ("ip", "mount", "nsenter", "pivot_root", "setpriv", "unshare")
HOME = "/root"
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": HOME,
    "LANG": "C.UTF-8",
}

# The first process of a host: $1 an empty folder, $2 the shared folder, $3 the host's name. Bash collects what other
# processes leave behind; a program that takes no care of that would keep them as zombies, which Ray counts as alive.
INIT = """
hostname "$3"
mount -t tmpfs -o size=8g,mode=755 files "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" files "$1/root"
cd "$1/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount --rbind /dev dev
mount -t tmpfs -o mode=1777 shm dev/shm
mount -t tmpfs -o size=8g,mode=1777 tmp tmp
mkdir -p ".$2"
mount --bind "$2" ".$2"
rm -rf root/.ray root/.ssh root/.netrc
: >etc/resolv.conf
pivot_root . .
umount -l .
ip link set lo up
echo ready
sleep infinity &
wait
"""


@dataclass(frozen=True)
class Host:
    """A host that runs: its `name`, IPv4 `address`, and the `shared` folder; `outside` is this machine for it."""

    name: str
    address: str
    outside: str
    shared: Path
    init: int  # the first process, as this machine counts
    link: str  # this machine's end of the cable
    switch: str

    def popen(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path = "/",
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Starts `command` here, with `env` added to a bare environment. It dies with the process that is returned.

        Signals to that process do not reach the command: send them to `inner` of it.
        """
        enter = ["nsenter", "--target", str(self.init), "--mount", "--uts", "--ipc", "--net", "--pid", "--root"]
        whole = [*enter, "setpriv", "--pdeathsig", "KILL", "env", f"--chdir={cwd}", *map(str, command)]
        return subprocess.Popen(whole, env={**ENVIRONMENT, **(env or {})}, text=True, **options)

    def run(self, command: Sequence[str | Path], *, check: bool = True, timeout: float = 60, **options: Any) -> str:
        """Standard output and error of `command` here. Raises AssertionError, with both, where it fails."""
        process = self.popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
        try:
            output, _ = process.communicate(timeout=timeout)
        finally:
            process.kill()
        assert not check or process.returncode == 0, f"{self.name}: {' '.join(map(str, command))}\n{output}"
        return output

    def cut(self) -> None:
        """Pulls the cable at the switch: packets are lost from now on, and nobody is told."""
        _ip("link", "set", self.link, "nomaster")

    def join(self) -> None:
        """Puts the cable back."""
        _ip("link", "set", self.link, "master", self.switch)


def inner(process: subprocess.Popen[str]) -> int:
    """The process number, as this machine counts, of the command that `popen` has started."""
    deadline = time.monotonic() + 10
    while not (children := Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()):
        assert time.monotonic() < deadline, "the command has not started"
        time.sleep(0.01)
    return int(children[0])


def why_not() -> str:
    """Why there can be no hosts here; "" where there can."""
    if os.getuid() != 0:
        return "two hosts need root"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"two hosts need {', '.join(missing)}"
    tried = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True)
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


@contextlib.contextmanager
def two_hosts(folder: Path, count: int = 2) -> Iterator[tuple[Host, ...]]:
    """Hosts on one switch, which this machine is on as well; `folder`/shared is theirs together."""
    shared = folder / "shared"
    shared.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as ends:
        number, switch = _new_switch()
        ends.callback(_ip, "link", "delete", switch)
        outside = f"10.77.{number}.254"
        _ip("address", "add", f"{outside}/24", "dev", switch)
        _ip("link", "set", switch, "up")
        hosts = []
        for place in range(1, count + 1):
            name, link, own = f"host-{place}", f"{switch}h{place}", folder / f"host-{place}"
            own.mkdir()
            init = ends.enter_context(_first_process(own, shared, name))
            address = f"10.77.{number}.{place}"
            _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(init))
            ends.callback(_ip, "link", "delete", link)
            _ip("link", "set", link, "master", switch, "up")
            host = Host(name, address, outside, shared, init, link, switch)
            host.run(["ip", "address", "add", f"{address}/24", "dev", "eth0"])
            host.run(["ip", "link", "set", "eth0", "up"])
            host.run(
                ["ip", "route", "add", "default", "via", outside]
            )  # leads nowhere; Ray asks it for its own address
            hosts.append(host)
        yield tuple(hosts)


def _new_switch() -> tuple[int, str]:
    """A bridge that nobody else has: creating one that is there fails."""
    for number in range(1, 255):
        name = f"switch{number}"
        made = subprocess.run(["ip", "link", "add", name, "type", "bridge"], capture_output=True, text=True)
        if made.returncode == 0:
            return number, name
    raise OSError(f"No bridge can be made: {made.stderr.strip()}")


@contextlib.contextmanager
def _first_process(own: Path, shared: Path, name: str) -> Iterator[int]:
    """The number of a new host's first process; at the end it and all processes of the host are gone."""
    kinds = ["--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "unshare", *kinds, "bash", "-euc", INIT, "host", own, shared, name],
        stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    with process:  # waits for it in the end
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", f"{name} did not start"
            yield (first := inner(process))
        finally:
            process.kill()  # the first process goes with it, and with that one the others
    while Path(f"/proc/{first}").exists():
        time.sleep(0.01)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
