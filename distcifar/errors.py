"""The error family: what a user did or met, told as value, rule and remedy.

A message has three sentences: what was found (with the value), what is required, and what to type or
change. Programs in jobs/ print it without a traceback and leave with `exit_code`; everything else is a
bug and shows one. The parts are positional, so that the exceptions survive pickling through Ray.
"""


class DistcifarError(Exception):
    """A mistake or a state of the world that the user can mend."""

    exit_code = 2

    def __init__(self, found: str, rule: str, remedy: str) -> None:
        super().__init__(found, rule, remedy)
        self.found, self.rule, self.remedy = found, rule, remedy

    def __str__(self) -> str:
        return " ".join(f"{part.rstrip('.')}." for part in self.args if part)


class ConfigError(DistcifarError):
    """A recipe, a run specification or a command line that cannot be meant."""


class DataError(DistcifarError):
    """A data set that is missing, damaged, or not what the recipe needs."""


class StorageError(DistcifarError):
    """No space, no permission, or a run directory that must not be overwritten."""


class CheckpointError(DistcifarError):
    """A checkpoint that is damaged, foreign, or of another format."""


class ResourceError(DistcifarError):
    """More workers, GPUs or memory asked for than there are; or a cluster that does not answer."""


class RunError(DistcifarError):
    """A run that fails at the same step again and again, or that another process is training."""

    exit_code = 4


class DivergenceError(DistcifarError):
    """NaN or Inf in the loss or the gradient: training stopped on all ranks at the same step."""

    exit_code = 3


class TrackingError(DistcifarError):
    """W&B cannot be reached or refuses, or what it has is not what is expected of it."""


class RegistryError(DistcifarError):
    """A model that may not be promoted, or an alias, a version or a registry that does not exist."""
