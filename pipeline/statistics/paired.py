"""Paired tests between two classifiers on the same images, some of which belong together (clusters)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EXACT = "exact McNemar"
MCNEMAR = "McNemar"
CLUSTERED = "clustered McNemar"
SIGN_FLIP = "sign-flip of clusters"
EXACT_BELOW = 25
"""Discordant images, or clusters that speak for either side, below which the exact distribution is used."""
TIE = 1e-9
"""Sums of net differences that differ by less are equal but for rounding."""


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
    image is one image and these are fewer than 25, the exact binomial test; where clusters are larger, and fewer than
    25 have b_k ≠ c_k, the exact sign-flip test of the (b_k-c_k)/n_k, which is the same where these are ±1. ``p_value``
    is 1 where nothing speaks for either.
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
    share_K = share_K[share_K != 0]
    if not single and len(share_K) < EXACT_BELOW:
        return PairedTest(SIGN_FLIP, first, second, None, sign_flip(share_K))
    statistic = float(share_K.sum()) ** 2 / float((share_K**2).sum())
    return PairedTest(MCNEMAR if single else CLUSTERED, first, second, statistic, float(chi2.sf(statistic, df=1)))


def sign_flip(differences_K: NDArray[np.floating]) -> float:
    """Share of the 2^K ways to give K differences signs whose sum is as far from 0 as theirs; 1 for K=0.

    Exact: two-sided p-value of Fisher's randomization test (1935) where either sign is as likely under the null
    hypothesis. All sums of one half of the differences are looked up among those of the other, so K should be below 30.
    """
    observed = abs(float(differences_K.sum())) - TIE
    if observed <= 0:
        return 1.0
    one, other = (_signed_sums(half) for half in np.array_split(np.abs(differences_K), 2))
    other.sort()
    above = len(other) - np.searchsorted(other, observed - one, side="left")
    return 2 * float(above.sum()) / (len(one) * len(other))


def _signed_sums(values_K: NDArray[np.floating]) -> NDArray[np.float64]:
    """Sums of the values under all 2^K choices of their signs."""
    sums = np.zeros(1)
    for value in values_K:
        sums = np.concatenate([sums - value, sums + value])
    return sums
