"""Predictions of the plain models, read from evidence: no forward pass."""

import numpy as np

from pipeline.archives.archive import Archive
from pipeline.methods import Method
from pipeline.stages.context import RunContext
from pipeline.stages.plan import covered_rows
from pipeline.stages.tables import matrix_from_lists, predictions_table
from pipeline.stages.variants import method_variant
from pipeline.store.tables import ROWS, PartState, part_state, read_table, write_table

LAMBDA = {"generalist": 0.0, "expert": 1.0}


def commit_plain(context: RunContext, name: str, archive: Archive, part: int, method: Method) -> bool:
    """Commit one part of a plain model's predictions from committed evidence; False when they are there already."""
    path = context.directory.predictions(method_variant(method.name, context.manifest), name, part)
    fingerprint = context.plain_fingerprint(name, archive, part, method.name)
    source = context.directory.evidence(name, part)
    rows = covered_rows(source)
    if part_state(path, fingerprint, rows=rows) is PartState.COMMITTED:
        return False
    evidence = read_table(source)
    table = predictions_table(
        evidence,
        batch=None,
        lam=np.full(len(evidence), LAMBDA[method.combination], dtype=np.float32),
        logits=matrix_from_lists(evidence[f"logits_{method.combination}"]),
        class_names=context.class_names(name, archive),
    )
    write_table(path, table, fingerprint, {ROWS: rows})
    return True
