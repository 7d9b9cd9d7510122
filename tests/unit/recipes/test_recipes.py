"""The recipes are those of the notes: names, nets, numbers, and a text that says where they come from."""

import json
import re
import subprocess
import sys

import pytest
import torch

from distcifar.config import Recipe, ScheduleConfig, Stage, from_dict, to_dict
from distcifar.errors import ConfigError
from distcifar.models import build_model, count_parameters
from distcifar.recipes import RECIPES, by_name, get_recipe

# notes/seed-recipes.md, line by line: parameters, optimizer, lr, batch, epochs of all stages, decay, reported.
# mnist-lenet: (25+1)*32 + (25*32+1)*64 + (1024+1)*120 + (120+1)*84 + (84+1)*10 = 186,110, our layer sizes.
TABLE = {
    "mnist-lenet": (186_110, "sgd", 0.14, 64, 15, 0.0, 0.9915),
    "resnet10-plateau": (4_903_242, "sgd", 0.05, 128, 68, 5e-4, 0.947),
    "resnet18-plateau": (11_173_962, "sgd", 0.05, 128, 68, 5e-4, 0.947),
    "lenet-2ep": (62_006, "sgd", 1e-3, 4, 2, 0.0, 0.53),
    "lenet-4ep": (62_006, "sgd", 1e-3, 4, 4, 0.0, 0.57),
    "resnet9-noaug": (4_903_242, "sgd", 5e-3, 64, 24, 0.032, 0.82),
    "resnet9-aug": (4_903_242, "sgd", 5e-3, 64, 24, 0.032, 0.88),
    "resnet9": (4_903_242, "sgd", 5e-3, 64, 24, 5e-4, None),
    "softmax": (30_730, "sgd", 0.01, 64, 20, 0.0, None),
    "mlp-first": (295_978, "sgd", 0.1, 64, 50, 0.0, 0.45),
    "mlp-final": (3_805_450, "adam", 1e-3, 64, 50, 1e-4, 0.50),
    "cnn1": (2_120_234, "adam", 1e-3, 64, 50, 5e-4, 0.65),
    "cnn2": (1_070_986, "adam", 1e-3, 64, 50, 5e-4, 0.77),
    "cnn3": (667_178, "adam", 3e-3, 64, 100, 1e-4, 0.82),
    "resnet18-d2l": (11_184_650, "sgd", 0.08, 32, 32, 1e-3, 0.831),
    "finetune-resnet18": (11_181_642, "sgd", 1e-3, 32, 43, 1e-3, 0.95),
    "finetune-vgg13-frozen": (128_997_706, "sgd", 2e-3, 32, 20, 1e-3, 0.681),
    "finetune-vgg13": (128_997_706, "sgd", 1e-4, 32, 20, 1e-3, 0.872),
    "mlp-day41": (1_707_274, "adam", 1e-3, 64, 20, 0.0, None),
    "cnn-day41-faithful": (1_147_914, "adam", 1e-3, 64, 20, 0.0, 0.8098),
    "cnn-day41": (1_147_914, "adam", 1e-3, 64, 20, 0.0, None),
}
OURS = {"debug", "quick", "resnet18", "speedrun94", "speedrun96"}
FEW_HELD_OUT = {"quick", "speedrun94", "speedrun96"}
LEARNING = {"finetune-vgg13-frozen": 119_586_826}


def test_all_names_are_there_and_mean_themselves():
    assert set(RECIPES) == set(TABLE) | OURS
    assert all(recipe.name == name for name, recipe in RECIPES.items())
    assert get_recipe("cnn3") is RECIPES["cnn3"]


@pytest.mark.parametrize("name", TABLE)
def test_numbers_are_those_of_the_notes(name):
    recipe = RECIPES[name]
    _, optimizer, lr, batch, epochs, decay, reported = TABLE[name]
    optim = recipe.optim
    assert (optim.name, optim.lr, recipe.batch_size) == (optimizer, lr, batch)
    assert (recipe.total_epochs, optim.weight_decay) == (epochs, decay)
    assert recipe.reported_accuracy == reported


@pytest.fixture
def downloads(monkeypatch):
    """Pretrained weights with the right shapes and no numbers."""
    from torchvision import models

    def download(url, **options):
        return (models.resnet18 if "resnet18" in url else models.vgg13_bn)().state_dict()

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)


@pytest.mark.usefixtures("downloads")
@pytest.mark.parametrize("name", TABLE)
def test_parameters_are_those_of_the_table(name):
    recipe = RECIPES[name]
    channels, size = (1, 28) if recipe.data.dataset == "mnist" else (3, recipe.augment.resize or 32)
    with torch.device("meta"):
        model = build_model(recipe.model, channels=channels, size=size, num_classes=10)
        assert model(torch.empty(2, channels, size, size)).shape == (2, 10)
    params = TABLE[name][0]
    assert count_parameters(model) == (params, LEARNING.get(name, params))


@pytest.mark.parametrize("name", sorted(OURS))
def test_our_nets_can_be_built(name):
    model = build_model(RECIPES[name].model, channels=3, size=32, num_classes=10)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_json_and_back(recipe):
    again = from_dict(Recipe, json.loads(json.dumps(to_dict(recipe))))
    assert again == recipe
    assert again.digest() == recipe.digest()


def test_no_two_recipes_are_the_same_training():
    digests = [recipe.digest() for recipe in RECIPES.values()]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_description_says_where_it_comes_from(recipe):
    origin = "Ours: " if recipe.name in OURS else r"Origin: note S[0-4], row R\d+[:,]"
    assert re.match(origin, recipe.description)
    assert len(recipe.description.splitlines()) > 1
    if recipe.reported_accuracy is not None:
        percent = f"{100 * recipe.reported_accuracy:g}"
        assert percent in recipe.description or percent + "0" in recipe.description


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_best_epoch_is_never_chosen_on_test(recipe):
    held_out = {"resnet10-plateau": 10_000, "resnet18-plateau": 10_000}
    assert recipe.select_on == ("validation" if recipe.data.validation else "last")
    assert recipe.data.validation == held_out.get(recipe.name, 5_000) or recipe.name in OURS
    assert recipe.select_metric == (
        "loss" if recipe.schedule.name == "plateau" or recipe.name in FEW_HELD_OUT else "accuracy"
    )


def test_chained_runs_of_note_s3():
    cosine, constant = ScheduleConfig(name="cosine"), ScheduleConfig()
    by_08 = ScheduleConfig(name="exponential", gamma=0.8)

    def runs(name):
        return [(stage.epochs, stage.lr, stage.schedule) for stage in RECIPES[name].stages]

    assert runs("resnet18-d2l") == [(10, 0.08, cosine), (2, 2e-3, cosine), (10, 2e-3, cosine), (10, 1e-4, cosine)]
    assert runs("finetune-resnet18") == [
        (10, 1e-3, constant),
        (3, 1e-3, by_08),
        (10, 1e-3, constant),
        (10, 2e-3, cosine),
        (10, 1e-4, cosine),
    ]
    assert runs("finetune-vgg13-frozen") == [(10, 2e-3, cosine), (10, 2e-4, cosine)]
    assert runs("finetune-vgg13") == [(10, 1e-4, constant), (10, 1e-3, cosine)]
    assert cosine == ScheduleConfig(name="cosine", every="epoch", final=0.0)
    assert isinstance(RECIPES["finetune-vgg13"].then[0], Stage)


def test_single_decisions_of_the_notes():
    assert RECIPES["mlp-first"].data.train_first == 10_000
    assert RECIPES["cnn3"].early_stop == 10
    assert [r.name for r in RECIPES.values() if r.eval_mode_after_first_epoch] == ["cnn-day41-faithful"]
    xavier = {r.name for r in RECIPES.values() if r.model.init == "xavier"}
    assert xavier == {"softmax", "mlp-first", "mlp-final", "cnn1", "cnn2"}
    plateaus = {r.name: (r.schedule.gamma, r.schedule.patience) for r in RECIPES.values() if r.schedule.patience != 2}
    assert plateaus == {"cnn-day41": (0.5, 3), "cnn-day41-faithful": (0.5, 3)}
    heads = {r.name for r in RECIPES.values() if r.optim.head_lr_factor == 10.0}
    assert heads == {name for name in RECIPES if name.startswith("finetune")}
    no_momentum = {r.name for r in RECIPES.values() if r.optim.name == "sgd" and r.optim.momentum == 0}
    assert no_momentum == heads | {"mnist-lenet", "softmax", "mlp-first", "resnet18-d2l"}


def test_twins_differ_in_the_one_thing():
    from distcifar.config import differences

    def differ(a, b):
        return [line.split(":")[0] for line in differences(RECIPES[a].numbers(), RECIPES[b].numbers())]

    assert differ("resnet9-aug", "resnet9") == ["optim.weight_decay"]
    assert differ("resnet9-noaug", "resnet9-aug") == ["augment.crop_padding", "augment.flip"]
    assert differ("cnn-day41", "cnn-day41-faithful") == ["eval_mode_after_first_epoch"]
    assert differ("resnet10-plateau", "resnet18-plateau") == ["model.blocks"]
    assert differ("lenet-2ep", "lenet-4ep") == ["epochs"]


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'resnet81'.*Did you mean 'resnet18'.*cnn3"):
        get_recipe("resnet81")


def test_two_recipes_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="Two recipes are named 'twice'"):
        by_name([Recipe(name="twice"), Recipe(name="once"), Recipe(name="twice", epochs=2)])


def test_recipes_are_read_without_torch():
    code = "import sys, distcifar.recipes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
