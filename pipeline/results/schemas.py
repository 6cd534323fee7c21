"""Columns of the tables that ``pipeline evaluate`` writes; all fractions are in [0, 1], Err is in percent.

``*_low`` and ``*_high`` are the ends of a 95 % interval (:mod:`pipeline.statistics.bootstrap`).
"""

import pyarrow as pa

from pipeline.statistics.bootstrap import REPLICATES


def _fields(kind: pa.DataType, *names: str) -> list[tuple[str, pa.DataType]]:
    return [(name, kind) for name in names]


def _with_interval(*names: str) -> list[tuple[str, pa.DataType]]:
    return [(name + end, pa.float64()) for name in names for end in ("", "_low", "_high")]


def _over_seeds(*names: str) -> list[tuple[str, pa.DataType]]:
    return [(name + end, pa.float64()) for name in names for end in ("", "_sd", "_low", "_high")]


METRICS_SCHEMA = pa.schema(
    [
        *_fields(pa.string(), "method", "label"),
        ("analysis_only", pa.bool_()),
        *_fields(pa.string(), "evaluation_set", "condition"),
        *_fields(pa.int64(), "samples", "unlabelled", "rejected"),
        *_fields(pa.float64(), "accuracy", "balanced_accuracy", "err", "majority_rate"),
        *_fields(pa.int64(), "classes", "predicted_classes"),
        ("mean_lambda", pa.float64()),
        *_fields(pa.float64(), "macro_auc", "ece", "be", "rbe"),
        *_fields(pa.float64(), "accuracy_low", "accuracy_high", "balanced_accuracy_low", "balanced_accuracy_high"),
        *_fields(pa.float64(), "err_low", "err_high", "ece_low", "ece_high"),
        ("clusters", pa.int64()),
        ("predicted_counts", pa.list_(pa.int64())),
        ("marks", pa.list_(pa.string())),
        ("fingerprint", pa.string()),
    ]
)

SEVERITY_SCHEMA = pa.schema(
    [
        *_fields(pa.string(), "method", "label"),
        ("analysis_only", pa.bool_()),
        *_fields(pa.string(), "evaluation_set", "condition", "corruption"),
        ("severity", pa.int32()),
        ("samples", pa.int64()),
        *_fields(pa.float64(), "accuracy", "balanced_accuracy", "err", "ece", "accuracy_low", "accuracy_high"),
    ]
)

COMPARISONS_SCHEMA = pa.schema(
    [
        *_fields(pa.string(), "evaluation_set", "method", "reference"),
        *_fields(pa.int64(), "samples", "clusters", "discordant_method", "discordant_reference"),
        *_with_interval("difference"),
        *_fields(pa.float64(), "statistic", "p_value", "p_adjusted"),
        ("test", pa.string()),
    ]
)

SUMMARY_SCHEMA = pa.schema(
    [
        *_fields(pa.string(), "method", "label"),
        ("analysis_only", pa.bool_()),
        ("evaluation_sets", pa.int64()),
        *_with_interval("accuracy", "balanced_accuracy", "difference_generalist", "difference_expert"),
        *_fields(pa.float64(), "mce", "ood"),
    ]
)

STUDY_SUMMARY_SCHEMA = pa.schema([*SUMMARY_SCHEMA, *_fields(pa.int64(), "wins", "losses")])

OVER_SEEDS_SCHEMA = pa.schema(
    [
        *_fields(pa.string(), "study", "evaluation_set", "condition", "method", "label"),
        ("analysis_only", pa.bool_()),
        *_fields(pa.int64(), "seeds", "samples", "unlabelled", "clusters", "classes", "predicted_classes"),
        *_fields(pa.float64(), "majority_rate", "mean_lambda"),
        *_over_seeds("accuracy", "balanced_accuracy"),
        *_fields(pa.float64(), "macro_auc", "macro_auc_sd"),
        *_over_seeds("ece", "err", "difference_generalist", "difference_expert"),
        *_fields(pa.float64(), "p_adjusted_generalist", "p_adjusted_expert"),
        *_fields(pa.float64(), "be", "rbe"),
        ("marks", pa.list_(pa.string())),
    ]
)

REPLICATES_SCHEMA = pa.schema(
    [
        *_fields(pa.string(), "method", "evaluation_set", "draws"),
        ("collapsed", pa.bool_()),
        *_fields(pa.list_(pa.float32(), REPLICATES), "accuracy", "balanced_accuracy", "ece"),
    ]
)
