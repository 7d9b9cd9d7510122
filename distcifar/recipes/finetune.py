"""ImageNet nets fine-tuned: note S3."""

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
from distcifar.recipes.texts import HELD_OUT, lines

_COSINE = ScheduleConfig(name="cosine")
_CONSTANT = ScheduleConfig()
_SGD = OptimConfig(lr=1e-3, momentum=0.0, weight_decay=1e-3, head_lr_factor=10.0)

_DATA = (
    "The note's data is an unnamed folder of 32x32 images in ten CIFAR-10 classes, 'very small'; here CIFAR-10"
    " (--data.dataset FOLDER for your own). ImageNet mean and std, batch 32, SGD without momentum, decay 1e-3."
)
_COSINE_RANGE = "The logged cosine falls to 0 over [0, pi]; the text says [0, pi/2]."
_WEIGHTS = "Downloads torchvision's weights at the first run; without a network give --model.weights FILE."

_resnet18 = Recipe(
    name="finetune-resnet18",
    description=lines(
        "Origin: note S3, row R14: torchvision's ResNet-18 with a new last layer at ten times the rate, five runs"
        " in a row, each from the best weights so far. Reported best on test: 92.6, 93.3, 94.1, 94.7, 95.0 %.",
        _DATA,
        "RandomResizedCrop(28) then 224 pixels is the note's code. It calls this a 28-pixel crop; it is a crop of"
        " 8 to 100 % of the area, which is why its train accuracy (85.7 %) stays below test.",
        "Run 2, 'exponential', is 0.8 per epoch by its printed rates.",
        _COSINE_RANGE,
        _WEIGHTS,
        HELD_OUT,
    ),
    reported_accuracy=0.95,
    epochs=10,
    batch_size=32,
    model=ModelConfig(name="torchvision-resnet18", pretrained=True),
    data=DataConfig(normalize="imagenet"),
    augment=AugmentConfig(random_resized_crop=28, resize=224, center_crop=28, flip="random"),
    optim=_SGD,
    then=(
        Stage(epochs=3, lr=1e-3, schedule=ScheduleConfig(name="exponential", gamma=0.8)),
        Stage(epochs=10, lr=1e-3, schedule=_CONSTANT),
        Stage(epochs=10, lr=2e-3, schedule=_COSINE),
        Stage(epochs=10, lr=1e-4, schedule=_COSINE),
    ),
)

_vgg13_frozen = Recipe(
    name="finetune-vgg13-frozen",
    description=lines(
        "Origin: note S3, row R15: torchvision's vgg13_bn, only the classifier learns (119,586,826 of 128,997,706"
        " parameters), two runs. Reported on test: 67.9 % at most in run 1, 68.1 % in run 2, not saved.",
        _DATA,
        "Images stay at 32x32, flip only. The classifier learns at 10 x lr; the rates that the note prints are"
        " those of the frozen features.",
        "The first rate is printed as 0.0002, the next as 0.00195: 0.002 is meant. Run 2 is said to start from"
        " scratch, but has 95 % on train in epoch 2: here it starts from the best weights of run 1.",
        "Frozen weights alone let BatchNorm's statistics follow the images, in the note and here"
        " (--model.freeze-bn-stats keeps them).",
        _COSINE_RANGE,
        _WEIGHTS,
        HELD_OUT,
    ),
    reported_accuracy=0.681,
    epochs=10,
    batch_size=32,
    model=ModelConfig(name="torchvision-vgg13_bn", pretrained=True, freeze=True, freeze_bn_stats=False),
    data=DataConfig(normalize="imagenet"),
    augment=AugmentConfig(flip="random"),
    optim=replace(_SGD, lr=2e-3),
    schedule=_COSINE,
    then=(Stage(epochs=10, lr=2e-4, schedule=_COSINE),),
)

_vgg13 = replace(
    _vgg13_frozen,
    name="finetune-vgg13",
    description=lines(
        "Origin: note S3, row R16: torchvision's vgg13_bn, all layers learn (128,997,706 parameters), two runs,"
        " the second from the best weights of the first. Reported on test: 86.1 % (epoch 9), then 87.2 %.",
        _DATA,
        "Images stay at 32x32, flip only. The printed rates, 1e-4 constant and then 1e-3 with cosine, are those"
        " of the features; the classifier learns at ten times that.",
        _COSINE_RANGE,
        _WEIGHTS,
        HELD_OUT,
    ),
    reported_accuracy=0.872,
    model=ModelConfig(name="torchvision-vgg13_bn", pretrained=True),
    optim=replace(_SGD, lr=1e-4),
    schedule=_CONSTANT,
    then=(Stage(epochs=10, lr=1e-3, schedule=_COSINE),),
)

RECIPES = (_resnet18, _vgg13_frozen, _vgg13)
