"""From evidence to coefficients to batch plans: no image, no model, no forward pass."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.archives.archive import Archive, Window
from pipeline.coefficients.grouping import BatchPlan, arrival, by_lambda, within_tolerance
from pipeline.coefficients.rules import t3
from pipeline.errors import RunDirectoryError, StaleCacheError
from pipeline.manifest.schema import Grouping
from pipeline.methods import GroupingKind
from pipeline.stages.context import RunContext
from pipeline.stages.tables import batches_table, read_evidence, samples_table
from pipeline.stages.variants import grouping_variant, rule_variant
from pipeline.store.fingerprints import digest_json
from pipeline.store.tables import ROWS, PartState, part_state, read_metadata, read_table, write_table


def commit_samples(context: RunContext, name: str, archive: Archive, part: int) -> None:
    """Derive and commit one part's coefficients from its committed evidence, unless they are there already."""
    rule = rule_variant(context.manifest.coefficient)
    path, source = context.directory.samples(rule, name, part), context.directory.evidence(name, part)
    fingerprint, rows = context.samples_fingerprint(name, archive, part, rule), covered_rows(source)
    if part_state(path, fingerprint, rows=rows) is not PartState.COMMITTED:
        write_table(path, derive_samples(context, read_table(source)), fingerprint, {ROWS: rows})


def derive_samples(context: RunContext, evidence: pa.Table) -> pa.Table:
    """Coefficients of a part's samples by the manifest's rule."""
    return samples_table(evidence, t3(read_evidence(evidence), context.manifest.coefficient.settings))


def commit_batches(context: RunContext, name: str, archive: Archive, window: Window, kind: GroupingKind) -> None:
    """Group and commit one window's batches from its committed coefficients, unless they are there already."""
    rule, grouping = rule_variant(context.manifest.coefficient), grouping_variant(kind, context.manifest.grouping)
    path = context.directory.batches(rule, grouping, name, window.index)
    fingerprint = context.batches_fingerprint(name, archive, window, rule, grouping)
    parts = range(window.first_part, window.first_part + window.parts)
    sources = [context.directory.samples(rule, name, part) for part in parts]
    rows = window_rows([covered_rows(source) for source in sources])
    if part_state(path, fingerprint, rows=rows) is not PartState.COMMITTED:
        samples = pa.concat_tables(read_table(source, ["row", "lambda"]) for source in sources)
        write_table(path, derive_batches(context, archive, window, kind, samples), fingerprint, {ROWS: rows})


def covered_rows(path: Path) -> str:
    """Digest of the rows that a committed part covers, from its footer."""
    if not path.exists():
        raise RunDirectoryError(f"{path}: is not there yet; run `pipeline precompute`")
    metadata = read_metadata(path)
    if metadata is None:
        raise StaleCacheError(f"{path}: cannot be read; delete this file and run `pipeline precompute`")
    return metadata.extra[ROWS]


def window_rows(parts: list[str]) -> str:
    """Digest of the rows that a window's batches cover, from those of its parts."""
    return digest_json(parts)


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
