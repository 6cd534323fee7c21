"""One row of the metrics: what is counted, and what is computed of it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.results.marks import COLLAPSE
from pipeline.results.tallies import Tally
from pipeline.statistics.calibration import expected_calibration_error
from pipeline.store.fingerprints import Fingerprint


def counted(tally: Tally, generalist: Tally | None) -> dict[str, Any]:
    """Metrics of one tally; ``generalist`` is the same evaluation set's tally for Err, if there is one."""
    samples = tally.samples
    error_generalist = generalist.mistakes / generalist.samples if generalist and generalist.samples else 0.0
    majority_rate = int(tally.confusion_CC.sum(axis=1).max()) / samples if samples else None
    return {
        "samples": samples,
        "unlabelled": tally.unlabelled,
        "rejected": tally.rejected,
        "accuracy": (samples - tally.mistakes) / samples if samples else None,
        "balanced_accuracy": balanced_accuracy(tally.confusion_CC),
        "err": 100 * (tally.mistakes / samples) / error_generalist if samples and error_generalist else None,
        "majority_rate": majority_rate,
        "classes": len(tally.predicted_C),
        "predicted_classes": int(np.count_nonzero(tally.predicted_C)),
        "mean_lambda": tally.lambda_sum / tally.lambda_count if tally.lambda_count else None,
        "macro_auc": tally.macro_auc,
        "ece": expected_calibration_error(tally.confidence_N, tally.right_N),
        "predicted_counts": tally.predicted_C.tolist(),
        "marks": [COLLAPSE] if tally.collapsed else [],
        "fingerprint": Fingerprint(tally.part_fingerprints).digest,
    }


def balanced_accuracy(confusion_CC: NDArray[np.int64]) -> float | None:
    """Mean recall over the classes that occur, as ``sklearn.metrics.balanced_accuracy_score``; None without samples.

    Computed by scikit-learn's ``recall_score`` with the cells as weighted samples: ``balanced_accuracy_score`` itself
    warns whenever a class is predicted that never occurs, which is common for a collapsed model.
    """
    from sklearn.metrics import recall_score

    occurring = np.flatnonzero(confusion_CC.sum(axis=1))
    if not occurring.size:
        return None
    true, predicted = np.nonzero(confusion_CC)
    weights = confusion_CC[true, predicted]
    return float(recall_score(true, predicted, labels=occurring, average="macro", sample_weight=weights))
