"""Recipes that are measured by the time to an accuracy: quick, speedrun94, speedrun96.

Small nets of the airbench family (K. Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv
2404.00498): a first layer whitened from the data, identity-like first weights, Muon for the filters, BatchNorm biases
at 64 x the rate, linear decay, alternating flip and a crop from mirrored pixels. What is ours: the later epochs go over
the hardest images only, by their own last losses. docs/performance.md has what each part brings.
"""

from dataclasses import replace

from distcifar.config import AugmentConfig, DataConfig, ModelConfig, OptimConfig, Recipe, ScheduleConfig

_OPTIM = OptimConfig(
    name="muon",
    muon_lr=0.085,  # rates for batches of 256: as the square root of the batch
    muon_momentum=0.6,
    lr=0.28,
    momentum=0.85,
    nesterov=True,
    bias_lr_factor=64.0,
    weight_decay=5e-4,
    decay_all=False,  # at 64 x the rate, decay would hold the biases at 0
    freeze=("body.0@0.1",),  # the whitening's bias; without it the second layer needs no gradient of its input
)

_quick = Recipe(
    name="quick",
    description=(
        "Ours: 92 % on CIFAR-10 within five minutes of the command on two CPU cores with bf16 units.\n"
        "A small net whose first layer is whitened from the data (airbench94, arXiv 2404.00498), trained on all\n"
        "images for three epochs and on the hardest 40 % of them after that; evaluation with the mirror image, and\n"
        "where in doubt with both moved by a pixel.\n"
        "1,000 images are held out: the rate ends at 0, so that the last epochs are the best ones anyway."
    ),
    epochs=14,
    batch_size=256,
    precision="auto",
    label_smoothing=0.2,
    tta="shift",
    select_metric="loss",  # of so few images it says more than their accuracy
    hard_share=0.4,
    hard_from=0.2,
    model=ModelConfig(name="whitened", widths=(32, 96, 192), init="dirac"),
    data=DataConfig(validation=1000),
    augment=AugmentConfig(crop_padding=2, crop_fill="reflect", flip="alternate"),
    optim=_OPTIM,
    schedule=ScheduleConfig(name="linear", every="step"),
)

_speedrun94 = replace(
    _quick,
    name="speedrun94",
    description=(
        "Ours: 94 % on CIFAR-10 with as little arithmetic as we can: 9 to 10 minutes on two CPU cores with bf16.\n"
        "The net of airbench94 (64-256-256), trained on all images for two epochs, at first at 24 pixels, and on the\n"
        "hardest half of them after that: the arithmetic of 7 epochs.\n"
        "No validation images: the last epoch is taken."
    ),
    epochs=13,
    select_on="last",
    hard_share=0.5,
    hard_from=0.153,
    model=ModelConfig(name="whitened", widths=(64, 256, 256), init="dirac"),
    data=DataConfig(validation=0),
    augment=AugmentConfig(  # the hard half is seen often
        crop_padding=4,
        crop_fill="reflect",
        flip="alternate",
        brightness=0.13,
        contrast=0.13,
        progressive=("24@0.055",),  # while it learns what edges are
    ),
    optim=replace(_OPTIM, freeze=("body.0@0.045",)),
)

_speedrun96 = replace(
    _speedrun94,
    name="speedrun96",
    description=(
        "Ours: meant for 96 % on CIFAR-10 on a GPU: a wider and deeper net (128-384-512, three convolutions per block\n"
        "with a residual), 4 pixels of crop, a 12-pixel cutout, averaged weights.\n"
        "Accuracy and time: to be measured."
    ),
    epochs=45,
    batch_size=512,
    hard_from=0.18,
    ema_decay=0.995,
    model=ModelConfig(name="whitened", widths=(128, 384, 512), blocks=3, init="dirac"),
    augment=AugmentConfig(crop_padding=4, crop_fill="reflect", flip="alternate", cutout=12),
    optim=replace(_OPTIM, muon_lr=0.12, lr=0.4),
)

RECIPES = (_quick, _speedrun94, _speedrun96)
