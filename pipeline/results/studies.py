"""Several runs together: runs of one manifest are seeds of one another, and several manifests make up a study.

Intervals of a mean over seeds say how far the images at hand decide it, the same images being drawn for all seeds; how
far the seed does is told by the standard deviation beside it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.coefficients.evidence import GENERALIST
from pipeline.errors import RunDirectoryError
from pipeline.results.comparisons import PLAIN_MODELS, confirmed_direction
from pipeline.results.intervals import accuracy_intervals, apart, err_of, interval_of, mean_replicates, mean_values
from pipeline.results.layout import read_run
from pipeline.results.metrics import Evaluation, evaluate, require_distinct
from pipeline.results.resampling import Replicates
from pipeline.results.schemas import OVER_SEEDS_SCHEMA, STUDY_SUMMARY_SCHEMA
from pipeline.results.summary import mean_of, summary_records
from pipeline.statistics.bootstrap import REPLICATES

AVERAGED = ("accuracy", "balanced_accuracy", "macro_auc", "ece", "err", "difference_generalist", "difference_expert")
NAMES = ("study", "evaluation_set", "condition", "method", "label", "analysis_only")
SHARED = (*NAMES, "samples", "unlabelled", "clusters", "classes", "majority_rate")
ADJUSTED = tuple(f"p_adjusted_{reference}" for reference in PLAIN_MODELS)
RUN_COLUMNS = ("study", "seed", "run")

Drawn = Mapping[tuple[str, str], Replicates]
"""Replicates of one run by evaluation set and method."""


@dataclass(frozen=True, slots=True)
class Study:
    """Tables over all runs; ``study``, ``seed`` and ``run`` say where a row comes from.

    ``frame``, ``by_severity`` and ``comparisons`` are those of the single runs, one below the other; ``frame`` has the
    differences in accuracy to generalist and expert, and their adjusted p-values, too. ``over_seeds`` has a row for
    each study, evaluation set and method; ``summary`` one for each method over all sets of all studies.
    """

    frame: pl.DataFrame
    over_seeds: pl.DataFrame
    summary: pl.DataFrame
    comparisons: pl.DataFrame
    by_severity: pl.DataFrame

    @property
    def is_of_one_set(self) -> bool:
        """Whether a single evaluation set has labels: its means are then those of that set."""
        labelled = self.over_seeds.filter(pl.col("samples") > 0)
        return labelled.select("study", "evaluation_set").n_unique() == 1


@dataclass(frozen=True, slots=True)
class Member:
    """One run of a study: ``study`` is the name in its manifest, ``seed`` the seed of its training."""

    run: Path
    study: str
    seed: int
    evaluation: Evaluation


def combine(runs: Sequence[Path]) -> Study:
    """Evaluate all runs, where that is not done, and put their tables together.

    ``over_seeds``: mean (under the metric's own name) and ``_sd`` (n-1; null for one seed) over ``seeds`` runs, with
    ``_low`` and ``_high`` of the mean, which macro AUC has not. An interval is null where the seeds did not draw the
    same images: one of them lacks an evaluation set, or rejected other images; and where the method (for a difference:
    both) collapsed on one class in one of the seeds. ``p_adjusted_generalist`` and ``p_adjusted_expert`` are the
    largest of the seeds' adjusted p-values (comparisons), null where a seed has none.

    ``summary``: the means over seeds, averaged over all sets of all studies as a run's summary is; ``wins`` counts the
    sets on which a method is clearly better than both generalist and expert: the interval of the difference lies above
    0, and the paired test confirms it for every seed (adjusted p below 0.05). ``losses`` are those on which it is
    clearly worse than one of them. For generalist and expert themselves the other one counts. Studies are taken as
    independent of one another, unless their clusters are the same throughout.

    Raises :class:`RunDirectoryError` as :func:`~pipeline.results.metrics.evaluate` does, and where two runs are the
    same seed of the same study.
    """
    require_distinct(runs)
    members = [_member(run) for run in runs]
    _require_seeds(members)
    comparisons = _below(members, "comparisons")
    frame = _compared(_below(members, "metrics"), comparisons)
    over_seeds, drawn = _over_seeds(
        frame, {(member.study, member.seed): _drawn(member.evaluation) for member in members}
    )
    return Study(
        frame=frame,
        over_seeds=over_seeds,
        summary=_summary(over_seeds, drawn),
        comparisons=comparisons,
        by_severity=_below(members, "metrics_by_severity"),
    )


def _member(run: Path) -> Member:
    manifest = read_run(run)["manifest"]
    seed = manifest.get("seeds", {}).get("training", 0)
    return Member(run, str(manifest.get("name", run.name)), int(seed), evaluate(run))


def _require_seeds(members: Sequence[Member]) -> None:
    known: dict[tuple[str, int], Path] = {}
    for member in members:
        other = known.setdefault((member.study, member.seed), member.run)
        if other is not member.run:
            raise RunDirectoryError(
                f"{member.run}: is seed {member.seed} of study '{member.study}', as {other} is; give its manifest "
                "another 'name' or another 'seeds.training'"
            )


def _below(members: Sequence[Member], table: str) -> pl.DataFrame:
    """One table of all runs, with the columns that say which run a row comes from."""
    frames: list[pl.DataFrame] = [
        getattr(member.evaluation, table).with_columns(
            study=pl.lit(member.study), seed=pl.lit(member.seed, pl.Int64), run=pl.lit(str(member.run))
        )
        for member in members
    ]
    return pl.concat(frames).select(*RUN_COLUMNS, pl.exclude(RUN_COLUMNS))


def _compared(frame: pl.DataFrame, comparisons: pl.DataFrame) -> pl.DataFrame:
    """Add the differences to generalist and expert, and the adjusted p-values of their comparisons."""
    place = ("study", "seed", "evaluation_set", "method")
    for reference in PLAIN_MODELS:
        tested = comparisons.filter(pl.col("reference") == reference)
        tested = tested.select(*place, pl.col("p_adjusted").alias(f"p_adjusted_{reference}"))
        difference = (pl.col("accuracy") - _of_reference(reference)).alias(f"difference_{reference}")
        frame = frame.with_columns(difference).join(tested, on=place, how="left", maintain_order="left")
    return frame


def _of_reference(reference: str) -> pl.Expr:
    """Accuracy of a reference beside every row of the same run and evaluation set; null where it was not scored."""
    return pl.col("accuracy").filter(pl.col("method") == reference).first().over("study", "seed", "evaluation_set")


def _drawn(evaluation: Evaluation) -> Drawn:
    return {
        (row["evaluation_set"], row["method"]): Replicates(
            draws=row["draws"],
            collapsed=row["collapsed"],
            accuracy_R=np.array(row["accuracy"]),
            balanced_accuracy_R=np.array(row["balanced_accuracy"]),
            ece_R=np.array(row["ece"]),
            accuracy_LR=np.zeros((0, REPLICATES)),
        )
        for row in evaluation.replicates.iter_rows(named=True)
    }


def _over_seeds(
    frame: pl.DataFrame, drawn: Mapping[tuple[str, int], Drawn]
) -> tuple[pl.DataFrame, dict[tuple[str, str], Replicates]]:
    """Rows of means over seeds, and the mean over seeds of the replicates by set (its study's name first) and label."""
    records: list[dict[str, Any]] = []
    means: dict[tuple[str, str], Replicates] = {}
    for (study, name, label), rows in frame.group_by("study", "evaluation_set", "label", maintain_order=True):
        runs = [drawn[str(study), seed] for seed in rows["seed"]]
        own = _of_equal_draws(run.get((str(name), method)) for run, method in zip(runs, rows["method"], strict=True))
        record = _means(rows)
        if own:
            mean = mean_replicates(own)
            means[f"{study}/{name}", str(label)] = mean
            references = {
                reference: _of_equal_draws(run.get((str(name), reference)) for run in runs)
                for reference in PLAIN_MODELS
            }
            record |= _intervals(own, mean, references)
        records.append(record)
    return _frame(records, OVER_SEEDS_SCHEMA), means


def _means(rows: pl.DataFrame) -> dict[str, Any]:
    """What the seeds have in common, and means and standard deviations of what they have not."""
    found = {name: rows[name][0] for name in SHARED}
    found |= {name: mean_of(rows[name]) for name in (*AVERAGED, "mean_lambda", "be", "rbe")}
    found |= {f"{name}_sd": _deviation(rows[name]) for name in AVERAGED}
    found |= {name: None if rows[name].null_count() else rows[name].max() for name in ADJUSTED}
    marks = sorted({mark for marks in rows["marks"] for mark in marks})
    return found | {"marks": marks, "seeds": rows.height, "predicted_classes": rows["predicted_classes"].min()}


def _deviation(values: pl.Series) -> float | None:
    return float(np.std(values.to_numpy(), ddof=1)) if len(values) > 1 and not values.null_count() else None


def _of_equal_draws(found: Iterable[Replicates | None]) -> list[Replicates]:
    """Replicates of all seeds, to be taken one by one; none where a seed has none or drew other images."""
    every = list(found)
    known = [item for item in every if item is not None]
    return known if len(known) == len(every) and len({item.draws for item in known}) == 1 else []


def _intervals(
    own: Sequence[Replicates], mean: Replicates, references: Mapping[str, Sequence[Replicates]]
) -> dict[str, float | None]:
    found = accuracy_intervals(mean) | interval_of("ece", mean.ece_R)
    for name, reference in references.items():
        if reference:
            found |= interval_of(f"difference_{name}", apart(mean, mean_replicates(reference)))
    if generalist := references[GENERALIST]:
        found |= interval_of("err", mean_values(err_of(*pair) for pair in zip(own, generalist, strict=True)))
    return found


def _summary(over_seeds: pl.DataFrame, drawn: Drawn) -> pl.DataFrame:
    """Sets of all studies as if they were those of one run, named after their study, methods by their label."""
    named = over_seeds.with_columns(
        evaluation_set=pl.format("{}/{}", "study", "evaluation_set"), name=pl.col("method"), method=pl.col("label")
    )
    plain = dict(zip(named["method"], named["name"], strict=True))
    won = {label: _wins_and_losses(rows) for (label,), rows in named.group_by("method")}
    records = [
        record | won[record["method"]] | {"method": plain[record["method"]]} for record in summary_records(named, drawn)
    ]
    return _frame(records, STUDY_SUMMARY_SCHEMA)


def _wins_and_losses(rows: pl.DataFrame) -> dict[str, int]:
    """On how many sets a method is clearly better than all references but itself, and clearly worse than one."""
    others = [name for name in PLAIN_MODELS if name != rows["name"][0]]
    sides = [
        [
            confirmed_direction(
                row[f"difference_{name}_low"], row[f"difference_{name}_high"], row[f"p_adjusted_{name}"]
            )
            for name in others
        ]
        for row in rows.iter_rows(named=True)
    ]
    return {"wins": sum(min(found) > 0 for found in sides), "losses": sum(min(found) < 0 for found in sides)}


def _frame(records: list[dict[str, Any]], schema: pa.Schema) -> pl.DataFrame:
    return cast(pl.DataFrame, pl.from_arrow(pa.Table.from_pylist(records, schema=schema)))
