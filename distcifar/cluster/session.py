"""Connecting to Ray: an embedded cluster of this machine, or a running one; have and need before the wait."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import worker

from distcifar.cluster import ENVIRONMENT
from distcifar.cluster.plain_words import in_plain_words
from distcifar.config import RunSpec
from distcifar.errors import ResourceError

CONNECT_SECONDS = 5.0
OVERSUBSCRIPTION = 4  # workers of an embedded cluster may share cores, slowly, up to this many each


@dataclass(frozen=True)
class Workers:
    """How many training processes, and what each takes of the cluster."""

    count: int
    cpus: int
    gpu: bool
    least: int = 0  # with how many the training may go on when some are lost; 0: with no fewer

    def resources(self) -> dict[str, float]:
        """Ray's resources of one worker."""
        return {"CPU": float(self.cpus)} | ({"GPU": 1.0} if self.gpu else {})


@contextmanager
def ray_session(spec: RunSpec) -> Iterator[Workers]:
    """A connection to Ray for one training, and the workers that it will have.

    Raises ResourceError at once where the head does not answer or the cluster is too small.
    """
    with connected(spec, 0 if spec.address else embedded_cpus(spec, _cores())):
        yield fit_workers(spec, ray.cluster_resources())


@contextmanager
def connected(spec: RunSpec, num_cpus: int) -> Iterator[None]:
    """A connection to the cluster at spec.address, or to one of this machine that claims to have `num_cpus`."""
    environment = dict(ENVIRONMENT)
    options: dict[str, Any] = {"log_to_driver": spec.verbose, "runtime_env": {"env_vars": environment}}
    options["logging_level"] = logging.INFO if spec.verbose else logging.ERROR
    try:
        if spec.address:
            require_head(spec.address)
            ray.init(address=spec.address, **options)
        else:
            start_head(num_cpus=num_cpus, **options)
    except (RuntimeError, OSError, ray.exceptions.RayError) as error:
        plain = in_plain_words(error)
        if plain is None and not spec.address:
            raise
        raise plain or _refusal(spec.address, error) from error
    try:
        with nullcontext() if spec.verbose else _unheard():
            yield
    finally:
        ray.shutdown()


def _refusal(address: str, error: BaseException) -> ResourceError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ResourceError(
        f"The head at {address} refuses: {lines[0]}",
        "Ray and Python must have the same versions on all machines, and the head must answer",
        "make setup here and there; --verbose shows Ray's own words",
    )


@contextmanager
def _unheard() -> Iterator[None]:
    """Without what Ray's daemons tell the driver, pages of it when a node is lost: there is no switch for that.

    What matters of it is told as events of the run.
    """
    printing = worker.print_to_stdstream
    worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        worker.print_to_stdstream = printing


def start_head(**options: Any) -> None:
    """Starts Ray on this machine, which gives up after half a minute: on a very busy machine a second try helps.

    Raises ResourceError where it does not.
    """
    for left in (1, 0):
        try:
            ray.init(address="local", include_dashboard=False, **options)
            return
        except Exception as error:  # Ray has no narrower type for it
            if "timed out" not in str(error):
                raise
            ray.shutdown()
            if not left:
                raise ResourceError(
                    f"Ray did not start on this machine: {error}",
                    "Its processes must come up within half a minute",
                    "Try again when the machine is less busy, or train with --workers 1, which needs none of them",
                ) from error


def embedded_cpus(spec: RunSpec, cores: int) -> int:
    """The number of CPUs an embedded cluster claims to have: the cores, or what the workers ask for.

    Several workers may share a core; ResourceError beyond OVERSUBSCRIPTION of them.
    """
    wanted = max(1, spec.workers) * max(1, spec.cpus_per_worker)
    if wanted > OVERSUBSCRIPTION * cores:
        raise ResourceError(
            f"{max(1, spec.workers)} workers of {max(1, spec.cpus_per_worker)} core(s) on a machine of {cores}",
            f"Here a core is shared by at most {OVERSUBSCRIPTION} workers",
            f"Use --workers {cores}, or --address HOST:PORT of a larger cluster",
        )
    return max(cores, wanted)


def fit_workers(spec: RunSpec, have: dict[str, float]) -> Workers:
    """The workers of `spec` on a cluster with resources `have`. Raises ResourceError with have and need.

    With spec.wait_minutes the cluster may still grow, and is not asked for more than what it will be.
    """
    gpus, cpus, grows = int(have.get("GPU", 0)), int(have.get("CPU", 0)), spec.wait_minutes > 0
    gpu = spec.device == "cuda" or (spec.device == "auto" and gpus > 0)
    if gpu and not gpus and not grows:
        raise ResourceError("The cluster has no GPU", "--device cuda needs one", "Use --device auto or cpu")
    count = spec.workers or max(1, gpus if gpu else 1)
    each = spec.cpus_per_worker or (1 if spec.address else max(1, cpus // count))
    needed = spec.min_workers or count
    if not grows and ((gpu and needed > gpus) or needed * each > cpus):
        fitting = min(cpus // each, gpus if gpu else cpus)
        raise ResourceError(
            f"The cluster has {cpus} CPUs and {gpus} GPUs; {needed} workers need {needed * each} CPUs"
            + (f" and {needed} GPUs" if gpu else ""),
            "All workers run at once",
            f"Use --workers {fitting}, or add nodes" if fitting else f"Use --cpus-per-worker {cpus}, or larger nodes",
        )
    return Workers(count, each, gpu, spec.min_workers)


def require_head(address: str) -> None:
    """Raises ResourceError unless something listens at `address`: ray.init would wait for ten minutes."""
    if address == "auto":
        return
    if "://" in address:
        raise ResourceError(
            f"{address!r} is not the address of a head",
            "--address is HOST:PORT of a running head, not that of Ray's client or of its job server",
            "Use port 6379 of that host, or `ray job submit --address ...`, whose jobs find the head by themselves",
        )
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"No Ray head answers at {address!r} ({error})",
            "--address is HOST:PORT of a running head",
            "Start one with `ray start --head --port 6379`, or leave --address out to use this machine",
        ) from None


def _cores() -> int:
    return len(os.sched_getaffinity(0))
