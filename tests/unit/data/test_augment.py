"""Pixel operations against plain loops over the pixels, torchvision and Pillow."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode

from distcifar.config import AugmentConfig
from distcifar.data import augment
from distcifar.data.draws import Moves, draw_boxes, draw_colours

IDS = np.arange(6)
STILL = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}


def uint8_images(n, size, channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, channels), dtype=np.uint8)


def float_images(n=6, size=9, channels=3):
    """Images as they are after decoding: multiples of 1/255, with greys and ties of channels among them."""
    pixels = uint8_images(n, size, channels)
    pixels[0] = 77
    pixels[1, ..., 0] = pixels[1, ..., -1]
    pixels[2, ..., -1] = pixels[2, ..., channels // 2]
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


@st.composite
def batches_with_moves(draw):
    """(images, rows, moves, cutout side, reflect) of any small shape."""
    size, channels, n = draw(st.integers(2, 7)), draw(st.sampled_from([1, 3])), draw(st.integers(1, 4))
    reflect = draw(st.booleans())
    padding = draw(st.integers(0, size - 1 if reflect else size + 2))

    def numbers(low, high):
        return np.array(draw(st.lists(st.integers(low, high), min_size=n, max_size=n)), dtype=np.int64)

    moves = Moves(
        shift_y=numbers(-padding, padding),
        shift_x=numbers(-padding, padding),
        flip=numbers(0, 1).astype(bool),
        cut_y=numbers(0, size - 1),
        cut_x=numbers(0, size - 1),
    )
    return uint8_images(5, size, channels, seed=size), numbers(0, 4), moves, draw(st.integers(1, 2 * size)), reflect


# ---- moves: exact


def moved_by_hand(image, shift_y, shift_x, flip, reflect):
    """One image [H][W][C] padded, cropped and flipped, pixel by pixel."""
    size = len(image)

    def mirrored(place):
        if place < 0:
            return -place
        return 2 * (size - 1) - place if place >= size else place

    def pixel(y, x):
        if reflect:
            return image[mirrored(y)][mirrored(x)]
        return image[y][x] if 0 <= y < size and 0 <= x < size else [0] * len(image[0][0])

    rows = [[pixel(y + shift_y, x + shift_x) for x in range(size)] for y in range(size)]
    return [row[::-1] for row in rows] if flip else rows


@settings(deadline=None)
@given(batches_with_moves())
def test_move_crops_from_the_padded_image_and_then_flips(batch):
    images, rows, moves, _, reflect = batch
    moved = augment.move(torch.from_numpy(images), torch.from_numpy(rows), moves, reflect=reflect)
    assert moved.dtype == torch.uint8
    for i, row in enumerate(rows):
        by_hand = moved_by_hand(images[row].tolist(), moves.shift_y[i], moves.shift_x[i], moves.flip[i], reflect)
        assert moved[i].tolist() == by_hand


def test_reflect_is_numpys_and_zeros_are_black():
    """The corner crop of an image padded by numpy."""
    images = uint8_images(1, 5, 3)
    corner = Moves(*(np.array([value]) for value in (-3, 3, False, -1, -1)))
    for reflect, mode in ((True, "reflect"), (False, "constant")):
        padded = np.pad(images[0], ((3, 3), (3, 3), (0, 0)), mode=mode)
        moved = augment.move(torch.from_numpy(images), torch.tensor([0]), corner, reflect=reflect)
        np.testing.assert_array_equal(moved[0], padded[0:5, 6:11])


@settings(deadline=None)
@given(batches_with_moves())
def test_cutout_zeroes_a_square_that_the_border_may_cut(batch):
    images, rows, moves, side, _ = batch
    floats = torch.from_numpy(images[rows] + 1.0).permute(0, 3, 1, 2).contiguous()
    expected = floats.clone()
    size = images.shape[1]
    for i in range(len(rows)):
        top, left = moves.cut_y[i] - side // 2, moves.cut_x[i] - side // 2
        for y in range(size):
            for x in range(size):
                if top <= y < top + side and left <= x < left + side:
                    expected[i, :, y, x] = 0
    assert torch.equal(augment.cut_out(floats, moves, side), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_is_that_of_totensor_and_normalize(channels):
    mean, std = (0.4914, 0.25, 1e-3)[:channels], (0.2023, 1.0, 1 / 255)[:channels]
    pixels = np.arange(256, dtype=np.uint8).repeat(channels).reshape(1, 16, 16, channels)
    normal = augment.normalise(torch.from_numpy(pixels), torch.from_numpy(augment.normalisation_table(mean, std)))
    for c in range(channels):
        for value in range(256):
            at = normal[0, c, value // 16, value % 16].item()
            assert at == np.float32((value / 255 - mean[c]) / std[c])
    theirs = TF.normalize(TF.to_tensor(pixels[0]), mean, std)
    torch.testing.assert_close(normal[0], theirs, rtol=1e-5, atol=1e-6)


# ---- colour


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("brightness", TF.adjust_brightness),
        ("contrast", TF.adjust_contrast),
        ("saturation", TF.adjust_saturation),
        ("hue", TF.adjust_hue),
    ],
)
def test_each_colour_step_is_torchvisions(name, reference, channels):
    images = float_images(channels=channels)
    colours = draw_colours(AugmentConfig(**{name: 0.5}), 0, 0, IDS)
    expected = torch.stack([reference(image, f) for image, f in zip(images, getattr(colours, name), strict=True)])
    torch.testing.assert_close(augment.jitter(images, colours), expected, rtol=0, atol=2e-6)


def test_colour_steps_follow_one_another_in_the_documented_order():
    images = float_images()
    colours = draw_colours(AugmentConfig(brightness=0.6, contrast=0.6, saturation=0.6, hue=0.3), 1, 0, IDS)
    expected = []
    for i, image in enumerate(images):
        image = TF.adjust_brightness(image, colours.brightness[i])
        image = TF.adjust_contrast(image, colours.contrast[i])
        image = TF.adjust_saturation(image, colours.saturation[i])
        expected.append(TF.adjust_hue(image, colours.hue[i]))
    torch.testing.assert_close(augment.jitter(images, colours), torch.stack(expected), rtol=0, atol=1e-5)


def test_colours_stay_within_0_and_1():
    extreme = draw_colours(AugmentConfig(brightness=1, contrast=1, saturation=1, hue=0.5), 0, 0, np.arange(200))
    turned = augment.jitter(float_images(200), extreme)
    assert turned.min() >= 0
    assert turned.max() <= 1


def test_a_hue_turned_by_a_third_of_the_circle_swaps_the_channels():
    images = float_images()
    third = draw_colours(AugmentConfig(), 0, 0, IDS)
    third.hue[:] = 1 / 3
    torch.testing.assert_close(augment.jitter(images, third), images[:, [2, 0, 1]], rtol=0, atol=2e-6)


# ---- rotation


@pytest.mark.parametrize("size", [8, 9])
def test_rotation_is_torchvisions_counter_clockwise_and_bilinear(size):
    images = float_images(size=size)
    degrees = np.array([-170.0, -30.0, -5.0, 0.0, 12.5, 90.0])
    expected = [TF.rotate(image, a, InterpolationMode.BILINEAR) for image, a in zip(images, degrees, strict=True)]
    torch.testing.assert_close(augment.rotate(images, degrees), torch.stack(expected), rtol=0, atol=1e-5)


def test_a_quarter_turn_moves_whole_pixels():
    images = float_images()
    for quarters in range(4):
        turned = augment.rotate(images, np.full(len(images), 90.0 * quarters))
        torch.testing.assert_close(turned, torch.rot90(images, quarters, (2, 3)), rtol=0, atol=1e-5)


def test_rotation_leaves_black_corners():
    turned = augment.rotate(torch.ones(1, 3, 16, 16), np.array([45.0]))
    assert turned[0, :, 0, 0].tolist() == [0, 0, 0]
    assert turned[0, :, 8, 8].tolist() == pytest.approx([1, 1, 1])


# ---- resized crop


def resized_by_hand(image, box, side):
    """Bilinear samples of `box` of one image [C, H, W]; what lies beyond the image is its border pixel."""
    top, left, height, width = box
    size = image.shape[1]
    out = torch.empty(len(image), side, side)

    def neighbours(place):
        """The two pixels around a position in pixel units and the weight of the second."""
        low = math.floor(place - 0.5)
        return max(low, 0), min(low + 1, size - 1), place - 0.5 - low

    for y in range(side):
        for x in range(side):
            y0, y1, down = neighbours(top + (y + 0.5) * height / side)
            x0, x1, right = neighbours(left + (x + 0.5) * width / side)
            upper = image[:, y0, x0] * (1 - right) + image[:, y0, x1] * right
            lower = image[:, y1, x0] * (1 - right) + image[:, y1, x1] * right
            out[:, y, x] = upper * (1 - down) + lower * down
    return out


@pytest.mark.parametrize("side", [3, 9, 14])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_box_is_sampled_bilinearly(side, channels):
    images = float_images(channels=channels)
    boxes = draw_boxes(0, 0, IDS, images.shape[2])
    expected = torch.stack([resized_by_hand(image, box, side) for image, box in zip(images, boxes, strict=True)])
    torch.testing.assert_close(augment.crop_and_resize(images, boxes, side), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", [4, 5, 8, 16])
def test_a_box_is_torchs_interpolation_of_the_cut_out_box(side):
    """At the box's own border ours sees the pixels beside the box; torch, given the box only, repeats its border."""
    images = float_images()
    top, left, height, width = 2, 1, 5, 6
    cut = images[:, :, top : top + height, left : left + width]
    theirs = F.interpolate(cut, size=(side, side), mode="bilinear", align_corners=False)
    ours = augment.crop_and_resize(images, np.tile([top, left, height, width], (len(images), 1)), side)
    rows = [y for y in range(side) if 0.5 <= (y + 0.5) * height / side <= height - 0.5]
    columns = [x for x in range(side) if 0.5 <= (x + 0.5) * width / side <= width - 0.5]
    inner = np.ix_(range(len(images)), range(3), rows, columns)
    torch.testing.assert_close(ours[inner], theirs[inner], rtol=0, atol=1e-5)
    whole = np.tile([0, 0, 9, 9], (len(images), 1))
    full = F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
    torch.testing.assert_close(augment.crop_and_resize(images, whole, side), full, rtol=0, atol=1e-5)


def test_a_box_of_the_wanted_size_is_an_exact_crop():
    images = float_images()
    boxes = np.array([[y, x, 5, 5] for y, x in ((0, 0), (0, 4), (4, 0), (4, 4), (2, 1), (1, 3))], dtype=float)
    ours = augment.crop_and_resize(images, boxes, 5)
    for i, (top, left, _, _) in enumerate(boxes.astype(int)):
        torch.testing.assert_close(ours[i], images[i, :, top : top + 5, left : left + 5], rtol=0, atol=1e-5)


# ---- resizing, centre crops


@pytest.mark.parametrize("side", [3, 8, 9, 13, 20])
def test_resize_is_pillows_bilinear(side):
    """Pillow's filter is antialiased when it shrinks."""
    images = float_images()
    ours = augment.resize(images, side)
    for image, mine in zip(images, ours, strict=True):
        for channel, plane in zip(image, mine, strict=True):
            theirs = Image.fromarray(channel.numpy()).resize((side, side), Image.Resampling.BILINEAR)
            np.testing.assert_allclose(plane.numpy(), np.asarray(theirs), atol=2e-6)


@pytest.mark.parametrize(("size", "side", "first"), [(8, 4, 2), (9, 4, 2), (8, 5, 1), (9, 9, 0), (9, 1, 4)])
def test_center_crop_takes_the_middle(size, side, first):
    place = torch.arange(size, dtype=torch.float32)
    images = (place[:, None] * 100 + place).expand(2, 3, size, size)
    cropped = augment.center_crop(images, side)
    assert cropped.shape == (2, 3, side, side)
    assert cropped[0, 0, 0, 0] == first * 101
    assert cropped[1, 2, -1, -1] == (first + side - 1) * 101


# ---- mixing


def test_mixup_is_the_weighted_mean_of_two_images():
    images, partners = float_images(), float_images().flip(0)
    own_share = np.array([0.0, 0.25, 0.5, 0.9, 1.0, 1 / 3])
    mixed = augment.mixup(images, partners, own_share)
    for i, share in enumerate(own_share):
        expected = images[i].double() * share + partners[i].double() * (1 - share)
        torch.testing.assert_close(mixed[i].double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(mixed[4], images[4])
    assert torch.equal(mixed[0], partners[0])


@given(st.integers(2, 9), st.data())
def test_cutmix_takes_the_box_from_the_partner(size, data):
    edges = [sorted(data.draw(st.tuples(*[st.integers(0, size)] * 2))) for _ in "yx"]
    images, partners = torch.zeros(1, 3, size, size), torch.ones(1, 3, size, size)
    mixed = augment.cutmix(images, partners, np.array([[*edges[0], *edges[1]]]))
    expected = torch.zeros(size, size)
    expected[slice(*edges[0]), slice(*edges[1])] = 1
    assert torch.equal(mixed[0], expected.expand(3, size, size))


# ---- all of them


@pytest.mark.parametrize(
    "operation",
    [
        lambda images, of: augment.jitter(
            images, draw_colours(AugmentConfig(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.2), 0, 0, of)
        ),
        lambda images, of: augment.rotate(images, draw_colours(AugmentConfig(rotation=30), 0, 0, of).angle),
        lambda images, of: augment.crop_and_resize(images, draw_boxes(0, 0, of, 9), 12),
        lambda images, _: augment.resize(images, 7),
    ],
    ids=["jitter", "rotate", "crop_and_resize", "resize"],
)
def test_what_interpolates_does_not_depend_on_the_batch_and_leaves_its_input_alone(operation):
    images = float_images()
    before = images.clone()
    together = operation(images, IDS)
    for i in IDS:
        torch.testing.assert_close(operation(images[i : i + 1], IDS[i : i + 1])[0], together[i], rtol=0, atol=1e-5)
    assert torch.equal(images, before)
