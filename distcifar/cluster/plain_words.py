"""What Ray, torch, NCCL and gloo raise, told in one sentence with rule and remedy; what is not known stays theirs."""

import re
from dataclasses import dataclass

from distcifar.errors import ResourceError

DOCTOR = "python jobs/doctor.py"


@dataclass(frozen=True)
class Translation:
    """Texts that match `pattern` mean this. Groups of the pattern may stand in `found`."""

    pattern: str
    found: str
    rule: str
    remedy: str


TRANSLATIONS = (
    Translation(
        r"NVIDIA driver on your system is too old|CUDA driver version is insufficient",
        "The NVIDIA driver of a worker's machine is too old for this torch",
        "The driver must be at least as new as the CUDA that torch was built with",
        f"Update the driver there, or install a torch for an older CUDA; {DOCTOR} names both versions",
    ),
    Translation(
        r"no kernel image is available for execution on the device",
        "This torch has no code for the worker's GPU",
        "The wheel must be built for the card's compute capability",
        f"Install a torch whose CUDA knows the card; {DOCTOR} names both",
    ),
    Translation(
        r"Gloo connect\w+ failed|DistStoreError|DistNetworkError|ncclSystemError|ncclRemoteError"
        r"|NCCL (error|Error).*(connect|socket|timed? ?out)|(TCPStore|c10d).*(timed out|failed to connect|refused)",
        "The ranks cannot reach each other over the network",
        "Every node must reach every other one on all ports, by the address that Ray knows it by",
        "Open the nodes' firewalls to each other, or name the interface: GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME "
        "where `ray start` is typed; NCCL_DEBUG=INFO says more",
    ),
    Translation(
        r"unhandled cuda error|ncclUnhandledCudaError|ncclInternalError|ncclInvalidUsage",
        "NCCL could not be started on the workers' GPUs",
        "Each rank has a GPU of its own that no other program has locked or filled",
        f"Look at nvidia-smi on each node, or {DOCTOR} --address HOST:PORT; NCCL_DEBUG=INFO says more",
    ),
    Translation(
        r"local disk's utilization is over capacity|is over 95% full|OutOfDiskError"
        r"|No space left on device\W+\S*(/ray/|session_|plasma)",
        "The disk of Ray's own files (/tmp/ray) is full",
        "Ray stops starting processes when 95 % of it are used",
        f"Make room there ({DOCTOR} --fix removes what dead heads have left), or `ray start --temp-dir` elsewhere",
    ),
    Translation(
        r"No space left on device(?P<path>: \S+)?",
        "A disk of a worker's machine is full{path}",
        "Run, copies of data, and caches below ~/.cache and /tmp need room where the workers are",
        "Make room there; the same command goes on",
    ),
    Translation(
        r"running low on memory|node is low on memory",
        "A worker was ended because its node ran out of memory",
        "All workers of a node share its memory, each with a copy of the images",
        "Fewer workers a node (--cpus-per-worker), --loader streamed, or nodes with more memory",
    ),
    Translation(
        r"its node has died|node was terminated|NodeDiedError|missing too many heartbeats",
        "A node was lost: it was taken away, switched off, or its network was cut",
        "A run on a fixed number of workers needs all of its nodes",
        "The same command goes on when it is back; with --workers 1..N it goes on with those that are left",
    ),
    Translation(
        r"Version mismatch: (?P<versions>.*Python: [\d.]+)",
        "The cluster and this program have other versions of Ray or Python ({versions})",
        "They must be the same on all machines",
        f"Install requirements.lock here and there; {DOCTOR} --address HOST:PORT names each node's",
    ),
    Translation(
        r"AuthenticationError|InvalidAuthToken|[Aa]uthentication token",
        "The cluster takes no connection without its token",
        "Ray asks for the token of ~/.ray/auth_token where RAY_AUTH_MODE is token",
        "export RAY_AUTH_MODE=token, and copy the head's ~/.ray/auth_token here (mode 600)",
    ),
)  # fmt: skip


def in_plain_words(error: BaseException) -> ResourceError | None:
    """The first translation that fits `error`, its type's name or what it was raised from; None for none."""
    text = _text_of(error)
    for each in TRANSLATIONS:
        if found := re.search(each.pattern, text, re.DOTALL):
            groups = {name: _one_line(value or "") for name, value in found.groupdict().items()}
            return ResourceError(_one_line(each.found.format(**groups)), each.rule, each.remedy)
    return None


def _text_of(error: BaseException | None) -> str:
    parts: list[str] = []
    while error is not None and len(parts) < 10:
        parts.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return "\n".join(parts)


def _one_line(text: str) -> str:
    return " ".join(text.split())
