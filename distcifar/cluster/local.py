"""One worker on this machine: Ray Train's local mode, without a cluster (6 s of start instead of 40)."""

from typing import Any

from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

from distcifar.cluster.job import Announce, Job, Listener
from distcifar.cluster.stopping import StopRequest, stop_on_signals
from distcifar.cluster.worker import train_worker


def fit_here(job: Job, listen: Listener, announce: Announce) -> dict[str, Any]:
    """`train_worker`'s answer, computed in this process."""
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job, "listen": listen},
        scaling_config=ScalingConfig(num_workers=0),
    )
    with stop_on_signals(StopRequest(job.folder), announce):
        return trainer.fit().return_value
