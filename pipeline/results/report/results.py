"""What a report is made of: the frames of one run or of several, with every column present, null where not computed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from pipeline.coefficients.evidence import GENERALIST
from pipeline.results.marks import Overlap

EXPERT = "expert"
IN_DOMAIN = "in-domain"
OUT_OF_DOMAIN = ("base-to-novel", "noise", "digital")
MAIN = (GENERALIST, EXPERT, "ensemble", "soup", "dawin", "t3", "t3-batch")
RESCALED = "mapping=rescaled"

Schema = Mapping[str, Any]


def _floats(*names: str) -> dict[str, Any]:
    return dict.fromkeys(names, pl.Float64)


def _with_intervals(*names: str) -> dict[str, Any]:
    return _floats(*(name + suffix for name in names for suffix in ("", "_low", "_high", "_sd")))


NAMES: Schema = {"method": pl.String, "label": pl.String, "analysis_only": pl.Boolean}
PLACE: Schema = {"study": pl.String, "evaluation_set": pl.String, "condition": pl.String}

SETS: Schema = (
    {**PLACE, **NAMES, "seeds": pl.Int64}
    | dict.fromkeys(("samples", "clusters", "unlabelled", "rejected", "classes", "predicted_classes"), pl.Int64)
    | _with_intervals("accuracy", "balanced_accuracy", "macro_auc", "ece", "err")
    | _with_intervals("difference_generalist", "difference_expert")
    | _floats("p_adjusted_generalist", "p_adjusted_expert")
    | _floats("be", "rbe", "majority_rate", "mean_lambda")
    | {"marks": pl.List(pl.String)}
)
"""One row per evaluation set and method: means over seeds, ``_sd`` over seeds, 95 % intervals, largest adjusted p."""

METHODS: Schema = (
    {**NAMES, "evaluation_sets": pl.Int64}
    | _with_intervals("accuracy", "balanced_accuracy", "difference_generalist", "difference_expert")
    | _floats("p_adjusted_generalist", "p_adjusted_expert", "mce", "ood")
)
"""One row per method: means over all labelled evaluation sets, each counted once whatever its size.

A mean over several sets has no test; p is that of the only labelled set where there is but one.
"""

COMPARISONS: Schema = (
    {**PLACE, "method": pl.String, "label": pl.String, "reference": pl.String, "seed": pl.Int64}
    | dict.fromkeys(("samples", "clusters", "discordant_method", "discordant_reference"), pl.Int64)
    | _floats("difference", "difference_low", "difference_high", "statistic", "p_value", "p_adjusted")
    | {"test": pl.String}
)
"""One row per evaluation set, method, reference and seed: a paired test on the same images."""

SEVERITIES: Schema = (
    {**PLACE, **NAMES, "corruption": pl.String, "severity": pl.Int64, "samples": pl.Int64}
    | _with_intervals("accuracy")
    | _floats("balanced_accuracy", "err", "ece")
)
"""One row per corrupted evaluation set, severity and method."""


@dataclass(frozen=True, slots=True)
class Results:
    """The frames of a report (:data:`SETS`, :data:`METHODS`, :data:`COMPARISONS`, :data:`SEVERITIES`).

    Methods and evaluation sets come in the manifest's order. ``seeds`` are the training seeds of each study;
    ``unchecked`` are the studies for which nobody looked for leaks (`pipeline check`), ``unknown`` says what could not
    be looked into, ``left_out`` which evaluation sets a study went on without, ``failed`` what stopped other runs,
    ``micro_batches`` where memory ran out and how small tiles were cut then, and
    ``overlaps``, by study, how many images were found where they should not be.
    """

    studies: tuple[str, ...]
    seeds: Mapping[str, tuple[int, ...]]
    sets: pl.DataFrame
    methods: pl.DataFrame
    comparisons: pl.DataFrame
    severities: pl.DataFrame
    unchecked: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    micro_batches: tuple[str, ...] = ()
    overlaps: tuple[tuple[str, Overlap], ...] = ()

    @property
    def labelled(self) -> pl.DataFrame:
        """Rows of evaluation sets that have labels."""
        return self.sets.filter(pl.col("samples") > 0)

    @property
    def places(self) -> list[tuple[str, str, str | None]]:
        """Study, evaluation set and condition of every evaluation set, in order."""
        found = self.sets.select("study", "evaluation_set", "condition").unique(maintain_order=True)
        return [(str(study), str(name), condition) for study, name, condition in found.iter_rows()]

    def name_of(self, study: str, evaluation_set: str) -> str:
        """What an evaluation set is called on the page: by its study too where there are several."""
        return evaluation_set if len(self.studies) == 1 else f"{study}: {evaluation_set}"

    @property
    def ranked(self) -> list[dict[str, Any]]:
        """Rows of methods that compete: they need no labels and have a mean over all labelled evaluation sets."""
        return [
            row
            for row in self.methods.iter_rows(named=True)
            if not row["analysis_only"] and row["accuracy"] is not None
        ]

    def main_methods(self) -> list[str]:
        """Methods that tables show before they are unfolded: the usual ones, rescaled T³, and the best by accuracy."""
        chosen = [row["method"] for row in self.methods.iter_rows(named=True) if _is_main(row)]
        best = best_method(self.methods)
        return chosen if best is None or best in chosen else [*chosen, best]


def complete(frame: pl.DataFrame, schema: Schema) -> pl.DataFrame:
    """Bring ``frame`` to the columns of ``schema``, in its order; columns that it does not have are null."""
    return frame.select(
        (pl.col(name) if name in frame.columns else pl.lit(None)).cast(dtype).alias(name)
        for name, dtype in schema.items()
    )


def best_method(methods: pl.DataFrame) -> str | None:
    """The method with the highest mean accuracy that needs no labels, the first of equals; None without labels."""
    ranked = methods.filter(~pl.col("analysis_only") & pl.col("accuracy").is_not_null())
    if not ranked.height:
        return None
    return str(ranked["method"][int(ranked["accuracy"].round(9).arg_max() or 0)])


def _is_main(row: Mapping[str, Any]) -> bool:
    name = str(row["method"]).split("@", maxsplit=1)[0]
    return row["method"] in MAIN or (name in {"t3", "t3-batch"} and RESCALED in str(row["label"]))
