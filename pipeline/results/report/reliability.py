"""Reliability diagrams: how often a method is right at each confidence, a panel for each of the main methods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.results.layout import parts
from pipeline.results.report.drawing import GRID, INK, MAIN_METHODS, SMALL, colour, draw, look_of, wrapped
from pipeline.results.report.figure import Figure, counted
from pipeline.results.report.pairs import read_labels, read_logits
from pipeline.results.report.places import Place, main_methods, places, sentences
from pipeline.statistics.calibration import BINS, calibration_error, confidence_bins
from pipeline.store.tables import read_table

COLUMNS = 2
HEIGHTS = (5.0, 1.0)
ROW_INCHES, MARGIN_INCHES = 1.95, 0.35


@dataclass(frozen=True, slots=True)
class Reliability:
    """Labelled samples of one method by confidence, in 15 bins of equal width over (0, 1]: [15] each.

    ``confidence`` and ``correct`` are sums over the samples of a bin: of the largest probability, and of those right.
    """

    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    correct: NDArray[np.int64]

    @property
    def samples(self) -> int:
        """Labelled samples."""
        return int(self.counts.sum())

    @property
    def accuracy(self) -> float:
        """Share of samples that are right."""
        return float(self.correct.sum() / self.samples)

    @property
    def mean_confidence(self) -> float:
        """Mean of the largest probability."""
        return float(self.confidence.sum() / self.samples)

    @property
    def ece(self) -> float:
        """Expected calibration error: mean over samples of |accuracy - confidence| of their bin (Guo et al. 2017)."""
        return calibration_error(self.confidence - self.correct, self.samples)


def reliability_figures(runs: Sequence[Path]) -> list[Figure]:
    """Draw the main methods, as far as they are there, for each evaluation set with labels, a panel each.

    Of several runs of one manifest the first seed is drawn. ``data``: method, label, confidence_low, confidence_high,
    count, mean_confidence, accuracy (null in empty bins), ece.
    """
    figures = []
    for place in places(runs, _has_predictions):
        methods = main_methods(place.run, place.run_json, MAIN_METHODS)
        found = {method: read_reliability(_folder(place, method)) for method in methods}
        found = {method: bins for method, bins in found.items() if bins.samples}
        if found:
            figures.append(_figure(place, found, methods))
    return figures


def read_reliability(folder: Path) -> Reliability:
    """Tally the labelled predictions in ``folder``, one part in memory at a time."""
    counts, correct = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
    confidence = np.zeros(BINS, np.float64)
    for path in parts(folder).values():
        labels = read_labels(path)
        labelled = labels >= 0
        (probabilities,) = read_logits(path, ["probabilities"])
        top = probabilities[labelled].max(axis=1).astype(np.float64)
        right = read_table(path, ["prediction"])["prediction"].to_numpy()[labelled] == labels[labelled]
        bins = confidence_bins(top)
        counts += np.bincount(bins, minlength=BINS)
        correct += np.bincount(bins[right], minlength=BINS)
        confidence += np.bincount(bins, weights=top, minlength=BINS)
    return Reliability(counts, confidence, correct)


def _has_predictions(run: Path, evaluation_set: str) -> bool:
    return any(parts(path / evaluation_set) for path in (run / "predictions").glob("*") if path.is_dir())


def _folder(place: Place, method: str) -> Path:
    return place.run / "predictions" / method / place.evaluation_set


def _figure(place: Place, found: Mapping[str, Reliability], labels: Mapping[str, str]) -> Figure:
    identifier = f"reliability-{place.slug}"
    return Figure(
        id=identifier,
        title=f"Reliability on {place.title}",
        caption=sentences(
            "Bars: share of right answers among samples of that confidence; on the diagonal, confidence can be taken at"
            " its word; below it, the method is too sure. Outlined: the gap to the bin's mean confidence."
            " Strip below: where the samples are. ECE over 15 bins of equal width.",
            place.note,
        ),
        description=" ".join(_describe(labels[method], bins) for method, bins in found.items()),
        svg=_draw(identifier, found, labels),
        data=pl.concat([_data(method, labels[method], bins) for method, bins in found.items()]),
    )


def _describe(label: str, bins: Reliability) -> str:
    return (
        f"{label}: ECE {100 * bins.ece:.1f} %, mean confidence {100 * bins.mean_confidence:.1f} %,"
        f" accuracy {100 * bins.accuracy:.1f} % over {counted(bins.samples, 'sample')}."
    )


def _data(method: str, label: str, bins: Reliability) -> pl.DataFrame:
    edges = np.linspace(0.0, 1.0, BINS + 1)
    drawn = pl.DataFrame(
        {
            "confidence_low": edges[:-1],
            "confidence_high": edges[1:],
            "count": bins.counts,
            "confidence_sum": bins.confidence,
            "correct": bins.correct,
        }
    )
    filled = pl.when(pl.col("count") > 0)
    return drawn.select(
        pl.lit(method).alias("method"),
        pl.lit(label).alias("label"),
        "confidence_low",
        "confidence_high",
        "count",
        filled.then(pl.col("confidence_sum") / pl.col("count")).alias("mean_confidence"),
        filled.then(pl.col("correct") / pl.col("count")).alias("accuracy"),
        pl.lit(bins.ece).alias("ece"),
    )


def _draw(identifier: str, found: Mapping[str, Reliability], labels: Mapping[str, str]) -> str:
    rows = -(-len(found) // COLUMNS)

    def paint(figure: Any) -> None:
        panes = figure.subplots(2 * rows, COLUMNS, sharex=True, squeeze=False, height_ratios=HEIGHTS * rows)
        for index, (method, bins) in enumerate(found.items()):
            row, column = 2 * (index // COLUMNS), index % COLUMNS
            _panel(panes[row, column], method, bins)
            _strip(panes[row + 1, column], bins)
            title = f"{wrapped(labels[method], 26)}\nECE {100 * bins.ece:.1f} %"
            panes[row, column].set_title(title, fontsize=SMALL)
            panes[row, column].tick_params(labelleft=column == 0)
            panes[row + 1, column].tick_params(labelbottom=index + COLUMNS >= len(found))
        if len(found) % COLUMNS:
            for axes in panes[-2:, -1]:
                axes.set_visible(False)
        figure.supxlabel("confidence (largest probability)", fontsize=SMALL)
        figure.supylabel("accuracy", fontsize=SMALL)

    return draw(identifier, ROW_INCHES * rows + MARGIN_INCHES, paint)


def _panel(axes: Any, method: str, bins: Reliability) -> None:
    edges = np.linspace(0.0, 1.0, BINS + 1)
    filled = np.maximum(bins.counts, 1)
    accuracy, confidence = bins.correct / filled, bins.confidence / filled
    axes.patch.set_visible(False)
    axes.stairs(accuracy, edges, fill=True, color=colour(look_of(method).colour), alpha=0.55, linewidth=0)
    present = np.flatnonzero(bins.counts)
    low, high = np.minimum(accuracy, confidence)[present], np.maximum(accuracy, confidence)[present]
    width = 1.0 / BINS
    axes.bar(edges[present], high - low, width, low, align="edge", facecolor="none", edgecolor=INK, linewidth=0.7)
    axes.plot((0, 1), (0, 1), color=INK, linewidth=0.8, linestyle=(0, (3, 2)))
    axes.set(xlim=(0, 1), ylim=(0, 1), yticks=(0, 0.5, 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(bottom=False)


def _strip(axes: Any, bins: Reliability) -> None:
    axes.patch.set_visible(False)
    axes.stairs(bins.counts, np.linspace(0.0, 1.0, BINS + 1), fill=True, color=INK, alpha=0.55, linewidth=0)
    axes.set(ylim=(0, 1.05 * bins.counts.max()), yticks=())
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
