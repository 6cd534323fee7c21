"""Calibration: how far a model's confidence is from how often it is right."""

import numpy as np
from numpy.typing import NDArray

BINS = 15


def confidence_bins(confidence_N: NDArray[np.floating]) -> NDArray[np.int64]:
    """Bin of each confidence in [0, 1], of 15 of equal width, each with its upper edge (Guo et al. 2017): int64 [N]."""
    bins = np.ceil(confidence_N.astype(np.float64) * BINS).astype(np.int64) - 1
    return np.clip(bins, 0, BINS - 1)


def expected_calibration_error(confidence_N: NDArray[np.floating], right_N: NDArray[np.bool_]) -> float | None:
    """ECE of the top-1 probability: mean over images of |accuracy - mean confidence| of the image's bin; None if N=0.

    15 bins of equal width (Guo et al. 2017, arXiv 1706.04599, Eq. 3).
    """
    if not len(confidence_N):
        return None
    gap_N = confidence_N.astype(np.float64) - right_N
    return calibration_error(np.bincount(confidence_bins(confidence_N), weights=gap_N, minlength=BINS), len(gap_N))


def calibration_error(gap_B: NDArray[np.floating], count: int) -> float:
    """ECE of ``count`` > 0 images, from the sum over the images of each bin of confidence minus whether it is right."""
    return float(np.abs(gap_B).sum()) / count
