"""Resize and crop of one image to a model's input: the pixels open_clip's own preprocessing yields, kept as uint8.

Everything before normalisation happens here, once, when an image enters an archive. The steps are open_clip's own, so
that an archive's pixels and a plain open_clip script's agree bit by bit.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.errors import PipelineError

INTERPOLATIONS = ("bicubic", "bilinear")
RESIZE_MODES = ("shortest", "longest", "squash")

ImageTransform = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Size of a model's input and the way to it, in the words of open_clip's ``PreprocessCfg``.

    Raises :class:`PipelineError` for a setting that open_clip does not know.
    """

    height: int
    width: int
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise PipelineError(f"geometry must be at least 1 x 1 pixels, got {self.height} x {self.width}")
        if self.interpolation not in INTERPOLATIONS:
            raise PipelineError(
                f"'interpolation' must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}"
            )
        if self.resize_mode not in RESIZE_MODES:
            raise PipelineError(f"'resize_mode' must be one of {', '.join(RESIZE_MODES)}, got {self.resize_mode!r}")
        if not 0 <= self.fill_color <= 255:
            raise PipelineError(f"'fill_color' must lie in 0..255, got {self.fill_color}")

    def as_json(self) -> dict[str, int | str]:
        """All settings by name, ready for a digest or ``archive.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Geometry":
        """Inverse of :meth:`as_json`; an unknown or absent setting raises :class:`PipelineError`."""
        try:
            return cls(**value)
        except TypeError as error:
            raise PipelineError(f"not a geometry: {dict(value)!r} ({error})") from error


def image_transform(geometry: Geometry) -> ImageTransform:
    """Return open_clip's inference preprocessing for ``geometry``, up to and without the conversion to a tensor."""
    from open_clip.transform import MaybeToTensor, PreprocessCfg, image_transform_v2

    settings = PreprocessCfg(
        size=(geometry.height, geometry.width),
        interpolation=geometry.interpolation,
        resize_mode=geometry.resize_mode,
        fill_color=geometry.fill_color,
    )
    steps = image_transform_v2(settings, is_train=False).transforms
    end = next(position for position, step in enumerate(steps) if isinstance(step, MaybeToTensor))
    spatial_steps = steps[:end]

    def transform(image: Image.Image) -> Image.Image:
        for step in spatial_steps:
            image = step(image)
        return image

    return transform


def prepare_image(image: Image.Image, transform: ImageTransform) -> npt.NDArray[np.uint8]:
    """Bring one image to the model's input: uint8 [H, W, 3], not yet normalised."""
    pixels_HWC = np.asarray(transform(image))
    assert pixels_HWC.dtype == np.uint8
    assert pixels_HWC.ndim == 3
    return pixels_HWC
