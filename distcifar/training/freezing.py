"""Layers that stop learning before the end: their backward pass is work that no longer pays."""

from torch import nn

from distcifar.config import Recipe
from distcifar.errors import ConfigError


def require_layers(model: nn.Module, recipe: Recipe) -> None:
    """Raises ConfigError where `optim.freeze` names a layer without parameters that learn."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for layer in recipe.optim.freeze_after:
        if not any(_within(name, layer) for name in names):
            top = sorted({".".join(name.split(".")[:2]) for name in names})
            raise ConfigError(
                f"optim.freeze names {layer!r}",
                f"The model's layers that learn are {', '.join(top)}, and those in them",
                "Correct --optim.freeze",
            )


def freeze_layers(model: nn.Module, recipe: Recipe, share: float) -> None:
    """Takes the layers out of the training whose time has come at `share` (0 to 1) of the whole run.

    A function of the moment alone, so a run that goes on does the same. Where everything below a layer is frozen as
    well, autograd ends there: freezing a whitening's bias saves the second layer's gradient of its input.
    """
    if not recipe.optim.freeze:
        return
    due = [layer for layer, after in recipe.optim.freeze_after.items() if share >= after]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and any(_within(name, layer) for layer in due):
            parameter.requires_grad = False
            parameter.grad = None


def _within(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")
