"""Predictions that evidence answers by itself, without a forward pass: the plain models and their ensemble."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.archives.archive import Archive
from pipeline.coefficients.divergence import log_softmax
from pipeline.manifest.schema import ROLES
from pipeline.stages.context import RunContext
from pipeline.stages.plan import covered_rows
from pipeline.stages.selection import Selected
from pipeline.stages.tables import matrix_from_lists, predictions_table
from pipeline.store.tables import ROWS, PartState, part_state, read_table, write_table

LAMBDA: Mapping[str, float] = dict(zip(ROLES, (0.0, 1.0), strict=True))


def commit_plain(context: RunContext, name: str, archive: Archive, part: int, selected: Selected) -> bool:
    """Commit one part's predictions from committed evidence; False when they are there already."""
    path = context.directory.predictions(selected.variant, name, part)
    fingerprint = context.part_fingerprint(name, archive, part, selected)
    source = context.directory.evidence(name, part)
    rows = covered_rows(source)
    if part_state(path, fingerprint, rows=rows) is PartState.COMMITTED:
        return False
    evidence = read_table(source)
    table = predictions_table(
        evidence,
        batch=None,
        lam=np.full(len(evidence), LAMBDA.get(selected.method.name, np.nan), dtype=np.float32),
        logits=_logits(context, selected, evidence),
        class_names=context.class_names(name, archive),
    )
    write_table(path, table, fingerprint, {ROWS: rows})
    return True


def _logits(context: RunContext, selected: Selected, evidence: pa.Table) -> NDArray[np.float32]:
    """A source's logits, or the ensemble's; the logarithm of mean probabilities is a logit of theirs."""
    if selected.method.combination == "source":
        return matrix_from_lists(evidence[f"logits_{selected.method.name}"])
    everyone = np.stack([matrix_from_lists(evidence[f"logits_{name}"]) for name in context.sources]).astype(np.float64)
    if selected.settings["mean_of"] == "logits":
        return everyone.mean(axis=0).astype(np.float32)
    mean: NDArray[np.float64] = np.logaddexp.reduce(log_softmax(everyone), axis=0) - np.log(len(everyone))
    return mean.astype(np.float32)
