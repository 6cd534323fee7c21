"""Schemas of the run's tables (DESIGN section 6) and the tables themselves, from arrays."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.coefficients.divergence import log_softmax, stored_divergence
from pipeline.coefficients.evidence import Evidence
from pipeline.coefficients.grouping import BatchPlan
from pipeline.coefficients.rules import Branch, Coefficients
from pipeline.coefficients.sources import WeightsPlan

REJECTS_SCHEMA = pa.schema([("row", pa.int64()), ("sample_id", pa.string()), ("reason", pa.string())])
SAMPLE_COLUMNS = ("row", "sample_id", "label", "group_id", "corruption", "severity")
BRANCH_LABELS = [branch.label for branch in Branch]


def evidence_table(samples: pa.Table, evidence: Evidence) -> pa.Table:
    """Evidence of the samples (:data:`SAMPLE_COLUMNS`) of one part."""
    columns = {name: samples[name] for name in SAMPLE_COLUMNS}
    columns |= {f"logits_{name}": fixed_size_lists(logits) for name, logits in evidence.logits.items()}
    columns |= {f"entropy_{name}": values.astype(np.float32) for name, values in evidence.entropies.items()}
    return pa.table(columns if evidence.js is None else columns | {"js": stored_divergence(evidence.js)})


def read_evidence(table: pa.Table, sources: Sequence[str]) -> Evidence:
    """Evidence from its table: figures are derived again from the stored logits, in float64."""
    logits = {name: matrix_from_lists(table[f"logits_{name}"]) for name in sources}
    return Evidence.from_logits(logits, labels_of(table))


def labels_of(table: pa.Table) -> NDArray[np.int64]:
    """Labels [N], -1 where there is none."""
    labels: NDArray[np.int64] = table["label"].fill_null(-1).to_numpy().astype(np.int64)
    return labels


def samples_table(evidence: pa.Table, coefficients: Coefficients) -> pa.Table:
    """Coefficients of the samples of one part."""
    branches = pa.DictionaryArray.from_arrays(pa.array(coefficients.branch), pa.array(BRANCH_LABELS))
    return pa.table(
        {
            "row": evidence["row"],
            "sample_id": evidence["sample_id"],
            "lambda_raw": coefficients.lambda_raw,
            "lambda": coefficients.lam,
            "branch": branches.cast(pa.string()),
        }
    )


def batches_table(plan: BatchPlan | WeightsPlan, first_address: int, *, expert: int | None = None) -> pa.Table:
    """Batch plan of one window. Batches are numbered from the window's first address: unique, whatever λ does.

    With weights per source, λ is the weight in the encoder of the source at position ``expert`` (of a pair), else null;
    the λ of single rows has no meaning then.
    """
    rows = pa.ListArray.from_arrays(pa.array(plan.offsets.astype(np.int32)), pa.array(plan.rows))
    absent = pa.nulls(len(plan), pa.float32())
    if isinstance(plan, BatchPlan):
        lambdas = {"lambda": plan.lam, "lambda_min": plan.lambda_min, "lambda_max": plan.lambda_max}
        weights = {}
    else:
        lam = absent if expert is None else pa.array(plan.weights_encoder[:, expert])
        lambdas = {"lambda": lam, "lambda_min": absent, "lambda_max": absent}
        weights = {
            "weights_encoder": fixed_size_lists(plan.weights_encoder),
            "weights_head": fixed_size_lists(plan.weights_head),
        }
    return pa.table(
        {
            "batch": np.arange(first_address, first_address + len(plan), dtype=np.int64),
            "size": plan.sizes.astype(np.int32),
            **lambdas,
            "rows": rows,
            **weights,
        }
    )


def predictions_table(
    samples: pa.Table,
    *,
    batch: NDArray[np.int64] | None,
    lam: NDArray[np.float32],
    logits: NDArray[np.float32],
    class_names: list[str],
) -> pa.Table:
    """Predictions for samples (row, sample_id, label), in the order given.

    ``batch`` None: no batch was formed. ``lam`` is NaN where the weights were no λ, which is stored as null.
    """
    predicted = logits.argmax(axis=1).astype(np.int32)
    return pa.table(
        {
            "row": samples["row"],
            "sample_id": samples["sample_id"],
            "batch": pa.nulls(len(samples), pa.int64()) if batch is None else pa.array(batch),
            "lambda": pa.array(lam, from_pandas=True),
            "prediction": predicted,
            "class_name": pa.array(class_names).take(pa.array(predicted)),
            "probabilities": fixed_size_lists(np.exp(log_softmax(logits)).astype(np.float32)),
            "label": samples["label"],
        }
    )


def rejects_table(samples: pa.Table, reasons: dict[int, str]) -> pa.Table:
    """Rejects: the samples at the positions that ``reasons`` names."""
    positions = sorted(reasons)
    chosen = samples.take(pa.array(positions, pa.int64()))
    return pa.table(
        [chosen["row"], chosen["sample_id"], pa.array([reasons[p] for p in positions], pa.string())],
        schema=REJECTS_SCHEMA,
    )


def rows_digest(table: pa.Table) -> str:
    """SHA-256 of the row addresses that a table covers: its inputs do not tell them, as images can be rejected."""
    return hashlib.sha256(table["row"].to_numpy().tobytes()).hexdigest()


def fixed_size_lists(matrix: NDArray[np.float32]) -> pa.FixedSizeListArray:
    """Matrix [N, C] as one list of C values per row."""
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])


def matrix_from_lists(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """Matrix [N, C] of a column of lists of C values."""
    size = column.type.list_size
    flat: NDArray[np.float32] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, size)
