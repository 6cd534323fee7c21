"""Evidence: what stage one measured for a set of samples, for two sources or more, each by its name.

Shapes: N samples, C classes, K sources. A source is a model; ``generalist`` and ``expert`` are the two of the paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.coefficients.divergence import entropy, jensen_shannon, log_softmax

GENERALIST = "generalist"
EXPERT = "expert"
NO_LABEL = -1


@dataclass(frozen=True, slots=True)
class Evidence:
    """Logits of N samples as stored (float32), and float64 figures from them, in nats.

    Shapes: ``logits`` [N, C] and ``entropies`` [N] by source, in the manifest's order; ``js`` [N], of generalist and
    expert, None unless both are sources; ``labels`` [N], -1 where a sample has none, None when they were not asked for.
    """

    logits: Mapping[str, NDArray[np.float32]]
    entropies: Mapping[str, NDArray[np.float64]]
    js: NDArray[np.float64] | None
    labels: NDArray[np.int64] | None = None

    @classmethod
    def from_logits(cls, logits: Mapping[str, NDArray[np.float32]], labels: ArrayLike | None = None) -> "Evidence":
        """Derive entropies and divergence from the logits [N, C] of each source, and keep the labels [N].

        ValueError when there is no source, when shapes differ, when a logit is not finite or a label is no class.
        """
        shapes = [values.shape for values in logits.values()]
        if not shapes or len(shapes[0]) != 2 or len(set(shapes)) > 1:
            listed = ", ".join(f"{source} {values.shape}" for source, values in logits.items())
            raise ValueError(f"logits must share one shape [N, C], got {listed or 'no source at all'}")
        for source, values in logits.items():
            if not np.isfinite(values).all():
                raise ValueError(f"logits of {source!r} must be finite")
        log_p = {source: log_softmax(values) for source, values in logits.items()}
        both = GENERALIST in log_p and EXPERT in log_p
        return cls(
            logits=dict(logits),
            entropies={source: entropy(values) for source, values in log_p.items()},
            js=jensen_shannon(log_p[GENERALIST], log_p[EXPERT]) if both else None,
            labels=None if labels is None else _checked_labels(labels, *shapes[0]),
        )

    def __len__(self) -> int:
        return len(next(iter(self.logits.values())))

    @property
    def logits_generalist(self) -> NDArray[np.float32]:
        """Logits [N, C] of the source ``generalist``; ValueError where there is none."""
        return _of_source(self.logits, GENERALIST)

    @property
    def logits_expert(self) -> NDArray[np.float32]:
        """Logits [N, C] of the source ``expert``; ValueError where there is none."""
        return _of_source(self.logits, EXPERT)

    @property
    def entropy_generalist(self) -> NDArray[np.float64]:
        """Entropy [N] of the source ``generalist``; ValueError where there is none."""
        return _of_source(self.entropies, GENERALIST)

    @property
    def entropy_expert(self) -> NDArray[np.float64]:
        """Entropy [N] of the source ``expert``; ValueError where there is none."""
        return _of_source(self.entropies, EXPERT)


def _of_source[T](by_source: Mapping[str, T], source: str) -> T:
    if source not in by_source:
        raise ValueError(f"no source is named {source!r}: the sources are {', '.join(by_source)}")
    return by_source[source]


def _checked_labels(labels: ArrayLike, samples: int, classes: int) -> NDArray[np.int64]:
    given = np.asarray(labels)
    if given.shape != (samples,) or given.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers of shape [{samples}], got {given.dtype} of shape {given.shape}")
    beyond = np.flatnonzero((given < NO_LABEL) | (given >= classes))
    if len(beyond):
        first = beyond[0]
        raise ValueError(f"labels[{first}] must be a class in [0, {classes - 1}] or {NO_LABEL}, got {given[first]}")
    return given.astype(np.int64)
