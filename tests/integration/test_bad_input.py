"""Every mistake is told in one message with value, rule and remedy: exit code 2, no traceback, nothing left behind."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

JOBS = Path(__file__).parents[2] / "jobs"
sys.path.insert(0, str(JOBS))

from prepare import main as prepare_main  # noqa: E402
from program import run_program  # noqa: E402
from train import main as train_main  # noqa: E402


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with files that invite mistakes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (120, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(120) % 3
    good = {"train_x": images, "train_y": labels, "test_x": images[:30], "test_y": labels[:30]}
    np.savez(tmp_path / "good.npz", **good)
    np.savez(tmp_path / "grey.npz", **{k: v[..., :1] if v.ndim == 4 else v for k, v in good.items()})
    np.savez(tmp_path / "floats.npz", **{**good, "train_x": images / 255})
    np.savez(tmp_path / "short.npz", **{**good, "train_y": labels[:-1]})
    np.savez(tmp_path / "nokey.npz", trainx=images, train_y=labels)
    np.savez(tmp_path / "extra.npz", **{**good, "test_y": labels[:30] + 5})
    np.savez(tmp_path / "named.npz", **good, classes=np.array(["a", "b"]))
    (tmp_path / "broken.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:5000])
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "weights.pth").write_bytes(b"not weights")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", dict(os.environ))  # what main() sets is not for other tests
    return tmp_path


NPZ = ("debug", "--data.validation", "30", "--data.dataset")

TRAIN_CASES = [
    (("quik",), "'quik'", "Did you mean 'quick'?"),
    (("debug", "--optim.lrr", "1"), "--optim.lrr", "--optim.lr"),
    (("debug", "--epochs", "ten"), "'ten'", "--epochs"),
    (("debug", "--optim.name", "sdg"), "'sdg'", "'sgd'"),
    (("debug", "--optim.lr", "-1"), "-1.0", "> 0"),
    (("debug", "--optim.lr", "nan"), "nan", "finite"),
    (("debug", "--optim.lr", "1e9"), "1000000000.0", "<= 100"),
    (("debug", "--epochs", "0"), "epochs is 0", ">= 1"),
    (("debug", "--batch-size", "0"), "batch_size is 0", ">= 1"),
    (("debug", "--label-smoothing", "2"), "label_smoothing is 2.0", "<= 0.99"),
    (("debug", "--model.dropout", "1.5"), "model.dropout is 1.5", "<= 0.95"),
    (("debug", "--model.layout", "16", "X"), "'X'", "channel count or M"),
    (("debug", "--model.freeze"), "model.freeze", "--model.pretrained"),
    (("debug", "--optim.name", "sgd", "--optim.momentum", "0", "--optim.nesterov"), "momentum is 0", "0.9"),
    (("debug", "--augment.mixup", "0.2", "--augment.cutmix", "1"), "augment.mixup is 0.2", "one of them"),
    (("debug", "--data.validation", "0"), "data.validation is 0", "--select-on last"),
    (("debug", "--data.validation", "99999"), "99999", "validation"),
    (("debug", "--name", "../evil"), "'../evil'", "--name first"),
    (("debug", "--runs", "file"), "file", "--runs"),
    (("debug", "--data-root", "file"), "file", "--root"),
    (("debug", "--workers", "64"), "64 workers", "--workers"),
    (("debug", "--workers", "-1"), "workers is -1", ">= 0"),
    (("debug", "--address", "127.0.0.1:1"), "'127.0.0.1:1'", "ray start --head"),
    (("debug", "--address", "nonsense"), "'nonsense'", "HOST:PORT"),
    (("debug", "--loader-threads", "999"), "999", "--loader-threads"),
    (("quick", "--source", "missing.npz"), "missing.npz", "--source"),
    ((*NPZ, "npz:missing.npz"), "missing.npz", ""),
    ((*NPZ, "npz:broken.npz"), "broken.npz", ""),
    ((*NPZ, "npz:nokey.npz"), "trainx", "train_x"),
    ((*NPZ, "npz:floats.npz"), "float64", "uint8"),
    ((*NPZ, "npz:short.npz"), "119", "120"),
    ((*NPZ, "npz:extra.npz"), "extra.npz", "class"),
    ((*NPZ, "npz:named.npz"), "named.npz", "class"),
    ((*NPZ, "npz:grey.npz", "--data.normalize", "imagenet"), "'imagenet'", "--data.normalize measured"),
    ((*NPZ, "npz:good.npz", "--model.layout", "8", "M", "M", "M", "M"), "8x8", "16"),
    ((*NPZ, "npz:good.npz", "--model.name", "torchvision-resnet18", "--model.pretrained", "--model.weights",
      "weights.pth"), "weights.pth", "--model.weights"),
    ((*NPZ, "empty"), "empty", ""),
    ((*NPZ, "/no/such/folder"), "/no/such/folder", ""),
]  # fmt: skip

PREPARE_CASES = [
    (("cifar11",), "'cifar11'", "cifar10"),
    (("npz:good.npz",), "5000", "--validation"),
    (("npz:good.npz", "--validation", "-3"), "-3", ">= 0"),
    (("npz:good.npz", "--validation", "30", "--train-first", "100"), "30", "--validation"),
    (("synthetic", "--size", "100000"), "100000", "4096"),
    ((), "DATASET", ""),
]


@pytest.mark.parametrize(
    ("argv", "value", "remedy"), TRAIN_CASES, ids=lambda v: " ".join(v) if isinstance(v, tuple) else v or "-"
)
def test_train_tells_a_mistake(argv, value, remedy, place, capfd, monkeypatch):
    tell(train_main, argv, value, remedy, place, capfd, monkeypatch)


@pytest.mark.parametrize(
    ("argv", "value", "remedy"), PREPARE_CASES, ids=lambda v: " ".join(v) if isinstance(v, tuple) else v or "-"
)
def test_prepare_tells_a_mistake(argv, value, remedy, place, capfd, monkeypatch):
    tell(prepare_main, argv, value, remedy, place, capfd, monkeypatch)


@pytest.mark.skipif("__import__('torch').cuda.is_available()")
def test_cuda_without_a_gpu_is_told(place, capfd, monkeypatch):
    tell(train_main, ("debug", "--device", "cuda"), "no GPU", "--device cpu", place, capfd, monkeypatch)


def tell(main, argv, value, remedy, place, capfd, monkeypatch):
    before = {path for path in place.rglob("*") if "data" not in path.parts}
    monkeypatch.setattr(sys, "argv", ["program", *argv])
    with pytest.raises(SystemExit) as stop:
        run_program(main)
    message = capfd.readouterr().err
    assert stop.value.code == 2, message
    assert value in message
    assert remedy in message
    assert "Traceback" not in message
    after = {path for path in place.rglob("*") if "data" not in path.parts and path.name != "runs"}
    assert after - before == set(), "a mistake leaves nothing behind"
    assert not list(place.rglob(".aside-*"))
