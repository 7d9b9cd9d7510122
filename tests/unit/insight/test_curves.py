"""curves.png can be read by people: it is there, whole, in any script, and survives damaged rows."""

import math
import warnings

import numpy as np
import pytest
from PIL import Image

from distcifar.errors import DataError
from distcifar.insight import curves
from distcifar.insight.curves import draw_curves

ENGLISH = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CJK = ("飞机", "汽车", "鸟", "猫", "鹿", "犬い", "カエル", "말", "船", "$5卡车$")


def run_rows(epochs=12, steps=40):
    """The rows of a plausible run: step and epoch rows as training/reports.py makes them."""
    rng = np.random.default_rng(0)
    rows = []
    for step in range(1, epochs * steps + 1):
        done = step / (epochs * steps)
        loss = 2.3 * math.exp(-2.5 * done) + 0.15 * rng.random()
        rows.append({"kind": "step", "step": step, "epoch": step / steps, "train/loss": loss,
                     "train/lr": 0.4 * min(done / 0.3, (1 - done) / 0.7), "perf/images_per_s": 1000.0})  # fmt: skip
        if step % steps == 0:
            rows.append({"kind": "epoch", "step": step, "epoch": step // steps, "train/loss": loss,
                         "train/accuracy": 0.3 + 0.65 * done, "validation/loss": loss + 0.1 + 0.2 * done,
                         "validation/accuracy": 0.3 + 0.6 * done - 0.12 * (done > 0.9),
                         "best_epoch": min(step // steps, 10), "seconds": float(step)})  # fmt: skip
    return rows


def pixels(path):
    """Decodes the whole file: float [height, width] grey values 0-255."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("L"), dtype=float)


@pytest.fixture(autouse=True)
def _no_missing_glyphs():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*[Gg]lyph.*")
        yield


@pytest.mark.parametrize("names", [ENGLISH, CJK], ids=["english", "cjk"])
def test_a_run_is_drawn(tmp_path, names):
    path = tmp_path / "curves.png"
    draw_curves(
        run_rows(), path, title=f"quick: 93.91% {names[0]}", class_names=names, per_class=np.linspace(0.8, 1, 10)
    )
    grey = pixels(path)
    assert grey.shape[0] > 700
    assert grey.shape[1] > 1200
    halves = [half for rows in np.array_split(grey, 2) for half in np.array_split(rows, 2, axis=1)]
    assert all(half.std() > 10 for half in halves), "one of the four panels is blank"
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"], "something was left beside the picture"


def test_without_the_cjk_font_the_check_above_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "CJK_FONTS", ())
    with pytest.raises(UserWarning, match="Glyph"):
        draw_curves(run_rows(), tmp_path / "c.png", title="", class_names=CJK, per_class=[0.5] * 10)


@pytest.mark.parametrize(
    "rows",
    [
        [row for row in run_rows() if row["kind"] == "step"],
        [row for row in run_rows() if row["kind"] == "epoch"],
        run_rows()[:1],
        run_rows(epochs=1),
        [{"kind": "epoch", "step": 9, "epoch": 1, "test/loss": 0.0, "test/accuracy": 0.5, "best_epoch": 1}],
        [
            {**row, "train/loss": math.nan, "validation/loss": None, "validation/accuracy": math.inf}
            for row in run_rows()
        ],
    ],
    ids=["steps", "epochs", "one step", "one epoch", "chosen on test", "NaN, None and Inf"],
)
def test_what_the_rows_lack_is_left_out(tmp_path, rows):
    draw_curves(rows, tmp_path / "c.png", title="part")
    assert pixels(tmp_path / "c.png").std() > 5


def test_of_a_hundred_classes_the_hardest_are_shown(tmp_path):
    names = [f"class number {i}" for i in range(100)]
    draw_curves(
        run_rows(), tmp_path / "c.png", title="", class_names=names, per_class=[*np.linspace(1, 0, 99), math.nan]
    )
    assert pixels(tmp_path / "c.png").shape[0] < 1500


@pytest.mark.parametrize("rows", [[], [{"kind": "epoch", "epoch": 1, "train/loss": math.nan, "train/accuracy": None}]])
def test_nothing_to_draw_is_said(tmp_path, rows):
    with pytest.raises(DataError, match="nothing to draw"):
        draw_curves(rows, tmp_path / "c.png", title="")
    assert not list(tmp_path.iterdir())


def test_an_older_picture_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "c.png"
    path.write_bytes(b"older")

    def full_disk(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("distcifar.files.os.fsync", full_disk)
        with pytest.raises(OSError, match="No space"):
            draw_curves(run_rows(), path, title="")
    assert path.read_bytes() == b"older"
    draw_curves(run_rows(), path, title="")
    assert pixels(path).size


def axes_of(rows, tmp_path, monkeypatch):
    """The panels of the picture, by title."""
    from matplotlib.figure import Figure

    found = []
    original = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *args, **kw: (found.append(figure), original(figure, *args, **kw))
    )
    draw_curves(rows, tmp_path / "c.png", title="")
    return {axes.get_title("left"): axes for axes in found[0].axes}


def test_a_long_run_is_drawn_from_a_stream_with_few_points_and_every_spike(tmp_path, monkeypatch):
    """A spike of one step in 30,000, up and down; and the best epoch of many, which is not the highest."""
    rows = run_rows(epochs=3000, steps=10)
    spikes = {12_345: 9.0, 23_456: -5.0}
    for row in rows:
        if row["kind"] == "step":
            row["train/loss"] = spikes.get(row["step"], row["train/loss"])
        else:
            row["best_epoch"] = min(row["epoch"], 1234)
    panels = axes_of(iter(rows), tmp_path, monkeypatch)
    xs, ys = panels["Loss"].lines[0].get_data()
    assert len(xs) <= 2000
    assert {(step / 10, value) for step, value in spikes.items()} <= {*zip(xs, ys, strict=True)}
    assert panels["Loss"].get_ylim()[1] < 4, "the spikes press the rest to the bottom"
    best = next(row for row in rows if row["kind"] == "epoch" and row["epoch"] == 1234)
    assert f"best: epoch 1234, {best['validation/accuracy']:.2%}" in panels["Accuracy"].get_title("right")
    assert len(panels["Accuracy"].lines[0].get_xdata()) <= 2000


def test_a_run_before_its_first_epoch_has_a_loss(tmp_path, monkeypatch):
    rows = run_rows(epochs=1)[:20]
    losses = axes_of(rows, tmp_path, monkeypatch)["Loss"].lines[0].get_data()
    assert [*zip(*losses, strict=True)] == [(row["epoch"], row["train/loss"]) for row in rows]
