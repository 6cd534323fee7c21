"""From evidence to coefficients to batch plans: no image, no model, no forward pass."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.archives.archive import Archive, Window
from pipeline.coefficients.grouping import BatchPlan, arrival, by_lambda, within_tolerance
from pipeline.coefficients.rules import t3
from pipeline.manifest.schema import Grouping
from pipeline.methods import GroupingKind
from pipeline.stages.context import RunContext
from pipeline.stages.tables import batches_table, read_evidence, samples_table
from pipeline.stages.variants import grouping_variant, rule_variant
from pipeline.store.tables import PartState, part_state, read_table, write_table


def commit_samples(context: RunContext, name: str, archive: Archive, part: int) -> bool:
    """Derive and commit one part's coefficients from its committed evidence; False when they are there already."""
    rule = rule_variant(context.manifest.coefficient)
    path = context.directory.samples(rule, name, part)
    fingerprint = context.samples_fingerprint(name, archive, part, rule)
    if part_state(path, fingerprint) is PartState.COMMITTED:
        return False
    evidence = read_table(context.directory.evidence(name, part))
    write_table(path, derive_samples(context, evidence), fingerprint)
    return True


def derive_samples(context: RunContext, evidence: pa.Table) -> pa.Table:
    """Coefficients of a part's samples by the manifest's rule."""
    return samples_table(evidence, t3(read_evidence(evidence), context.manifest.coefficient.settings))


def commit_batches(context: RunContext, name: str, archive: Archive, window: Window, kind: GroupingKind) -> bool:
    """Group and commit one window's batches from its committed coefficients; False when they are there already."""
    rule, grouping = rule_variant(context.manifest.coefficient), grouping_variant(kind, context.manifest.grouping)
    path = context.directory.batches(rule, grouping, name, window.index)
    fingerprint = context.batches_fingerprint(name, archive, window, rule, grouping)
    if part_state(path, fingerprint) is PartState.COMMITTED:
        return False
    parts = range(window.first_part, window.first_part + window.parts)
    samples = [read_table(context.directory.samples(rule, name, part), ["row", "lambda"]) for part in parts]
    write_table(path, derive_batches(context, archive, window, kind, pa.concat_tables(samples)), fingerprint)
    return True


def derive_batches(
    context: RunContext, archive: Archive, window: Window, kind: GroupingKind, samples: pa.Table
) -> pa.Table:
    """Batch plan of one window from its samples (row, lambda), in order of address."""
    first_address, _ = archive.part_range(window.first_part)
    rows, lambdas = samples["row"].to_numpy(), samples["lambda"].to_numpy()
    plan = _group(kind, context.manifest.grouping, rows, lambdas, first_address)
    return batches_table(plan, first_address)


def slice_of_each_batch(sizes: NDArray[np.int32], window: Window, part_rows: int) -> NDArray[np.int64]:
    """Number of the slice, and so of the predictions part, that each batch [B] of a window belongs to.

    The slices of a window are numbered like its archive parts: how many there are, and which files a finished run
    has, is known before any λ is.
    """
    starts = np.cumsum(sizes, dtype=np.int64) - sizes
    return window.first_part + starts // part_rows


def _group(
    kind: GroupingKind,
    settings: Grouping,
    rows: NDArray[np.int64],
    lambdas: NDArray[np.float32],
    first_address: int,
) -> BatchPlan:
    if kind == "arrival":
        return arrival(rows, lambdas, batch_size=settings.batch_size, first_address=first_address)
    if kind == "sample":
        return by_lambda(rows, lambdas, batch_size=1)
    if settings.tolerance is None:
        return by_lambda(rows, lambdas, batch_size=settings.batch_size)
    return within_tolerance(rows, lambdas, tolerance=settings.tolerance)
