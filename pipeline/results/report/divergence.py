"""How the divergence goes with the ratios that other rules are made of, and with confidence.

After Figures 2 and 3 of T³ (arXiv 2510.27265). Which ratio R of its Eq. 3 and 4 the paper draws in Figure 2, and how it
combines two confidences in Figure 3, we could not read; both ratios are drawn, and the mean of the two is our reading.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.coefficients.divergence import LN2
from pipeline.results.report.drawing import PALETTE, SMALL, draw
from pipeline.results.report.figure import Figure, counted
from pipeline.results.report.pairs import PairSamples, has_pair, read_pair
from pipeline.results.report.places import Place, places, sentences
from pipeline.results.tables import ABSENT

BINS = 40
INKS = "series-t3"
FAINTEST = 0.4
"""Opacity of a cell with one sample; the fullest cell of a figure is opaque, and between them it goes by log n."""
REACHES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, LN2)
"""Where the axis of js may end: at the first that holds all samples of the set."""
FEWEST = 3
VARIATION = 1e-9
ROW_INCHES, MARGIN_INCHES = 1.85, 0.35

MEANINGS = {
    "TrueTrue": "both right",
    "TrueFalse": "only the generalist right",
    "FalseTrue": "only the expert right",
    "FalseFalse": "both wrong",
}


@dataclass(frozen=True, slots=True)
class Measure:
    """What stands on the vertical axis, in [0, 1]; ``values`` gives None where it cannot be had."""

    name: str
    words: str
    axis: str
    caption: str
    values: Callable[[PairSamples], NDArray[np.float32] | None]


@dataclass(frozen=True, slots=True)
class Correlation:
    """Pearson's r and Spearman's ρ of a group of samples; None for fewer than three, or where a figure never varies."""

    samples: int
    pearson: float | None
    spearman: float | None


MEASURES = (
    Measure(
        "entropy-ratio",
        "entropy ratio R",
        "R = H_ft / (H_pt + H_ft)",
        "R of T³ Eq. 3 is above 0.5 where the expert is the less certain of the two.",
        lambda samples: samples.entropy_ratio,
    ),
    Measure(
        "x-entropy-ratio",
        "X-entropy ratio X",
        "X = ℓ_ft / (ℓ_pt + ℓ_ft)",
        "X of T³ Eq. 4 looks at the label: above 0.5 the expert gives the true class the lower probability.",
        lambda samples: samples.x_entropy_ratio,
    ),
    Measure(
        "confidence",
        "combined confidence",
        "(max p_pt + max p_ft) / 2",
        "Combined confidence is the mean of the two models' largest probabilities (our reading of T³ Fig. 3).",
        lambda samples: samples.confidence,
    ),
)


def divergence_figures(runs: Sequence[Path]) -> list[Figure]:
    """Draw js against R, against X where there are labels, and against combined confidence, for each evaluation set.

    A panel for each quadrant of right and wrong, or of agreement where there are no labels, with both correlations.
    Of several runs of one manifest the first seed is drawn. ``data``: a row for each cell with samples, with its
    group's correlations.
    """
    figures = []
    for place in places(runs, lambda run, name: has_pair(run / "evidence" / name)):
        samples = read_pair(place.run / "evidence" / place.evaluation_set)
        if len(samples):
            figures += [_figure(place, samples, measure) for measure in MEASURES if measure.values(samples) is not None]
    return figures


def correlate(first: NDArray[np.float32], second: NDArray[np.float32]) -> Correlation:
    """Correlate two figures [n] of the same samples, by scipy in float64."""
    from scipy.stats import pearsonr, spearmanr

    x, y = first.astype(np.float64), second.astype(np.float64)
    if len(x) < FEWEST or _is_constant(x) or _is_constant(y):
        return Correlation(len(x), None, None)
    return Correlation(len(x), float(pearsonr(x, y).statistic), float(spearmanr(x, y).statistic))


def cells(js: NDArray[np.float32], values: NDArray[np.float32], reach: float) -> NDArray[np.int64]:
    """Count samples in 40 × 40 cells, js in [0, ``reach``] along the second axis, values in [0, 1] along the first."""
    counts, _, _ = np.histogram2d(values, js, bins=BINS, range=((0.0, 1.0), (0.0, reach)))
    return counts.astype(np.int64)


def _is_constant(values: NDArray[np.float64]) -> bool:
    """Whether rounding is all that varies; scipy warns of a correlation then, and it would say nothing."""
    return float(values.std()) <= VARIATION * max(abs(float(values.mean())), VARIATION)


def _figure(place: Place, samples: PairSamples, measure: Measure) -> Figure:
    values = measure.values(samples)
    assert values is not None
    members = [samples.group == index for index in range(len(samples.groups))]
    largest = float(samples.js.max())
    reach = next(reach for reach in REACHES if largest <= reach)
    counts = [cells(samples.js[found], values[found], reach) for found in members]
    correlations = [correlate(samples.js[found], values[found]) for found in members]
    identifier = f"js-{measure.name}-{place.slug}"
    left_out = f"{counted(samples.unlabelled, 'sample')} without a label left out." if samples.unlabelled else ""
    return Figure(
        id=identifier,
        title=f"Divergence against {measure.words} on {place.title}",
        caption=sentences(
            measure.caption,
            "The stronger a cell's colour, the more samples, on a logarithmic scale;"
            " r is Pearson's correlation, ρ Spearman's.",
            left_out,
            place.note,
        ),
        description=" ".join(
            _describe(group, found, samples.js[chosen], values[chosen], measure)
            for group, found, chosen in zip(samples.groups, correlations, members, strict=True)
        ),
        svg=_draw(identifier, samples.groups, counts, correlations, measure, reach),
        data=pl.concat(
            [
                _data(group, found, count, reach)
                for group, found, count in zip(samples.groups, correlations, counts, strict=True)
            ]
        ),
    )


def _describe(
    group: str, found: Correlation, js: NDArray[np.float32], values: NDArray[np.float32], measure: Measure
) -> str:
    meaning = f" ({MEANINGS[group]})" if group in MEANINGS else ""
    if not found.samples:
        return f"{group}{meaning}: no samples."
    correlation = f"Pearson {_number(found.pearson)}, Spearman {_number(found.spearman)}"
    medians = f"median js {np.median(js):.3f}, median {measure.words} {np.median(values):.2f}"
    return f"{group}{meaning}: {counted(found.samples, 'sample')}, {correlation}, {medians}."


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.2f}".replace("-", "−")


def _data(group: str, found: Correlation, counts: NDArray[np.int64], reach: float) -> pl.DataFrame:
    rows, columns = np.nonzero(counts)
    edges = np.linspace(0.0, 1.0, BINS + 1)
    drawn = pl.DataFrame(
        {
            "js_low": edges[columns] * reach,
            "js_high": edges[columns + 1] * reach,
            "value_low": edges[rows],
            "value_high": edges[rows + 1],
            "count": counts[rows, columns],
        }
    )
    return drawn.select(
        pl.lit(group).alias("group"),
        pl.lit(found.samples, pl.Int64).alias("samples"),
        pl.lit(found.pearson, pl.Float64).alias("pearson"),
        pl.lit(found.spearman, pl.Float64).alias("spearman"),
        pl.all(),
    )


def _draw(
    identifier: str,
    groups: Sequence[str],
    counts: Sequence[NDArray[np.int64]],
    correlations: Sequence[Correlation],
    measure: Measure,
    reach: float,
) -> str:
    from matplotlib.ticker import MaxNLocator

    fullest = max(int(count.max()) for count in counts)
    rows = len(groups) // 2

    def paint(figure: Any) -> None:
        panes = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False)
        for axes, group, count, found in zip(panes.flat, groups, counts, correlations, strict=True):
            axes.imshow(
                _cells_as_ink(count, fullest),
                extent=(0.0, reach, 0.0, 1.0),
                origin="lower",
                aspect="auto",
                interpolation="none",
            )
            axes.patch.set_visible(False)
            axes.spines[["top", "right"]].set_visible(False)
            figures = f"r {_number(found.pearson)} · ρ {_number(found.spearman)} · n {found.samples:,}"
            axes.set_title(f"{group}\n{figures}", fontsize=SMALL)
        panes[0, 0].set(yticks=(0.0, 0.5, 1.0))
        panes[0, 0].xaxis.set_major_locator(MaxNLocator(nbins=4))
        figure.supxlabel("js, nats (at most ln 2 = 0.693)", fontsize=SMALL)
        figure.supylabel(measure.axis, fontsize=SMALL)

    return draw(identifier, ROW_INCHES * rows + MARGIN_INCHES, paint)


def _cells_as_ink(counts: NDArray[np.int64], fullest: int) -> NDArray[np.uint8]:
    """One colour whose opacity tells the count, so that the picture lies on light and dark ground alike."""
    middle = [(int(low, 16) + int(high, 16)) // 2 for low, high in zip(*map(_channels, PALETTE[INKS]), strict=True)]
    picture = np.zeros((*counts.shape, 4), np.uint8)
    picture[..., :3] = middle
    depth = np.log(np.maximum(counts, 1)) / math.log(max(fullest, 2))
    picture[..., 3] = np.where(counts > 0, np.round(255 * (FAINTEST + (1 - FAINTEST) * depth)), 0)
    return picture


def _channels(colour: str) -> tuple[str, str, str]:
    return colour[1:3], colour[3:5], colour[5:7]
