"""The oracle is open_clip's own full inference preprocessing, de-normalised and rounded."""

import warnings

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import PipelineError
from pipeline.geometry import Geometry, image_transform, prepare_image

MODES = ("RGB", "L", "RGBA", "P")
SIZES = ((28, 28), (37, 61), (90, 40), (224, 224))  # width, height


def make_image(mode: str, size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(7).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode == "P":
        return image.convert("RGB").quantize(64)
    return image.convert(mode)


def open_clip_pixels(image: Image.Image, geometry: Geometry) -> np.ndarray:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    settings = PreprocessCfg(
        size=(geometry.height, geometry.width),
        interpolation=geometry.interpolation,
        resize_mode=geometry.resize_mode,
        fill_color=geometry.fill_color,
    )
    tensor_CHW = image_transform_v2(settings, is_train=False)(image)
    mean, std = (np.array(values)[:, None, None] for values in (settings.mean, settings.std))
    return np.rint(255 * (tensor_CHW.numpy().astype(np.float64) * std + mean)).astype(np.uint8).transpose(1, 2, 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(28, 28),
        Geometry(32, 32, interpolation="bilinear"),
        Geometry(32, 48),
        Geometry(32, 32, resize_mode="longest", fill_color=9),
        Geometry(24, 32, resize_mode="squash"),
    ],
    ids=str,
)
def test_pixels_are_those_of_open_clips_preprocessing(mode: str, size: tuple[int, int], geometry: Geometry) -> None:
    image = make_image(mode, size)
    pixels = prepare_image(image, image_transform(geometry))
    assert pixels.shape == (geometry.height, geometry.width, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, open_clip_pixels(image, geometry))


def test_a_fitting_rgb_image_is_left_as_it_is() -> None:
    image = make_image("RGB", (28, 28))
    np.testing.assert_array_equal(prepare_image(image, image_transform(Geometry(28, 28))), np.asarray(image))


def test_preparing_raises_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare_image(make_image("P", (40, 30)), image_transform(Geometry(28, 28)))


def test_json_round_trip() -> None:
    geometry = Geometry(24, 32, "bilinear", "longest", 3)
    assert Geometry.from_json(geometry.as_json()) == geometry


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"height": 0}, "at least 1 x 1"),
        ({"interpolation": "nearest"}, "interpolation"),
        ({"resize_mode": "crop"}, "resize_mode"),
        ({"fill_color": 256}, "fill_color"),
        ({"depth": 3}, "depth"),
    ],
)
def test_an_impossible_geometry_is_refused_by_name(change: dict[str, object], named: str) -> None:
    with pytest.raises(PipelineError, match=named):
        Geometry.from_json({"height": 28, "width": 28, **change})
