"""Correction of p-values for the number of comparisons."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

FAMILY_WISE_ERROR = 0.05
"""An adjusted p-value below this confirms a difference."""


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's step-down adjustment (1979) of p-values [n], in their order: the family-wise error rate holds.

    The i-th smallest of n is multiplied by n-i+1; none falls below a smaller one's, and none exceeds 1.
    """
    values = np.asarray(p_values, np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted
