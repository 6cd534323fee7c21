"""Paired tests between two classifiers on the same images, some of which belong together (clusters)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EXACT = "exact McNemar"
MCNEMAR = "McNemar"
CLUSTERED = "clustered McNemar"
EXACT_BELOW = 25
"""Discordant pairs below which the binomial distribution itself is used."""


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Two-sided test of equal accuracy; ``statistic`` is chi-square with one degree of freedom, None if exact."""

    test: str
    discordant_first: int
    discordant_second: int
    statistic: float | None
    p_value: float


def mcnemar(
    first_right: NDArray[np.bool_], second_right: NDArray[np.bool_], clusters: NDArray[np.integer]
) -> PairedTest:
    """Compare two classifiers by the images that only one of them gets right (arrays [N], cluster of each image).

    With b_k images of cluster k that only the first gets right, c_k that only the second does, n_k in all:
    X² = (Σ_k (b_k-c_k)/n_k)² / Σ_k ((b_k-c_k)/n_k)² (Durkalski et al. 2003, doi 10.1002/sim.1438), which is McNemar's
    (b-c)²/(b+c), without continuity correction, where every cluster is one image. Where every cluster with a discordant
    image is one image and these are fewer than 25, the exact binomial test. ``p_value`` is 1 where nothing speaks for
    either.
    """
    from scipy.stats import binomtest, chi2

    _, cluster_N = np.unique(clusters, return_inverse=True)
    size_K = np.bincount(cluster_N)
    first_K = np.bincount(cluster_N, weights=first_right & ~second_right)
    second_K = np.bincount(cluster_N, weights=second_right & ~first_right)
    first, second = int(first_K.sum()), int(second_K.sum())
    discordant = first_K + second_K > 0
    single = bool((size_K[discordant] == 1).all())
    if single and first + second < EXACT_BELOW:
        p_value = binomtest(first, first + second).pvalue if first + second else 1.0
        return PairedTest(EXACT, first, second, None, float(p_value))
    share_K = (first_K - second_K)[discordant] / size_K[discordant]
    variance = float((share_K**2).sum())
    statistic = float(share_K.sum()) ** 2 / variance if variance else 0.0
    return PairedTest(MCNEMAR if single else CLUSTERED, first, second, statistic, float(chi2.sf(statistic, df=1)))
