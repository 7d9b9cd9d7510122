"""Named search spaces, one for every family of recipes: what is worth varying there, and how far.

Rates span what the field uses around the seed recipes' values (notes S0 to S4) and airbench's (arXiv 2404.00498).
Validation, seeds and precision are not searched: they change what is measured, not how good it is.
"""

from distcifar.config import Recipe, did_you_mean
from distcifar.config.space import Dimension, Space, chosen, only_if, ranged
from distcifar.errors import ConfigError
from distcifar.recipes import cnns, finetune, mlps, mnist, ours, resnets, speedruns

_BATCH = chosen("batch_size", 32, 64, 128, 256)
_SMOOTHING = chosen("label_smoothing", 0.0, 0.05, 0.1, 0.2)
_DECAY = ranged("optim.weight_decay", 1e-6, 1e-2, log=True)
_ADAM_RATE = ranged("optim.lr", 1e-4, 1e-2, log=True)
_SGD_RATE = ranged("optim.lr", 3e-3, 1.0, log=True)
_MOMENTUM = only_if(ranged("optim.momentum", 0.8, 0.98), "optim.name", "sgd")
_DROPOUT = ranged("model.dropout", 0.0, 0.6)
_HIDDEN = chosen("model.hidden", (128,), (256,), (512,))
_SCHEDULE = chosen("schedule.name", "constant", "cosine", "linear", "onecycle")
_CROP = chosen("augment.crop_padding", 0, 2, 4)
_FILL = only_if(chosen("augment.crop_fill", "zeros", "reflect"), "augment.crop_padding", 2, 4)
_FLIP = chosen("augment.flip", "none", "random", "alternate")
_CUTOUT = chosen("augment.cutout", 0, 4, 8, 12)
_COLOURS: tuple[Dimension, ...] = (ranged("augment.brightness", 0.0, 0.4), ranged("augment.contrast", 0.0, 0.4))
_IMAGES = (_CROP, _FILL, _FLIP, _CUTOUT)

_CNN = Space((_ADAM_RATE, _DECAY, _BATCH, _DROPOUT, _SMOOTHING, _SCHEDULE, _CROP, _FILL, _FLIP, _HIDDEN))
_COLOURED_CNN = Space((*_CNN.dimensions, *_COLOURS))
_LENET = Space((ranged("optim.lr", 1e-4, 3e-2, log=True), _MOMENTUM, _DECAY, chosen("batch_size", 4, 16, 64), _FLIP))
_MNIST = Space((ranged("optim.lr", 1e-2, 0.5, log=True), _MOMENTUM, _DECAY, _BATCH, _SCHEDULE))
_LINEAR = Space((ranged("optim.lr", 1e-4, 1e-1, log=True), _DECAY, _BATCH, _SCHEDULE))
_MLP = Space(
    (
        ranged("optim.lr", 1e-4, 0.3, log=True),
        _DECAY,
        _BATCH,
        _DROPOUT,
        _SMOOTHING,
        _SCHEDULE,
        chosen("model.hidden", (96,), (256,), (512, 256), (1024, 512, 256)),
    )
)
_MLP_ADAM = Space((_ADAM_RATE, *_MLP.dimensions[1:]))
_RESNET = Space(
    (
        _SGD_RATE,
        _MOMENTUM,
        ranged("optim.weight_decay", 1e-5, 1e-2, log=True),
        chosen("batch_size", 64, 128, 256, 512),
        _SMOOTHING,
        *_IMAGES,
        chosen("model.widths", (32, 64, 128, 256), (64, 128, 256, 512)),
        only_if(ranged("schedule.gamma", 0.1, 0.7), "schedule.name", "plateau", "step", "exponential"),
        only_if(ranged("schedule.peak", 0.1, 0.5), "schedule.name", "onecycle"),
    )
)
_D2L = Space((ranged("optim.lr", 1e-2, 0.3, log=True), _DECAY, chosen("batch_size", 32, 64, 128), *_IMAGES))
_FINETUNE = Space(
    (
        ranged("optim.lr", 1e-5, 1e-1, log=True),
        _MOMENTUM,
        _DECAY,
        chosen("batch_size", 32, 64, 128),
        ranged("optim.head_lr_factor", 1.0, 30.0, log=True),
        _SMOOTHING,
    )
)
_WHITENED = Space(
    (
        ranged("optim.muon_lr", 0.02, 0.4, log=True),
        ranged("optim.lr", 0.05, 1.0, log=True),
        ranged("optim.muon_momentum", 0.4, 0.9),
        ranged("optim.weight_decay", 1e-5, 1e-2, log=True),
        ranged("optim.bias_lr_factor", 8.0, 128.0, log=True),
        chosen("batch_size", 128, 256, 512, 1024),
        chosen("label_smoothing", 0.0, 0.1, 0.2, 0.3),
        ranged("hard_share", 0.3, 1.0),
        ranged("hard_from", 0.1, 0.6),
        _CROP,
        _CUTOUT,
        *_COLOURS,
    )
)

SPACES: dict[str, Space] = {
    **{recipe.name: _CNN for recipe in cnns.RECIPES if recipe.optim.name == "adam"},
    **{recipe.name: _COLOURED_CNN for recipe in cnns.RECIPES if recipe.augment.brightness},
    **{recipe.name: _LENET for recipe in cnns.RECIPES if recipe.optim.name == "sgd"},
    **{recipe.name: _MLP_ADAM if recipe.optim.name == "adam" else _MLP for recipe in mlps.RECIPES},
    **{recipe.name: _LINEAR for recipe in mlps.RECIPES if recipe.model.name == "linear"},
    **{recipe.name: _MNIST for recipe in mnist.RECIPES},
    **{recipe.name: _D2L if recipe.model.name == "resnet-d2l" else _RESNET for recipe in resnets.RECIPES},
    **{recipe.name: _FINETUNE for recipe in finetune.RECIPES},
    **{recipe.name: _WHITENED for recipe in speedruns.RECIPES},
    **{recipe.name: _CNN if recipe.model.name == "cnn" else _RESNET for recipe in ours.RECIPES},
}


def space_of(recipe: Recipe) -> Space:
    """The space of a named recipe. Raises ConfigError for one that has none."""
    if recipe.name not in SPACES:
        raise ConfigError(
            f"There is no search space for {recipe.name!r}",
            "Each named recipe has one in recipes/spaces.py",
            did_you_mean(recipe.name, SPACES),
        )
    return SPACES[recipe.name]
