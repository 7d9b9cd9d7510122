"""Ray's TorchTrainer as this project starts it."""

from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from distcifar.cluster.interfaces import OnNodeInterface
from distcifar.cluster.job import Job
from distcifar.cluster.recorder import silence
from distcifar.cluster.session import Workers
from distcifar.cluster.worker import train_worker

UNUSED = ("DatasetsCallback", "PlacementGroupCleanerCallback")
COLLECTIVE_SECONDS = 1800  # after which a collective that a peer never joins is an error; the watchdog is earlier
RESIZE_SECONDS = 10.0  # how often an elastic run looks whether it could grow


class LeanTorchTrainer(TorchTrainer):
    """Starts neither Ray Data's manager nor the cleaner of Tune's placement groups.

    Each is a process that imports ray.train: four seconds of CPU apiece (docs/performance.md). The list of
    callbacks is Ray's private affair: where a newer Ray names them otherwise, they are simply started again.
    """

    def _create_default_callbacks(self) -> list[Any]:
        return [c for c in super()._create_default_callbacks() if type(c).__name__ not in UNUSED]


def prestart_coordinator() -> None:
    """Starts the actor that Train's controller asks for resources beside the controller, not after it.

    The controller waits up to five seconds for that actor's process, which imports ray.train as well.
    """
    try:
        from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordinator
    except ImportError:
        return  # private to Ray 2.60: elsewhere the controller starts it itself
    coordinator.get_or_create_autoscaling_coordinator()


def make_trainer(job: Job, workers: Workers, attempt: str) -> TorchTrainer:
    """A trainer of `job` on `workers`; `attempt` names Ray's own files below the run directory."""
    return LeanTorchTrainer(
        train_worker,
        train_loop_config={"job": job, "listen": silence},
        torch_config=OnNodeInterface(backend="nccl" if workers.gpu else "gloo", timeout_s=COLLECTIVE_SECONDS),
        scaling_config=ScalingConfig(
            num_workers=(workers.least, workers.count) if workers.least else workers.count,
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
            use_gpu=workers.gpu,
            resources_per_worker=workers.resources(),
        ),
        run_config=RunConfig(
            name=attempt,
            storage_path=str(job.folder / "ray"),
            failure_config=FailureConfig(max_failures=job.spec.max_failures),
        ),
    )
