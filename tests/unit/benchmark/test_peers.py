"""What peers are asked and how their answers are read; the plain script does the work of the recipe."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from distcifar.benchmark.peers import able_peers, answered, peer_scripts, request, run_peer
from distcifar.benchmark.place import Finished, Place
from distcifar.benchmark.settings import Settings
from distcifar.config import to_dict
from distcifar.data.beton import read_all
from distcifar.data.prepare import PreparedData
from distcifar.errors import ConfigError, RunError
from distcifar.models import build_model, count_parameters
from distcifar.recipes import get_recipe
from distcifar.training.optim import build_optimizers
from distcifar.training.schedule import Plateau, multiplier
from tests.peers import plain

LINE = {"peer": "mine", "seconds": 6.0, "epochs": 3, "images": 1000, "accuracy": 0.7}


def finished(output: str) -> Finished:
    return Finished(0, output, "", 9.0, 8.0, 1)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    told: list[str] = []
    found = Place(Settings(peer=(str(tmp_path / "peer.py"),), threads=1), tmp_path, dict(os.environ), told.append)
    object.__setattr__(found, "told", told)
    return found


def test_the_last_line_that_names_a_peer_is_the_answer():
    output = "\n".join(["epoch 1", json.dumps({**LINE, "accuracy": 0.1}), '{"other": 1}', json.dumps(LINE), "bye", "3"])
    found = answered(finished(output), "p")
    assert (found.peer, found.accuracy, found.epoch_seconds) == ("mine", 0.7, (2.0, 2.0, 2.0))
    assert found.images_per_s == pytest.approx(500.0)


def test_a_steady_epoch_is_one_after_the_first():
    line = {**LINE, "epoch_seconds": [10.0, 2.0, 3.0]}
    assert answered(finished(json.dumps(line)), "p").images_per_s == pytest.approx(400.0)


@pytest.mark.parametrize(
    "line", ["", "{}", "peer", json.dumps({**LINE, "seconds": -1}), json.dumps({**LINE, "epochs": "x"}),
             json.dumps({k: v for k, v in LINE.items() if k != "accuracy"}), '{"peer": 3', '[1, "peer"]']
)  # fmt: skip
def test_no_line_or_a_wrong_one_is_an_error_that_shows_a_right_one(line: str):
    with pytest.raises(RunError, match='"accuracy"'):
        answered(finished(line), "p")


def test_a_peer_gets_the_request_skips_or_fails_by_its_exit_code(place: Place, tmp_path: Path):
    script = tmp_path / "peer.py"
    script.write_text(
        "import json, sys\n"
        "asked = json.load(open(sys.argv[1]))\n"
        "if asked['seed'] == 1: sys.exit('not for me') if asked['epochs'] == 0 else None\n"
        "if asked['seed'] == 2: print('no such net', file=sys.stderr); sys.exit(77)\n"
        "print(json.dumps({'peer': 'mine', 'seconds': 1, 'epochs': asked['epochs'], 'images': 5, 'accuracy': 0.5}))\n"
    )
    assert peer_scripts(place, ()) == [script]
    answer = run_peer(script, {"seed": 0, "epochs": 4}, place)
    assert answer is not None
    assert (answer.epochs, answer.process.code) == (4, 0)
    assert answer.process.cpu_seconds > 0
    assert able_peers([script], {"seed": 2, "epochs": 4}, place) == {}
    assert place.told == ["peer.py is left out: no such net"]  # type: ignore[attr-defined]
    with pytest.raises(RunError, match="not for me"):
        run_peer(script, {"seed": 1, "epochs": 0}, place)
    script.unlink()
    with pytest.raises(ConfigError, match=r"peer\.py"):
        peer_scripts(place, ())


def test_a_peer_that_is_interrupted_is_not_left_behind(place: Place, monkeypatch: pytest.MonkeyPatch):
    started = place.start([sys.executable, "-c", "import time; time.sleep(60)"])
    from distcifar.benchmark import place as module

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.os, "waitid", interrupted)
    with pytest.raises(KeyboardInterrupt):
        module.finish(started)
    assert started.process.returncode == -9


def test_a_process_is_measured_by_itself_whatever_started_it(place: Place):
    """rusage's peak would be at least this process's own: the kernel keeps it from before the exec."""
    code = "import time; a = b'1' * {}; del a; time.sleep(0.3)"
    small, large = (place.run([sys.executable, "-c", code.format(size)]).peak_bytes for size in (10, 200_000_000))
    assert 1e6 < small < 60e6
    assert 200e6 < large < 260e6


def test_the_request_holds_the_prepared_images(place: Place, prepared: PreparedData):
    recipe = get_recipe("debug")
    asked = request(recipe, prepared, place, epochs=2)
    assert json.loads(json.dumps(asked)) == asked
    assert (asked["version"], asked["epochs"], asked["recipe"]) == (1, 2, to_dict(recipe))
    with np.load(asked["data"]) as file:
        for split, path in (("train", prepared.train), ("val", prepared.val), ("test", prepared.test)):
            images, labels = read_all(path, prepared.manifests[split])
            assert np.array_equal(file[f"{split}_x"], images)
            assert np.array_equal(file[f"{split}_y"], labels)


@pytest.mark.parametrize("name", ["cnn-day41", "resnet9-aug", "debug", "cnn1", "resnet18"])
def test_the_plain_net_has_the_recipes_layers(name: str):
    recipe = to_dict(get_recipe(name))
    ours = build_model(get_recipe(name).model, channels=3, size=32, num_classes=10)
    theirs = plain.build_net(recipe["model"], 3, 32, 10)
    shapes = [sorted(tuple(p.shape) for p in net.parameters()) for net in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert count_parameters(ours)[0] == sum(p.numel() for p in theirs.parameters())
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            other.copy_(mine)
    images = torch.randn(4, 3, 32, 32)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(images), theirs(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["cnn-day41", "resnet9-aug", "debug"])
def test_the_plain_optimizer_takes_the_recipes_rates(name: str):
    recipe, steps = get_recipe(name), 200 if name == "debug" else 2
    net = torch.nn.Linear(2, 2)
    optimizer = plain.build_optimizer(net, to_dict(recipe.optim))
    scheduler, every = plain.build_schedule(optimizer, to_dict(recipe.schedule), recipe.epochs, steps)
    for step in range(recipe.epochs * steps):
        expected = recipe.optim.lr * multiplier(
            recipe.schedule, step=step, steps_per_epoch=steps, epochs=recipe.epochs, plateau=Plateau()
        )
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=0.01, abs=0.01 * recipe.optim.lr)
        optimizer.step()
        if every == "step" or (every == "epoch" and step % steps == steps - 1):
            scheduler.step()
    ours = build_optimizers(build_model(recipe.model, channels=3, size=32, num_classes=10), recipe.optim)[0]
    assert type(ours).__name__ == type(optimizer).__name__
    for key in ("momentum", "betas", "weight_decay"):
        assert ours.param_groups[0].get(key) == optimizer.param_groups[0].get(key)
