"""samples.png: there, whole, in any script; mistakes are marked."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distcifar.errors import DataError
from distcifar.insight import curves
from distcifar.insight.samples import WIDEST_NAME, WRONG, _short, draw_grid, draw_samples

CJK = ("飞机", "汽车", "犬い", "$5卡车$")
RED = np.array([int(WRONG[i : i + 2], 16) for i in (1, 3, 5)])


@pytest.fixture(autouse=True)
def _no_missing_glyphs():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*[Gg]lyph.*")
        yield


def samples(count: int = 32, mistakes: int = 16, channels: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, count)
    predictions = labels.copy()
    predictions[:mistakes] = (labels[:mistakes] + 1) % 4
    images = rng.integers(0, 256, (count, 8, 8, channels), dtype=np.uint8) // 8 + 100
    images[..., 0] //= 2  # nothing in them is red
    return {"images": images, "labels": labels, "predictions": predictions,
            "confidence": np.linspace(1, 0.3, count).astype(np.float32)}  # fmt: skip


def drawn(path: Path) -> np.ndarray:
    """Decodes the whole file: float [height, width, 3]."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"), dtype=float)


def red(path: Path) -> int:
    """Pixels in the colour of mistakes."""
    return int((abs(drawn(path) - RED).max(axis=-1) < 8).sum())


@pytest.mark.parametrize("names", [("cat", "dog", "a very long class name", "ship"), CJK], ids=["english", "cjk"])
def test_a_grid_is_drawn_with_each_image(tmp_path: Path, names: tuple[str, ...]):
    draw_grid(samples(), tmp_path / "s.png", class_names=names)
    cells = [cell for row in np.array_split(drawn(tmp_path / "s.png"), 4) for cell in np.array_split(row, 8, axis=1)]
    assert all(cell.std() > 10 for cell in cells)
    assert [path.name for path in tmp_path.iterdir()] == ["s.png"], "something was left beside the picture"


def test_without_the_cjk_font_the_check_above_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(curves, "CJK_FONTS", ())
    with pytest.raises(UserWarning, match="Glyph"):
        draw_grid(samples(), tmp_path / "s.png", class_names=CJK)


def test_mistakes_are_marked_and_what_is_right_is_not(tmp_path: Path):
    found = []
    for mistakes in (0, 4, 8):
        draw_grid(samples(8, mistakes), tmp_path / "s.png", class_names=CJK)
        found.append(red(tmp_path / "s.png"))
    assert found[0] == 0
    assert 0 < 1.8 * found[1] < found[2] < 2.2 * found[1]


@pytest.mark.parametrize(("count", "mistakes"), [(1, 0), (1, 1), (9, 2), (16, 16)])
@pytest.mark.parametrize("channels", [1, 3])
def test_fewer_images_and_grey_ones_are_drawn_too(tmp_path: Path, count: int, mistakes: int, channels: int):
    draw_grid(samples(count, mistakes, channels), tmp_path / "s.png", class_names=CJK)
    assert drawn(tmp_path / "s.png").std() > 10


def test_the_samples_of_a_run_are_drawn_beside_them(tmp_path: Path):
    np.savez(tmp_path / "samples.npz", **samples(4, 1))
    draw_samples(tmp_path, {"per_class_accuracy": dict.fromkeys(CJK)})
    assert red(tmp_path / "samples.png") > 0


def test_a_run_without_samples_is_told(tmp_path: Path):
    with pytest.raises(DataError, match=r"samples\.npz"):
        draw_samples(tmp_path, {"per_class_accuracy": {}})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "short"),
    [("", ""), ("cat", "cat"), ("a" * WIDEST_NAME, "a" * WIDEST_NAME), ("a" * 15, "a" * 13 + "…"),
     ("飞" * 7, "飞" * 7), ("飞" * 8, "飞" * 6 + "…"), ("two\nlines", "two lines")],
)  # fmt: skip
def test_a_name_is_cut_where_it_would_run_into_its_neighbour(name: str, short: str):
    assert _short(name) == short
