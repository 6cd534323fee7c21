"""One row of the metrics: what is counted, what is computed of it, and the intervals around that."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.coefficients.evidence import GENERALIST
from pipeline.results.resampling import Replicates
from pipeline.results.summary import COLLAPSE, interval_of
from pipeline.results.tallies import Tally
from pipeline.statistics.calibration import expected_calibration_error
from pipeline.store.fingerprints import Fingerprint


def counted(tally: Tally, generalist: Tally | None) -> dict[str, Any]:
    """Metrics of one tally; ``generalist`` is the same evaluation set's tally for Err, if there is one."""
    samples = tally.samples
    error_generalist = generalist.mistakes / generalist.samples if generalist and generalist.samples else 0.0
    majority_rate = int(tally.confusion_CC.sum(axis=1).max()) / samples if samples else None
    predicted_classes = int(np.count_nonzero(tally.predicted_C))
    collapsed = predicted_classes == 1 and majority_rate is not None and majority_rate < 1
    return {
        "samples": samples,
        "unlabelled": tally.unlabelled,
        "rejected": tally.rejected,
        "accuracy": (samples - tally.mistakes) / samples if samples else None,
        "balanced_accuracy": balanced_accuracy(tally.confusion_CC),
        "err": 100 * (tally.mistakes / samples) / error_generalist if samples and error_generalist else None,
        "majority_rate": majority_rate,
        "classes": len(tally.predicted_C),
        "predicted_classes": predicted_classes,
        "mean_lambda": tally.lambda_sum / tally.lambda_count if tally.lambda_count else None,
        "macro_auc": tally.macro_auc,
        "ece": expected_calibration_error(tally.confidence_N, tally.right_N),
        "predicted_counts": tally.predicted_C.tolist(),
        "marks": [COLLAPSE] if collapsed else [],
        "fingerprint": Fingerprint(tally.part_fingerprints).digest,
    }


def intervals(method: str, replicates: Mapping[str, Replicates]) -> dict[str, float | None]:
    """Intervals of one method on one evaluation set; Err is taken against the generalist of the same replicate.

    Null where nothing is labelled, and for Err where the generalist makes no error in one of the replicates. That of
    ECE lies high, and may leave out the ECE itself: resampling adds scatter of its own to every bin.
    """
    found, generalist = replicates.get(method), replicates.get(GENERALIST)
    if found is None:
        return {}
    err = None if generalist is None else err_replicates(found.accuracy_R, generalist.accuracy_R)
    return (
        interval_of("accuracy", found.accuracy_R)
        | interval_of("balanced_accuracy", found.balanced_accuracy_R)
        | interval_of("ece", found.ece_R)
        | interval_of("err", err)
    )


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


def err_replicates(accuracy_R: NDArray[np.floating], generalist_R: NDArray[np.floating]) -> NDArray[np.float64]:
    """Err in each replicate; NaN where the generalist makes no error."""
    error_R, reference_R = 1 - accuracy_R.astype(np.float64), 1 - generalist_R.astype(np.float64)
    err_R = np.full(len(error_R), np.nan)
    np.divide(100 * error_R, reference_R, out=err_R, where=reference_R > 0)
    return err_R
