"""Source: procedural blood cells in any number, for demos, tests and measurements without a download.

An image is a function of the settings, the seed and its index alone: not of how many there are, nor of the order or the
ranges in which they are read. A corrupted source shows the same base images as its clean counterpart.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.archives.cells import CELL_CLASSES, NOISE_SHAPE, SITES, UNIFORMS, render_cells
from pipeline.archives.source import JSON, SourceImage
from pipeline.errors import SourceError

GENERATOR_VERSION = 1
NOISE_DEVIATIONS = (0.04, 0.08, 0.12, 0.18, 0.26)
PIXELATE_SCALES = (0.6, 0.5, 0.4, 0.3, 0.25)
BLOCK_PIXELS = 64 * 28 * 28
MINIMUM_SIZE = 8


@dataclass(frozen=True, slots=True)
class SyntheticSource:
    """``count`` images of ``size`` x ``size`` pixels from the first ``classes`` of the eight cell types.

    ``site`` (a, b, c) shifts stain, light and blur; ``corruption`` ("noise", "pixelate") at ``severity`` 1 to 5 lies on
    top, 0 leaves the image as it is. ``group_id`` is the base cell, the same under every site and corruption. Raises
    :class:`SourceError` for a setting out of range.
    """

    count: int
    seed: int
    classes: int = 4
    site: str = "a"
    corruption: Literal["noise", "pixelate"] | None = None
    severity: int = 0
    size: int = 28
    source_name: str = "synthetic"

    def __post_init__(self) -> None:
        _check_range("count", self.count, 1, None)
        _check_range("seed", self.seed, 0, None)
        _check_range("classes", self.classes, 2, len(CELL_CLASSES))
        _check_range("severity", self.severity, 0, len(NOISE_DEVIATIONS))
        _check_range("size", self.size, MINIMUM_SIZE, None)
        if self.site not in SITES:
            raise SourceError(f"synthetic source: 'site' must be one of {', '.join(SITES)}, got {self.site!r}")
        if self.corruption not in (None, "noise", "pixelate"):
            raise SourceError(f"synthetic source: 'corruption' must be noise or pixelate, got {self.corruption!r}")
        if self.corruption is None and self.severity > 0:
            raise SourceError(f"synthetic source: 'severity' is {self.severity} without a 'corruption'; name one")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The first ``classes`` names of the eight cell types."""
        return tuple(CELL_CLASSES)[: self.classes]

    @property
    def identity(self) -> dict[str, JSON]:
        """All settings and the generator's version."""
        return {"kind": "synthetic", "generator": GENERATOR_VERSION, **asdict(self)}

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, stop: int) -> Iterator[SourceImage]:
        """Yield the images of a range; blocks are always rendered whole, at the same boundaries."""
        assert 0 <= start <= stop <= self.count
        # Fixed blocks make each pixel's arithmetic the same for every range: SIMD tails may round differently.
        block = max(1, BLOCK_PIXELS // self.size**2)
        for first in range(start - start % block, stop, block):
            indices = np.arange(first, first + block)
            images, labels = self._render(indices)
            for offset in range(max(start - first, 0), min(stop - first, block)):
                yield self._source_image(first + offset, int(labels[offset]), images[offset])

    def _render(self, indices: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        uniforms = np.empty((len(indices), 1 + UNIFORMS), dtype=np.float32)
        noise = np.empty((len(indices), *NOISE_SHAPE), dtype=np.float32)
        for position, index in enumerate(indices):
            generator = _generator(self.seed, int(index))
            generator.random(dtype=np.float32, out=uniforms[position])
            generator.standard_normal(dtype=np.float32, out=noise[position])
        labels = (uniforms[:, 0] * self.classes).astype(np.int64)
        return render_cells(uniforms[:, 1:], noise, labels, self.classes, SITES[self.site], self.size), labels

    def _source_image(self, index: int, label: int, pixels: npt.NDArray[np.uint8]) -> SourceImage:
        condition = self.site
        corruption = self.corruption if self.severity > 0 else None
        if corruption is not None:
            pixels = _CORRUPTIONS[corruption](pixels, self.severity, _generator(self.seed, index, 1))
            condition = f"{self.site}-{corruption}-{self.severity}"
        return SourceImage(
            index=index,
            sample_id=f"{self.source_name}/{condition}/{self.seed}/{index}",
            label=label,
            group_id=f"cell/{self.seed}/{index}",
            source=self.source_name,
            image=Image.fromarray(pixels),
            problem=None,
            corruption=corruption,
            severity=None if corruption is None else self.severity,
        )


def _generator(seed: int, *path: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=path)))


def _add_noise(pixels: npt.NDArray[np.uint8], severity: int, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    deviation = 255.0 * NOISE_DEVIATIONS[severity - 1]
    noisy = pixels + np.float32(deviation) * generator.standard_normal(pixels.shape, dtype=np.float32)
    return np.rint(np.clip(noisy, 0.0, 255.0)).astype(np.uint8)


def _pixelate(pixels: npt.NDArray[np.uint8], severity: int, _: np.random.Generator) -> npt.NDArray[np.uint8]:
    size = pixels.shape[0]
    small = max(1, round(size * PIXELATE_SCALES[severity - 1]))
    image = Image.fromarray(pixels).resize((small, small), Image.Resampling.BOX)
    return np.asarray(image.resize((size, size), Image.Resampling.NEAREST))


_CORRUPTIONS = {"noise": _add_noise, "pixelate": _pixelate}


def _check_range(name: str, value: int, low: int, high: int | None) -> None:
    if value < low or (high is not None and value > high):
        allowed = f"at least {low}" if high is None else f"in {low}..{high}"
        raise SourceError(f"synthetic source: '{name}' must be {allowed}, got {value}")
