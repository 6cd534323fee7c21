"""Exact per-sample weights: every image of a batch by its own merge, in one batched forward of the image tower."""

from pipeline.models.per_sample.ends import UnsupportedLayerError
from pipeline.models.per_sample.tower import PerSampleTower

__all__ = ["PerSampleTower", "UnsupportedLayerError"]
