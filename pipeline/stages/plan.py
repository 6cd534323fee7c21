"""From evidence to coefficients to batch plans: no image, no model, no forward pass."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.archives.archive import Archive, Window
from pipeline.coefficients.evidence import Evidence
from pipeline.coefficients.grouping import BatchPlan, arrival, by_lambda, by_mixture, within_tolerance
from pipeline.coefficients.rules import RULES, Coefficients, t3
from pipeline.coefficients.sources import entropy_adaptive
from pipeline.coefficients.streams import parse_order, stream_order
from pipeline.errors import RunDirectoryError, StaleCacheError
from pipeline.manifest.schema import ROLES
from pipeline.stages.context import RunContext
from pipeline.stages.selection import Selected
from pipeline.stages.tables import batches_table, labels_of, read_evidence, samples_table
from pipeline.store.fingerprints import digest_json
from pipeline.store.tables import ROWS, PartState, part_state, read_metadata, read_table, write_table


def commit_samples(context: RunContext, name: str, archive: Archive, part: int, selected: Selected) -> None:
    """Derive and commit one part's coefficients from its committed evidence, unless they are there already."""
    assert selected.rule is not None
    path, source = context.directory.samples(selected.rule, name, part), context.directory.evidence(name, part)
    fingerprint, rows = context.samples_fingerprint(name, archive, part, selected), covered_rows(source)
    if part_state(path, fingerprint, rows=rows) is not PartState.COMMITTED:
        write_table(path, derive_samples(context, selected, read_table(source)), fingerprint, {ROWS: rows})


def derive_samples(context: RunContext, selected: Selected, evidence: pa.Table) -> pa.Table:
    """Coefficients of a part's samples by a method's rule."""
    return samples_table(evidence, _apply_rule(context, selected, read_evidence(evidence, context.sources)))


def commit_batches(context: RunContext, name: str, archive: Archive, window: Window, selected: Selected) -> None:
    """Group and commit one window's batches from its committed coefficients, unless they are there already.

    Weights per source come from the evidence itself.
    """
    path = plan_path(context, name, window, selected)
    fingerprint = context.batches_fingerprint(name, archive, window, selected)
    sources = [_plan_source(context, name, part, selected) for part in window.part_numbers]
    rows = window_rows([covered_rows(source) for source in sources])
    if part_state(path, fingerprint, rows=rows) is not PartState.COMMITTED:
        columns = None if selected.weighs_sources else ["row", "lambda"]
        # Evidence of earlier parts may be older than some of its columns.
        samples = pa.concat_tables((read_table(source, columns) for source in sources), promote_options="default")
        write_table(path, derive_batches(context, archive, window, selected, samples), fingerprint, {ROWS: rows})


def plan_path(context: RunContext, name: str, window: Window, selected: Selected) -> Path:
    """Where the batch plan of a window lies."""
    assert selected.rule is not None
    assert selected.grouping is not None
    return context.directory.batches(selected.rule, selected.grouping, name, window.index)


def covered_rows(path: Path) -> str:
    """Digest of the rows that a committed part covers, from its footer."""
    if not path.exists():
        raise RunDirectoryError(f"{path}: is not there yet; run `pipeline precompute`")
    metadata = read_metadata(path)
    if metadata is None:
        raise StaleCacheError(f"{path}: cannot be read; delete this file and run `pipeline precompute`")
    return metadata.extra[ROWS]


def evidence_rows(context: RunContext, name: str, part: int) -> NDArray[np.int64]:
    """Rows of an archive part that have evidence: every method answers these, and no others."""
    rows: NDArray[np.int64] = read_table(context.directory.evidence(name, part), ["row"])["row"].to_numpy()
    return rows


def window_rows(parts: list[str]) -> str:
    """Digest of the rows that a window's batches cover, from those of its parts."""
    return digest_json(parts)


def derive_batches(
    context: RunContext, archive: Archive, window: Window, selected: Selected, samples: pa.Table
) -> pa.Table:
    """Batch plan of one window from its samples (row and lambda, or evidence), in order of address."""
    first_address, _ = archive.part_range(window.first_part)
    rows = samples["row"].to_numpy()
    order = _stream(context, archive, window, selected, rows)
    if selected.weighs_sources:
        entropies = read_evidence(samples, context.sources).entropies
        plan = entropy_adaptive(
            rows,
            np.stack(list(entropies.values()), axis=1),
            batch_size=selected.whole("batch_size"),
            first_address=first_address,
            temperature_encoder=selected.number("temperature"),
            temperature_head=selected.number_or_none("temperature_head"),
            order=order,
        )
        is_pair = len(context.sources) == 2 and context.manifest.is_pair
        return batches_table(plan, first_address, expert=context.sources.index(ROLES[1]) if is_pair else None)
    lambdas = samples["lambda"].to_numpy()
    return batches_table(_group(selected, rows, lambdas, first_address, order), first_address)


def window_samples(archive: Archive, window: Window) -> pa.Table:
    """Samples (row, sample_id, label) of a window, in order of address."""
    return pa.concat_tables(archive.samples(part).select(["row", "sample_id", "label"]) for part in window.part_numbers)


def batches_of_slice(batches: pa.Table, window: Window, part_rows: int, part: int) -> pa.Table:
    """Batches of one slice of a window's plan, in the order in which they are scored."""
    slices = _slice_of_each_batch(batches["size"].to_numpy(), window, part_rows)
    return batches.filter(pa.array(slices == part)).sort_by([("lambda", "ascending"), ("batch", "ascending")])


def _slice_of_each_batch(sizes: NDArray[np.int32], window: Window, part_rows: int) -> NDArray[np.int64]:
    """Number of the slice, and so of the predictions part, that each batch [B] of a window belongs to.

    The slices of a window are numbered like its archive parts: how many there are, and which files a finished run
    has, is known before any λ is.
    """
    starts = np.cumsum(sizes, dtype=np.int64) - sizes
    return window.first_part + starts // part_rows


def _apply_rule(context: RunContext, selected: Selected, evidence: Evidence) -> Coefficients:
    rule = selected.method.rule
    assert rule is not None
    if rule in context.user_rules:
        shown = evidence if selected.gives_labels else replace(evidence, labels=None)
        return context.user_rules[rule].apply(shown, selected.own_settings())
    return t3(evidence, selected.t3_settings()) if rule == "t3" else RULES[rule](evidence)


def _plan_source(context: RunContext, name: str, part: int, selected: Selected) -> Path:
    assert selected.rule is not None
    directory = context.directory
    return directory.evidence(name, part) if selected.weighs_sources else directory.samples(selected.rule, name, part)


def _stream(
    context: RunContext, archive: Archive, window: Window, selected: Selected, rows: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """Order of a window's rows in the stream that the method is to see; None for the order of arrival."""
    order = parse_order(str(selected.settings.get("order", "arrival")))
    if order.kind == "arrival":
        return None
    samples = window_samples(archive, window)
    own = samples.take(pa.array(np.searchsorted(samples["row"].to_numpy(), rows)))
    return stream_order(
        order.kind,
        labels_of(own),
        batch_size=selected.whole("batch_size"),
        # Windows are streams of their own: without their index, all would draw the same proportions.
        seed=(context.manifest.seeds.order, window.index),
        alpha=order.alpha,
    )


def _group(
    selected: Selected,
    rows: NDArray[np.int64],
    lambdas: NDArray[np.float32],
    first_address: int,
    order: NDArray[np.int64] | None,
) -> BatchPlan:
    kind = selected.method.grouping
    if kind == "sample":
        return by_lambda(rows, lambdas, batch_size=1)
    if kind == "mixture":
        return by_mixture(rows, lambdas, clusters=selected.whole("clusters"))
    batch_size = selected.whole("batch_size")
    if kind == "arrival":
        return arrival(rows, lambdas, batch_size=batch_size, first_address=first_address, order=order)
    tolerance = selected.number_or_none("tolerance")
    if tolerance is None:
        return by_lambda(rows, lambdas, batch_size=batch_size)
    return within_tolerance(rows, lambdas, tolerance=tolerance)
