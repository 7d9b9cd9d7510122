"""A TorchTrainer without the two helpers that this project does not use."""

from typing import Any

from ray.train.torch import TorchTrainer

UNUSED = ("DatasetsCallback", "PlacementGroupCleanerCallback")


class LeanTorchTrainer(TorchTrainer):
    """Starts neither Ray Data's manager nor the cleaner of Tune's placement groups.

    Each is a process that imports ray.train: four seconds of CPU apiece (docs/performance.md). The list of
    callbacks is Ray's private affair: where a newer Ray names them otherwise, they are simply started again.
    """

    def _create_default_callbacks(self) -> list[Any]:
        return [c for c in super()._create_default_callbacks() if type(c).__name__ not in UNUSED]
