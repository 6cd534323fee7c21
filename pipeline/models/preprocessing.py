"""Preprocessing of a model: what happens between an image and the numbers it sees."""

from dataclasses import dataclass
from typing import Any

from pipeline.geometry import Geometry


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How an image becomes a model's input: geometry, then (pixel/255 - mean)/std per channel."""

    geometry: Geometry
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def from_open_clip(cls, config: dict[str, Any]) -> "Preprocessing":
        """Read an open_clip preprocessing configuration (``open_clip.transform.PreprocessCfg`` as a dict)."""
        size = config["size"]
        height, width = (size, size) if isinstance(size, int) else size
        return cls(
            geometry=Geometry(
                height=height,
                width=width,
                interpolation=config["interpolation"],
                resize_mode=config["resize_mode"],
                fill_color=config["fill_color"],
            ),
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )

    def as_open_clip(self) -> dict[str, Any]:
        """The same as an open_clip configuration, without the size, which is the architecture's."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.geometry.interpolation,
            "resize_mode": self.geometry.resize_mode,
            "fill_color": self.geometry.fill_color,
        }
