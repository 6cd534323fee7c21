"""How the price of merging moves with the number of images, the batch size and the number of classes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.benchmarks.bars import Bar, chart
from pipeline.benchmarks.method_costs import Setting, method_costs
from pipeline.benchmarks.random_pair import short_name

SHOWN = ("t3-batch", "t3-batch-online", "t3", "t3-online", "t3-loop-online")
BARS = ("t3-batch", "t3")
OVER = ("samples", "batch_size", "classes")


def scaling(
    setting: Setting, *, samples: Sequence[int], batch_sizes: Sequence[int], classes: Sequence[int]
) -> dict[str, Any]:
    """:func:`method_costs` at ``setting`` with one thing changed at a time.

    ``points`` hold ``over`` (samples, batch_size or classes), ``value``, ``rows`` as ``pipeline bench`` has them, and
    the fitted ``cost_model``. A batch size beyond the number of images raises that number.
    """
    points = []
    for over, values in zip(OVER, (samples, batch_sizes, classes), strict=True):
        for value in values:
            change: dict[str, Any] = {over: value}
            changed = replace(setting, **change)
            changed = replace(changed, samples=max(changed.samples, changed.batch_size))
            measured = method_costs(changed)
            points.append({"over": over, "value": value, "rows": measured["rows"], "costs": measured["cost_model"]})
    result: dict[str, Any] = {
        **{name: getattr(setting, name) for name in ("architecture", "samples", "batch_size", "classes", "precision")},
        "pairs": setting.pairs,
        "points": points,
        "prediction_error": _prediction_error(points),
    }
    bars = [
        Bar.of_ratio(f"{name}, {point['over'].replace('_', ' ')} {point['value']}", row)
        for name in BARS
        for point in points
        for row in point["rows"]
        if row["name"] == name
    ]
    result |= chart(f"{short_name(setting.architecture)}, one thing changed", "time over that of one plain model", bars)
    result["text"] = _text(result)
    return result


def _prediction_error(points: Sequence[dict[str, Any]]) -> float:
    """Median over all rows of how far the prediction from the other rows is from what was measured, relatively."""
    errors = [
        abs(row["predicted_seconds"] / row["seconds"] - 1)
        for point in points
        for row in point["rows"]
        if row["predicted_seconds"] is not None
    ]
    return float(np.median(errors))


def _text(result: dict[str, Any]) -> str:
    lines = [
        f"{result['architecture']}, {result['samples']} images in batches of {result['batch_size']}, "
        f"{result['classes']} classes where nothing else is said; ratios to one plain model",
        f"  {'':<18}" + "".join(f"{name:>17}" for name in SHOWN),
    ]
    for point in result["points"]:
        rows = {row["name"]: row["ratio"] for row in point["rows"]}
        changed = f"{point['over'].replace('_', ' ')} {point['value']}"
        lines.append(f"  {changed:<18}" + "".join(f"{rows[name]:>17.3f}" for name in SHOWN))
    lines.append(f"  predicted from the other rows' prices: {result['prediction_error']:.0%} off in the median")
    return "\n".join(lines)
