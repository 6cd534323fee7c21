"""Balanced error under corruption, as MedMNIST-C defines it, with the generalist as the model to compare with.

The definition is that of MedMNIST-C's own evaluator (``medmnistc/eval.py`` of medmnistc-api; arXiv 2406.17536): for
each corruption the balanced error (1 - balanced accuracy) is averaged over severities and divided by the reference
model's; the relative one has the error on clean images subtracted from both; then the mean over corruptions. There the
reference is an AlexNet whose errors are published with the library. Ours is the generalist, as for Err: figures can be
compared between methods, not with those of that paper. They are ratios: 1 for the generalist.
"""

from collections.abc import Mapping, Sequence

import numpy as np

ROUNDING = 1e-12
"""Differences of means of fractions below this are zero but for rounding."""

Errors = Mapping[str, Sequence[float]]
"""Balanced error by corruption, one for each severity."""


def balanced_error(errors: Errors, reference: Errors) -> float | None:
    """BE: mean over corruptions of mean_s(error) / mean_s(reference's error); None where a reference has none.

    ``errors`` and ``reference`` are of the same corruptions and severities; None where there are none.
    """
    return _mean([_ratio(np.mean(errors[name]), np.mean(reference[name])) for name in errors])


def relative_balanced_error(
    errors: Errors, clean_error: float, reference: Errors, reference_clean_error: float
) -> float | None:
    """Compute rBE: as BE, with the error on clean images subtracted above and below.

    None where a corruption does not make the reference worse: the ratio would be without bound, or of the wrong sign.
    """
    ratios = [
        _ratio(np.mean(errors[name]) - clean_error, np.mean(reference[name]) - reference_clean_error) for name in errors
    ]
    return _mean(ratios)


def _ratio(numerator: np.floating, denominator: np.floating) -> float | None:
    return float(numerator / denominator) if denominator > ROUNDING else None


def _mean(ratios: Sequence[float | None]) -> float | None:
    known = [ratio for ratio in ratios if ratio is not None]
    return float(np.mean(known)) if known and len(known) == len(ratios) else None
