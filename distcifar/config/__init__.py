"""What to train (Recipe) and where and how (RunSpec): frozen values, checked when they are built, stdlib only."""

from distcifar.config.inputs import AugmentConfig, DataConfig
from distcifar.config.model import ModelConfig
from distcifar.config.optim import OptimConfig, ScheduleConfig
from distcifar.config.recipe import Recipe, Stage
from distcifar.config.run import RunSpec
from distcifar.config.values import did_you_mean, differences, from_dict, replace_at, to_dict

__all__ = [
    "AugmentConfig",
    "DataConfig",
    "ModelConfig",
    "OptimConfig",
    "Recipe",
    "RunSpec",
    "ScheduleConfig",
    "Stage",
    "did_you_mean",
    "differences",
    "from_dict",
    "replace_at",
    "to_dict",
]
