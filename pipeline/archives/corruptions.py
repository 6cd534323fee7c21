"""Corruptions of one image, made with scikit-image and Pillow; their strengths stand in :mod:`.severities`.

An operator gets colour pictures, as ImageNet-C's and MedMNIST-C's do. Intensities are rounded to the nearest level.
"""

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

type Operator = Callable[[Image.Image, float, np.random.Generator], Image.Image]


def corrupt_image(image: Image.Image, corruption: str, parameter: float, generator: np.random.Generator) -> Image.Image:
    """``image`` under one of :data:`OPERATORS`, in its size; grey stays grey, any other mode becomes RGB.

    Grey pictures are corrupted as RGB and turned grey again, which is how MedMNIST-C treats its grey sets.
    """
    corrupted = OPERATORS[corruption](image.convert("RGB"), parameter, generator)
    return corrupted.convert("L") if image.mode == "L" else corrupted


def _gaussian_noise(image: Image.Image, deviation: float, generator: np.random.Generator) -> Image.Image:
    return _noisy(image, generator, mode="gaussian", var=deviation**2)


def _speckle_noise(image: Image.Image, deviation: float, generator: np.random.Generator) -> Image.Image:
    return _noisy(image, generator, mode="speckle", var=deviation**2)


def _impulse_noise(image: Image.Image, amount: float, generator: np.random.Generator) -> Image.Image:
    return _noisy(image, generator, mode="s&p", amount=amount)


def _noisy(image: Image.Image, generator: np.random.Generator, **settings: Any) -> Image.Image:
    from skimage.util import random_noise

    return _from_intensities(random_noise(_intensities(image), rng=generator, **settings))


def _shot_noise(image: Image.Image, photons: float, generator: np.random.Generator) -> Image.Image:
    # random_noise's Poisson mode takes the number of photons from the picture's number of levels.
    return _from_intensities(generator.poisson(_intensities(image) * photons) / photons)


def _gaussian_blur(image: Image.Image, deviation: float, _: np.random.Generator) -> Image.Image:
    from skimage.filters import gaussian

    return _from_intensities(gaussian(_intensities(image), sigma=deviation, channel_axis=-1))


def _brightness(image: Image.Image, factor: float, _: np.random.Generator) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


def _contrast(image: Image.Image, factor: float, _: np.random.Generator) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(factor)


def _pixelate(image: Image.Image, share: float, _: np.random.Generator) -> Image.Image:
    small = max(1, int(image.width * share)), max(1, int(image.height * share))
    return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)


def _jpeg_compression(image: Image.Image, quality: float, _: np.random.Generator) -> Image.Image:
    written = io.BytesIO()
    image.save(written, "JPEG", quality=int(quality))
    with Image.open(written) as read:
        return read.copy()


def _intensities(image: Image.Image) -> NDArray[np.float64]:
    return np.asarray(image) / 255.0


def _from_intensities(values: NDArray[np.float64]) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(values, 0.0, 1.0) * 255.0).astype(np.uint8))


OPERATORS: Mapping[str, Operator] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "speckle_noise": _speckle_noise,
    "gaussian_blur": _gaussian_blur,
    "brightness_up": _brightness,
    "brightness_down": _brightness,
    "contrast_up": _contrast,
    "contrast_down": _contrast,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}
"""What can be done to an image, by the name that MedMNIST-C's files have."""
