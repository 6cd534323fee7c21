"""Procedural pictures of stained blood cells: random draws in, uint8 pixels out.

Looks are loosely those of Wright-Giemsa smears. A picture is background, neighbouring red cells, debris, then one
white cell: cytoplasm, granules, nucleus. Class decides the means; position, size, stain, light, focus and a pull
towards another class vary from picture to picture, so that classes overlap. Lengths are in half picture widths,
colours in [0, 1].

Shape legend: B pictures, S pixels a side.
"""

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

type Floats = npt.NDArray[np.floating[Any]]

UNIFORMS = 100
NOISE_SHAPE = (2, 32, 32)
COARSE_GRID = 12
LOBES = 4


@dataclass(frozen=True, slots=True)
class CellClass:
    """Mean look of one class: ``lobe_spread`` is the lobes' distance from the middle, ``notch`` makes a kidney."""

    cell_radius: float
    nucleus_radius: float
    lobes: float
    lobe_spread: float
    notch: float
    chromatin: float
    granules: float
    cytoplasm_red: float
    cytoplasm_green: float
    cytoplasm_blue: float
    granule_red: float
    granule_green: float
    granule_blue: float


CELL_CLASSES = {
    "lymphocyte": CellClass(0.46, 0.37, 1, 0.00, 0.1, 0.10, 0.0, 0.66, 0.72, 0.88, 0.60, 0.50, 0.75),
    "neutrophil": CellClass(0.56, 0.19, 4, 0.25, 0.0, 0.15, 0.3, 0.88, 0.78, 0.83, 0.72, 0.52, 0.70),
    "eosinophil": CellClass(0.57, 0.24, 2, 0.24, 0.0, 0.12, 1.0, 0.90, 0.70, 0.66, 0.86, 0.38, 0.30),
    "monocyte": CellClass(0.66, 0.42, 1, 0.05, 0.9, 0.25, 0.1, 0.70, 0.71, 0.82, 0.60, 0.50, 0.72),
    "basophil": CellClass(0.52, 0.28, 2, 0.15, 0.0, 0.15, 1.1, 0.74, 0.64, 0.80, 0.30, 0.15, 0.46),
    "erythroblast": CellClass(0.42, 0.23, 1, 0.02, 0.0, 0.05, 0.0, 0.74, 0.67, 0.74, 0.60, 0.50, 0.70),
    "immature granulocyte": CellClass(0.64, 0.46, 1, 0.08, 0.4, 0.30, 0.7, 0.72, 0.66, 0.84, 0.62, 0.32, 0.60),
    "platelet": CellClass(0.20, 0.02, 1, 0.00, 0.0, 0.05, 0.8, 0.74, 0.60, 0.80, 0.55, 0.34, 0.64),
}
_CLASS_LOOKS = np.array([astuple(look) for look in CELL_CLASSES.values()], dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Site:
    """How one laboratory's pictures differ: colour gains, stain strength, light, vignette and blur (of the width)."""

    red: float = 1.0
    green: float = 1.0
    blue: float = 1.0
    stain: float = 1.0
    brightness: float = 0.0
    vignette: float = 0.0
    blur: float = 0.0


SITES = {
    "a": Site(),
    "b": Site(red=0.96, green=1.0, blue=0.84, stain=0.75, brightness=0.06, vignette=0.18, blur=0.018),
    "c": Site(red=0.86, green=0.92, blue=1.05, stain=1.3, brightness=-0.10, vignette=0.05, blur=0.032),
}


class _Draws:
    """Hands out the uniform draws column by column, each as [B, 1, 1] in a range."""

    def __init__(self, uniforms_BU: Floats) -> None:
        self._columns: Iterator[Floats] = iter(uniforms_BU.T)

    def between(self, low: float | Floats, high: float | Floats) -> Floats:
        return (low + (high - low) * next(self._columns)[:, None, None]).astype(np.float32)

    def color(self, red: float, green: float, blue: float, spread: float) -> Floats:
        channels = [self.between(mean - spread, mean + spread) for mean in (red, green, blue)]
        return np.stack(channels, axis=-1)


def render_cells(
    uniforms_BU: Floats, noise_BNGG: Floats, labels_B: npt.NDArray[np.int64], classes: int, site: Site, size: int
) -> npt.NDArray[np.uint8]:
    """Paint one cell per row of draws: uint8 [B, S, S, 3].

    ``uniforms_BU`` is [B, UNIFORMS] in [0, 1), ``noise_BNGG`` standard normal [B, *NOISE_SHAPE]; labels index
    :data:`CELL_CLASSES`, of which the first ``classes`` may be mixed in.
    """
    draws = _Draws(uniforms_BU)
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0
    x, y = axis[None, None, :], axis[None, :, None]
    soft = draws.between(2.0 / size, 2.0 / size + 0.09)
    fine = _upsample(noise_BNGG[:, 0], size)
    coarse = _upsample(noise_BNGG[:, 1, :COARSE_GRID, :COARSE_GRID], size)

    image = _background(draws, x, y, soft, coarse)
    look = _looks(draws, labels_B, classes)
    _paint_white_cell(image, draws, look, x, y, soft, fine, coarse)
    return _photograph(image, draws, site, x, y)


def _looks(draws: _Draws, labels_B: npt.NDArray[np.int64], classes: int) -> CellClass:
    """Look of each picture's cell: its class's, pulled at random towards another's; fields are [B, 1, 1]."""
    other = draws.between(0, classes)[:, 0, 0].astype(np.int64)
    pull = 0.62 * draws.between(0, 1)[:, 0] ** 2.5
    looks = _CLASS_LOOKS[labels_B] * (1 - pull) + _CLASS_LOOKS[other] * pull
    return CellClass(*(column[:, None, None] for column in looks.T))


def _background(draws: _Draws, x: Floats, y: Floats, soft: Floats, coarse: Floats) -> Floats:
    image: Floats = np.broadcast_to(draws.color(0.94, 0.89, 0.87, 0.03), (*coarse.shape, 3)).astype(np.float32)
    image += 0.008 * coarse[..., None]
    for _ in range(5):
        turn, distance = draws.between(0, 2 * np.pi), draws.between(0.72, 1.35)
        radius = draws.between(0.30, 0.40)
        reach = _distance(x - distance * np.cos(turn), y - distance * np.sin(turn), draws.between(-0.12, 0.12))
        dimple = 0.45 * np.clip(1.0 - reach / (0.6 * radius), 0.0, 1.0)
        opacity: Floats = _inside(reach, radius, soft) * (draws.between(0, 1) < 0.75) * (0.85 - dimple)
        _blend(image, opacity, draws.color(0.87, 0.63, 0.60, 0.04))
    for _ in range(2):
        reach = _distance(x - draws.between(-1, 1), y - draws.between(-1, 1), 0.0)
        opacity = 0.8 * _inside(reach, draws.between(0.03, 0.09), soft) * (draws.between(0, 1) < 0.5)
        _blend(image, opacity, draws.color(0.58, 0.40, 0.66, 0.05))
    return image


def _paint_white_cell(
    image: Floats, draws: _Draws, look: CellClass, x: Floats, y: Floats, soft: Floats, fine: Floats, coarse: Floats
) -> None:
    scale = draws.between(0.84, 1.16)
    x, y = x - draws.between(-0.16, 0.16), y - draws.between(-0.16, 0.16)
    reach = _distance(x, y, draws.between(-0.14, 0.14)) * (1 + draws.between(0.01, 0.035) * coarse)
    cell = _inside(reach, look.cell_radius * scale, soft)
    cytoplasm = draws.color(0.0, 0.0, 0.0, 0.035) + _color(
        look.cytoplasm_red, look.cytoplasm_green, look.cytoplasm_blue
    )
    _blend(image, 0.92 * cell, cytoplasm + 0.015 * coarse[..., None])

    nucleus = _nucleus(draws, look, scale, x, y, soft)
    nucleus_color = (
        draws.color(0.40, 0.22, 0.55, 0.05) * (1 + look.chromatin * draws.between(0.4, 1.0) * fine)[..., None]
    )
    _blend(image, 0.95 * nucleus * cell, nucleus_color)

    speckle = np.clip((fine - draws.between(0.0, 0.6)) * 1.5, 0.0, 1.0) * look.granules * draws.between(0.5, 1.0)
    granules = np.clip(speckle, 0.0, 1.0) * cell * (1 - 0.75 * nucleus)
    _blend(image, granules, _color(look.granule_red, look.granule_green, look.granule_blue))


def _nucleus(draws: _Draws, look: CellClass, scale: Floats, x: Floats, y: Floats, soft: Floats) -> Floats:
    """Union of up to :data:`LOBES` lobes along an arc, less a round notch that makes a kidney of it."""
    turn, step = draws.between(0, 2 * np.pi), draws.between(1.2, 1.7)
    count = np.clip(np.rint(look.lobes + draws.between(-0.8, 0.8)), 1, LOBES)
    radius = look.nucleus_radius * scale * draws.between(0.86, 1.14)
    nucleus: Floats = np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=np.float32)
    for lobe in range(LOBES):
        angle, spread = turn + lobe * step, look.lobe_spread * scale * draws.between(0.8, 1.2)
        reach = _distance(x - spread * np.cos(angle), y - spread * np.sin(angle), draws.between(-0.2, 0.2))
        nucleus = np.maximum(nucleus, _inside(reach, radius * draws.between(0.85, 1.1), soft) * (lobe < count))
    bite = turn + np.float32(np.pi)
    notch_distance = _distance(x - 1.1 * radius * np.cos(bite), y - 1.1 * radius * np.sin(bite), 0.0)
    notch: Floats = _inside(notch_distance, radius * 0.8 * look.notch, soft) * np.minimum(1, 2 * look.notch)
    return nucleus * (1 - notch)


def _photograph(image: Floats, draws: _Draws, site: Site, x: Floats, y: Floats) -> npt.NDArray[np.uint8]:
    """Stain strength, colour cast, uneven light and blur; then 8 bits."""
    stain = site.stain * draws.between(0.82, 1.18)[..., None]
    image = 1.0 - (1.0 - image) * stain
    image *= draws.color(site.red, site.green, site.blue, 0.04)
    direction, slope = draws.between(0, 2 * np.pi), draws.between(0, 0.08)
    light = 1.0 + site.brightness + draws.between(-0.06, 0.06) + slope * (x * np.cos(direction) + y * np.sin(direction))
    image *= (light - site.vignette * 0.5 * (x * x + y * y))[..., None]
    image = _blur(image, site.blur * image.shape[1])
    return np.rint(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)


def _distance(dx: Floats, dy: Floats, stretch: Floats | float) -> Floats:
    return np.sqrt((dx * (1 + stretch)) ** 2 + (dy * (1 - stretch)) ** 2)


def _inside(distance: Floats, radius: Floats, soft: Floats) -> Floats:
    return np.clip((radius - distance) / soft + 0.5, 0.0, 1.0)


def _blend(image: Floats, opacity: Floats, color: Floats) -> None:
    image += opacity[..., None] * (color - image)


def _color(red: float | Floats, green: float | Floats, blue: float | Floats) -> Floats:
    return np.stack([np.asarray(channel, dtype=np.float32) for channel in (red, green, blue)], axis=-1)


def _upsample(grid_BGG: Floats, size: int) -> Floats:
    """Bilinear enlargement [B, G, G] → [B, S, S], by plain sums: BLAS results may depend on its threads."""
    last = grid_BGG.shape[1] - 1
    position = np.linspace(0, last, size, dtype=np.float32)
    lower = np.minimum(position.astype(np.int64), last - 1)
    share = position - lower
    rows: Floats = grid_BGG[:, lower] * (1 - share)[:, None] + grid_BGG[:, lower + 1] * share[:, None]
    enlarged: Floats = rows[:, :, lower] * (1 - share) + rows[:, :, lower + 1] * share
    return enlarged


def _blur(image_BSSC: Floats, sigma: float) -> Floats:
    reach = int(np.ceil(2.5 * sigma))
    if reach == 0:
        return image_BSSC
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (1, 2):
        margins = [(reach, reach) if position == axis else (0, 0) for position in range(4)]
        padded = np.moveaxis(np.pad(image_BSSC, margins, mode="edge"), axis, 0)
        size = image_BSSC.shape[axis]
        blurred = sum(weight * padded[offset : offset + size] for offset, weight in enumerate(weights))
        image_BSSC = np.moveaxis(np.asarray(blurred), 0, axis)
    return image_BSSC
