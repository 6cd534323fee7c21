"""How well a model ranks images, whatever the threshold."""

import numpy as np
from numpy.typing import NDArray


def macro_auc(labels_N: NDArray[np.integer], probabilities_NC: NDArray[np.floating]) -> float | None:
    """Mean over the classes that occur of the ROC area of one class against the rest; None with fewer than two.

    scikit-learn's ``roc_auc_score``, one-vs-rest, every class weighted alike. Classes that do not occur are left out:
    they have no ROC curve.
    """
    from sklearn.metrics import roc_auc_score

    occurring = np.unique(labels_N)
    if len(occurring) < 2:
        return None
    return float(roc_auc_score(labels_N[:, None] == occurring, probabilities_NC[:, occurring], average="macro"))
