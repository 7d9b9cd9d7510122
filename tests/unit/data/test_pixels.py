"""The pixel side of a recipe: what the model is given in training and in evaluation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distcifar.config import AugmentConfig
from distcifar.data import augment
from distcifar.data.draws import cutmix_boxes, draw_boxes, draw_colours, draw_mix, draw_moves
from distcifar.data.pixels import PixelPipeline, normalisation
from distcifar.data.transfer import each_array, to_device
from distcifar.errors import ConfigError

CPU = torch.device("cpu")
SIZE, N = 8, 12
IDS = np.arange(100, 100 + N)
ROWS = torch.arange(N)
MOVES = AugmentConfig(crop_padding=2, crop_fill="reflect", flip="random", cutout=3)
COLOURS = AugmentConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, rotation=20, flip="random")


def pipeline(config, channels=3, *, seed=0, device=CPU, mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.1)):
    return PixelPipeline(config, seed, SIZE, 1000, mean[:channels], std[:channels], device)


def plain(config, channels=3):
    """A pipeline that shows pixels as p/255."""
    return pipeline(config, channels, mean=(0.0,) * 3, std=(1.0,) * 3)


def images(channels=3):
    pixels = np.random.default_rng(0).integers(1, 256, (N, SIZE, SIZE, channels), dtype=np.uint8)
    return torch.from_numpy(pixels)


def trained(pixels, stored, rows=ROWS, ids=IDS, epoch=0):
    return pixels.train(stored, rows, pixels.draw(ids, epoch))


# ---- normalisation


def test_each_normalisation_has_its_constants():
    measured = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    assert normalisation("measured", *measured) == measured
    assert normalisation("half", *measured) == ((0.5,) * 3, (0.5,) * 3)
    assert normalisation("none", *measured) == ((0.0,) * 3, (1.0,) * 3)
    assert normalisation("imagenet", *measured) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert normalisation("cifar10", *measured) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    assert normalisation("half", (0.1,), (0.3,)) == ((0.5,), (0.5,))


@pytest.mark.parametrize("name", ["imagenet", "cifar10"])
def test_constants_of_colour_images_are_refused_for_grey_ones(name):
    with pytest.raises(ConfigError, match=f"{name}.*1 channel.*measured"):
        normalisation(name, (0.1,), (0.3,))


def test_a_channel_without_variance_stays_finite():
    mean, std = normalisation("measured", (0.5, 0.0, 1.0), (0.0, 0.0, 0.2))
    assert np.isfinite(augment.normalisation_table(mean, std)).all()


# ---- training


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("config", [AugmentConfig(), MOVES, replace(MOVES, crop_fill="zeros"), COLOURS])
def test_the_model_is_given_float32_channels_first_in_channels_last_memory(config, channels):
    pixels = pipeline(config, channels)
    for batch in (trained(pixels, images(channels)), pixels.evaluate(images(channels), ROWS)):
        assert batch.shape == (N, channels, SIZE, SIZE)
        assert batch.dtype == torch.float32
        assert batch.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("fill", ["zeros", "reflect"])
@pytest.mark.parametrize("channels", [1, 3])
def test_moved_pixels_are_those_that_the_draws_name(fill, channels):
    config = replace(MOVES, crop_fill=fill)
    pixels = pipeline(config, channels)
    moves = draw_moves(config, 0, 5, IDS, SIZE)
    moved = augment.move(images(channels), ROWS, moves, reflect=fill == "reflect")
    table = torch.from_numpy(augment.normalisation_table(pixels.mean, pixels.std))
    expected = augment.cut_out(augment.normalise(moved, table), moves, config.cutout)
    assert torch.equal(trained(pixels, images(channels), epoch=5), expected)


def test_computed_pixels_are_moved_coloured_turned_cropped_resized_normalised_and_cut():
    config = AugmentConfig(flip="random", contrast=0.5, hue=0.2, rotation=30, random_resized_crop=6, resize=10)
    pixels = pipeline(config)
    moves = draw_moves(config, 0, 2, IDS, SIZE)
    colours = draw_colours(config, 0, 2, IDS)
    expected = augment.move(images(), ROWS, moves, reflect=False).permute(0, 3, 1, 2) / 255
    expected = augment.rotate(augment.jitter(expected, colours), colours.angle)
    expected = augment.resize(augment.crop_and_resize(expected, draw_boxes(0, 2, IDS, SIZE), 6), 10)
    mean, std = (torch.tensor(values)[:, None, None] for values in (pixels.mean, pixels.std))
    torch.testing.assert_close(trained(pixels, images(), epoch=2), (expected - mean) / std, rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [MOVES, replace(MOVES, flip="alternate"), COLOURS])
def test_epochs_and_seeds_give_other_pixels_and_repetition_the_same(config):
    first = trained(pipeline(config), images())
    assert torch.equal(trained(pipeline(config), images()), first)
    assert not torch.equal(trained(pipeline(config), images(), epoch=1), first)
    assert not torch.equal(trained(pipeline(config, seed=1), images()), first)


@pytest.mark.parametrize(("config", "tolerance"), [(MOVES, 0.0), (COLOURS, 1e-5)])
def test_a_sample_looks_the_same_in_any_company(config, tolerance):
    pixels = pipeline(config)
    together = trained(pixels, images(), epoch=3)
    for order in ([4], [7, 2], [11, 10, 9, 8, 7]):
        some = trained(pixels, images(), ROWS[order], IDS[order], 3)
        torch.testing.assert_close(some, together[order], rtol=0, atol=tolerance)


def test_the_stored_images_are_never_written_to():
    stored = images()
    for config in (MOVES, COLOURS):
        trained(pipeline(config), stored)
        pipeline(config).evaluate(stored, ROWS)
    assert torch.equal(stored, images())


@pytest.mark.parametrize("config", [AugmentConfig(resize=16), AugmentConfig(random_resized_crop=16)])
def test_cutout_falls_everywhere_on_the_picture_that_the_model_is_given(config):
    """Also where that picture is larger than the stored one."""
    ids = np.arange(1000)
    white = torch.full((1, SIZE, SIZE, 3), 255, dtype=torch.uint8)
    seen = trained(plain(replace(config, cutout=5)), white, torch.zeros(len(ids), dtype=torch.int64), ids)
    cut = (seen == 0).all(1)
    assert cut.any(0).all()
    assert cut.any(2).any(1).all()  # and no sample goes without


def test_cutout_of_a_smaller_picture_always_falls_on_it():
    ids = np.arange(1000)
    white = torch.full((1, SIZE, SIZE, 3), 255, dtype=torch.uint8)
    small = plain(AugmentConfig(random_resized_crop=4, cutout=1))
    seen = trained(small, white, torch.zeros(len(ids), dtype=torch.int64), ids)
    assert (seen == 0).all(1).any(2).any(1).all()


# ---- evaluation


def test_evaluation_changes_nothing_but_the_scale():
    for config in (AugmentConfig(), MOVES, COLOURS, AugmentConfig(mixup=0.5), AugmentConfig(flip="alternate")):
        seen = plain(config).evaluate(images(), ROWS)
        torch.testing.assert_close(seen, images().permute(0, 3, 1, 2) / 255, rtol=0, atol=1e-7)


def test_without_augmentation_training_and_evaluation_see_the_same_bits():
    pixels = pipeline(AugmentConfig())
    assert torch.equal(trained(pixels, images(), epoch=9), pixels.evaluate(images(), ROWS))


def test_evaluation_takes_the_rows_it_is_given():
    pixels = pipeline(MOVES)
    chosen = torch.tensor([5, 0, 5, 11])
    assert torch.equal(pixels.evaluate(images(), chosen), pixels.evaluate(images(), ROWS)[chosen])
    resized = pipeline(AugmentConfig(resize=12))
    assert torch.equal(resized.evaluate(images(), chosen), resized.evaluate(images(), ROWS)[chosen])


def test_evaluation_crops_the_centre_and_resizes():
    center = augment.center_crop(images().permute(0, 3, 1, 2) / 255, 6)
    seen = plain(AugmentConfig(random_resized_crop=6, center_crop=6)).evaluate(images(), ROWS)
    torch.testing.assert_close(seen, center, rtol=0, atol=1e-6)
    seen = plain(AugmentConfig(random_resized_crop=6, center_crop=6, resize=12)).evaluate(images(), ROWS)
    torch.testing.assert_close(seen, augment.resize(center, 12), rtol=0, atol=1e-6)
    seen = plain(AugmentConfig(random_resized_crop=5)).evaluate(images(), ROWS)
    torch.testing.assert_close(seen, augment.resize(images().permute(0, 3, 1, 2) / 255, 5), rtol=0, atol=1e-6)


@pytest.mark.parametrize("resize", [0, 12])
@pytest.mark.parametrize("center_crop", [0, 5, 6])
@pytest.mark.parametrize("resized_crop", [0, 6])
def test_training_and_evaluation_give_the_model_one_size_of_picture(resized_crop, center_crop, resize):
    """A combination for which they cannot may be refused, but not be found out by the first evaluation."""
    try:
        pixels = pipeline(AugmentConfig(random_resized_crop=resized_crop, center_crop=center_crop, resize=resize))
    except ConfigError:
        assert center_crop
        assert not resized_crop
        assert not resize
        return
    expected = (N, 3, pixels.output_size(), pixels.output_size())
    assert trained(pixels, images()).shape == expected
    assert pixels.evaluate(images(), ROWS).shape == expected


# ---- recipes that these images cannot follow


def test_a_centre_crop_larger_than_the_images_is_refused():
    with pytest.raises(ConfigError, match="center_crop"):
        pipeline(AugmentConfig(center_crop=SIZE + 1, resize=SIZE))


def test_a_mirrored_border_as_wide_as_the_images_is_refused():
    """There are only SIZE - 1 pixels to mirror; the kernel would read beside the image."""
    assert pipeline(AugmentConfig(crop_padding=SIZE - 1, crop_fill="reflect"))
    assert pipeline(AugmentConfig(crop_padding=SIZE, crop_fill="zeros"))
    with pytest.raises(ConfigError, match="crop_padding"):
        pipeline(AugmentConfig(crop_padding=SIZE, crop_fill="reflect"))


# ---- mixing


def test_mixup_blends_with_the_partner_and_says_how_much():
    config = replace(MOVES, mixup=0.4)
    pixels = pipeline(config)
    partners, share = draw_mix(config, 0, 1, IDS, 1000)
    drawn, mixture = pixels.draw_mix(IDS, 1)
    np.testing.assert_array_equal(drawn, partners)
    np.testing.assert_array_equal(mixture.own_share, share)
    mixed = pixels.mix(images() / 255, images().flip(0) / 255, mixture)
    weight = torch.from_numpy(share)[:, None, None, None]
    expected = (images() * weight + images().flip(0) * (1 - weight)) / 255
    torch.testing.assert_close(mixed.double(), expected, rtol=0, atol=1e-6)


def test_cutmix_says_how_many_pixels_are_the_images_own():
    """Of the picture that the model is given, which is larger than the stored one here."""
    config = AugmentConfig(cutmix=1.0, resize=16)
    partners, mixture = pipeline(config).draw_mix(IDS, 0)
    drawn, share = draw_mix(config, 0, 0, IDS, 1000)
    boxes, _ = cutmix_boxes(0, 0, IDS, share, 16)
    np.testing.assert_array_equal(partners, drawn)
    np.testing.assert_array_equal(mixture.boxes, boxes)
    own, other = torch.zeros(N, 3, 16, 16), torch.ones(N, 3, 16, 16)
    mixed = pipeline(config).mix(own, other, mixture)
    np.testing.assert_allclose(mixture.own_share, 1 - mixed.mean((1, 2, 3)), atol=1e-6)
    assert 0 < mixture.own_share.min() < mixture.own_share.max()


def test_only_mixup_and_cutmix_mix():
    assert pipeline(AugmentConfig(mixup=0.1)).mixes
    assert pipeline(AugmentConfig(cutmix=0.1)).mixes
    assert not pipeline(MOVES).mixes
    assert not pipeline(COLOURS).mixes
    partners, mixture = pipeline(MOVES).draw_mix(IDS, 0)
    assert not len(partners)
    assert mixture is None


# ---- what runs on a GPU, with tensors for draws, on the CPU


class Elsewhere:
    """A device that is no CPU, for a pipeline whose tensors are on one."""

    type = "elsewhere"


def gathering(config, channels=3):
    """The pipeline as a GPU has it: by gathers instead of the kernel."""
    pixels = pipeline(config, channels, device=Elsewhere())
    pixels.__dict__["_table"] = torch.from_numpy(pixels._values)
    return pixels


def as_tensors(drawn):
    return each_array(drawn, torch.from_numpy)


@settings(max_examples=60, deadline=None)
@given(
    channels=st.sampled_from([1, 3]),
    padding=st.integers(0, 8),
    fill=st.sampled_from(["zeros", "reflect"]),
    flip=st.sampled_from(["none", "random", "alternate"]),
    cutout=st.integers(0, 12),
    epoch=st.integers(0, 5),
)
def test_gathers_give_the_bits_of_the_kernel(channels, padding, fill, flip, cutout, epoch):
    padding = min(padding, SIZE - 1) if fill == "reflect" else padding
    config = AugmentConfig(crop_padding=padding, crop_fill=fill, flip=flip, cutout=cutout)
    elsewhere, rows = gathering(config, channels), torch.flip(ROWS, [0])
    ours = elsewhere.train(images(channels), rows, as_tensors(elsewhere.draw(IDS, epoch)))
    assert torch.equal(ours, trained(pipeline(config, channels), images(channels), rows, IDS, epoch))
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(
        elsewhere.evaluate(images(channels), rows), pipeline(config, channels).evaluate(images(channels), rows)
    )


@pytest.mark.parametrize("config", [COLOURS, AugmentConfig(random_resized_crop=6, cutout=2)])
def test_computed_pixels_do_not_depend_on_whether_draws_are_arrays_or_tensors(config):
    pixels = pipeline(config)
    ours = pixels.train(images(), ROWS, as_tensors(pixels.draw(IDS, 4)))
    assert torch.equal(ours, trained(pixels, images(), epoch=4))


@pytest.mark.parametrize("config", [AugmentConfig(mixup=0.4), AugmentConfig(cutmix=1.0)])
def test_mixtures_do_not_depend_on_whether_draws_are_arrays_or_tensors(config):
    pixels = pipeline(config)
    _, mixture = pixels.draw_mix(IDS, 2)
    own, other = trained(pixels, images()), trained(pixels, images().flip(0))
    assert torch.equal(pixels.mix(own, other, as_tensors(mixture)), pixels.mix(own, other, mixture))


# ---- GPU


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("config", "tolerance"),
    [
        (MOVES, 0.0),
        (replace(MOVES, crop_fill="zeros", flip="alternate"), 0.0),
        (COLOURS, 1e-5),
        (AugmentConfig(random_resized_crop=6, resize=16), 1e-5),
    ],
)
def test_a_gpu_gives_the_pixels_of_the_cpu(config, tolerance):
    cuda = torch.device("cuda", 0)
    on_cpu = trained(plain(config), images(), epoch=1)
    there = replace(plain(config), device=cuda)
    on_gpu = there.train(images().to(cuda), ROWS.to(cuda), to_device(there.draw(IDS, 1), cuda))
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=0, atol=tolerance)
