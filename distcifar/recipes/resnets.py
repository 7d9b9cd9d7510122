"""Residual nets trained from scratch: notes S0, S1 and S3."""

from dataclasses import replace

from distcifar.config import (
    AugmentConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    Recipe,
    ScheduleConfig,
    Stage,
)
from distcifar.recipes.texts import HELD_OUT, NOT_CHOSEN, lines

_COSINE = ScheduleConfig(name="cosine")
_CROP_AND_FLIP = AugmentConfig(crop_padding=4, flip="random")

_PLATEAU_SAID = (
    "The note gives SGD at 0.05, halved when the validation loss has not fallen for 2 epochs, batch 128, 10,000"
    " of the 50,000 held out, random crop, flip and a 3x3 cutout (the usual ones are 8 to 16 pixels)."
)
_PLATEAU_SILENT = (
    "Not given and chosen as is usual for this net: momentum 0.9, weight decay 5e-4, crop from 4 black pixels,"
    " measured normalisation, BatchNorm and ReLU after the first convolution, 1x1 shortcuts with BatchNorm."
)
_PLATEAU_RESUMES = (
    "The author trained 68 epochs and an uncounted number of resumed stretches of 5, each of which reset the"
    " rate and the best loss, and blames that for worse models. Here: 68 epochs in one go; a resumed run keeps"
    " both. 'For 2 epochs' is read as ReduceLROnPlateau(patience=2), which acts on the third."
)

_resnet10_plateau = Recipe(
    name="resnet10-plateau",
    description=lines(
        "Origin: note S0, row R2, with one residual block per stage (4,903,242 parameters).",
        "Reported: 94.70 % on test, on an RTX 4060. The note does not say how many blocks a stage has, nor the"
        " word ResNet; resnet18-plateau is the other reading.",
        _PLATEAU_SAID,
        _PLATEAU_SILENT,
        _PLATEAU_RESUMES,
    ),
    reported_accuracy=0.947,
    epochs=68,
    batch_size=128,
    select_metric="loss",
    model=ModelConfig(name="resnet", blocks=1),
    data=DataConfig(validation=10_000),
    augment=replace(_CROP_AND_FLIP, cutout=3),
    optim=OptimConfig(lr=0.05, momentum=0.9, weight_decay=5e-4),
    schedule=ScheduleConfig(name="plateau", gamma=0.5, patience=2),
)

_resnet18_plateau = replace(
    _resnet10_plateau,
    name="resnet18-plateau",
    description=lines(
        "Origin: note S0, row R2, with two residual blocks per stage: ResNet-18 (11,173,962 parameters).",
        "Reported: 94.70 % on test, on an RTX 4060; resnet10-plateau is the other reading of the note.",
        _PLATEAU_SAID,
        _PLATEAU_SILENT,
        _PLATEAU_RESUMES,
    ),
    model=ModelConfig(name="resnet", blocks=2),
)

_RESNET9 = (
    "Called ResNet9 in the note; it is nine 3x3 convolutions and a linear layer, 4,903,242 parameters. Rate 5e-3"
    " from its range test, momentum 0.9, batch 64 and 24 epochs are the note's."
)
_RESNET9_CHOICE = (
    "The net lists a max-pool after the first convolution without showing its use: it is used here, as by"
    " torchvision's ResNet from which the listing comes, and the reported accuracy fits a net of such small maps."
    " The cosine's length and unit are not given: all 24 epochs, by epoch. Normalisation 0.5/0.5."
)
_SUMMED_DECAY = (
    "Weight decay is 5e-4 times the batch size = 0.032, as written. That rule is for a loss that is summed over"
    " the batch; the note averages, which makes the decay 64 times too strong. `resnet9` corrects it."
)

_resnet9_noaug = Recipe(
    name="resnet9-noaug",
    description=lines(
        "Origin: note S1, row R5, without augmentation. Reported: 99 % on train, 82 % on test.",
        _RESNET9,
        _RESNET9_CHOICE,
        _SUMMED_DECAY,
        NOT_CHOSEN,
    ),
    reported_accuracy=0.82,
    epochs=24,
    batch_size=64,
    model=ModelConfig(name="resnet", blocks=1, stem_pool=True),
    data=DataConfig(normalize="half"),
    optim=OptimConfig(lr=5e-3, momentum=0.9, weight_decay=0.032),
    schedule=_COSINE,
)

_resnet9_aug = replace(
    _resnet9_noaug,
    name="resnet9-aug",
    description=lines(
        "Origin: note S1, row R6: with random crop and flip. Reported: 91 % on train, 88 % on test.",
        "The note does not repeat the other settings for this run: they are those of resnet9-noaug.",
        _RESNET9,
        _RESNET9_CHOICE,
        _SUMMED_DECAY,
        NOT_CHOSEN,
    ),
    reported_accuracy=0.88,
    augment=_CROP_AND_FLIP,
)

_resnet9 = replace(
    _resnet9_aug,
    name="resnet9",
    description=lines(
        "Origin: note S1, row R6, corrected: weight decay 5e-4, as a mean loss needs, instead of 0.032.",
        "All else is resnet9-aug. The note has no number for it.",
        _RESNET9,
        _RESNET9_CHOICE,
        NOT_CHOSEN,
    ),
    reported_accuracy=None,
    optim=OptimConfig(lr=5e-3, momentum=0.9, weight_decay=5e-4),
)

_resnet18_d2l = Recipe(
    name="resnet18-d2l",
    description=lines(
        "Origin: note S3, row R13: a hand-written ResNet-18 (11,184,650 parameters), four runs in a row, each"
        " from the best weights so far. Reported best on test after each: 82.7, 83.1, 83.0, 83.1 %.",
        "The note's data is an unnamed folder of 32x32 images in ten CIFAR-10 classes, 'very small'; here"
        " CIFAR-10 (--data.dataset FOLDER for your own). Flip only, ImageNet mean and std, batch 32.",
        "The net follows the note's code (stem padding 2, pool 2x2), not its theory part (padding 3, pool 3x3).",
        "SGD without momentum. Weight decay 1e-3 in all runs as its text says; the picture of run 2 shows 1e-4.",
        "Rates follow the logs (0.08 first; its section 4 says 0.01), whose cosine falls to 0 over [0, pi]; the"
        " text says [0, pi/2]. Run 1 starts at 64.6 % on train, which looks like a continued run.",
        HELD_OUT,
    ),
    reported_accuracy=0.831,
    epochs=10,
    batch_size=32,
    model=ModelConfig(name="resnet-d2l"),
    data=DataConfig(normalize="imagenet"),
    augment=AugmentConfig(flip="random"),
    optim=OptimConfig(lr=0.08, momentum=0.0, weight_decay=1e-3),
    schedule=_COSINE,
    then=(
        Stage(epochs=2, lr=2e-3, schedule=_COSINE),
        Stage(epochs=10, lr=2e-3, schedule=_COSINE),
        Stage(epochs=10, lr=1e-4, schedule=_COSINE),
    ),
)

RECIPES = (
    _resnet10_plateau,
    _resnet18_plateau,
    _resnet9_noaug,
    _resnet9_aug,
    _resnet9,
    _resnet18_d2l,
)
