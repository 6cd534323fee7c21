"""Predictions that another method at work has already: equal batches at equal λ are scored once and written again."""

import json

import pyarrow as pa

from pipeline.archives.archive import Archive, Window
from pipeline.stages.context import RunContext
from pipeline.stages.infer import STAGE, slice_fingerprints
from pipeline.stages.plan import covered_rows, plan_path
from pipeline.stages.selection import Selected
from pipeline.stages.tables import fixed_size_lists, matrix_from_lists
from pipeline.store.files import write_json
from pipeline.store.ledger import COPIED_FROM, MICRO_BATCH, Ledger
from pipeline.store.tables import ROWS, read_table, write_table

PROBABILITIES = "probabilities"


def commit_copy(
    context: RunContext, name: str, archive: Archive, window: Window, part: int, source: Selected, selected: Selected
) -> None:
    """Commit a slice of ``selected`` from the committed slice of ``source``, whose plan has the same digest.

    The tables go under the copy's own fingerprint, so that its files are those of a run that scored it. The ledger says
    where they are from and counts nothing, unless an earlier one tells what was spent on this slice.
    """
    directory = context.directory
    fingerprint = slice_fingerprints(context, name, archive, window, selected)[part]
    rows = covered_rows(plan_path(context, name, window, selected))
    own, other = f"{STAGE}/{selected.key}", f"{STAGE}/{source.key}"
    write_table(directory.rejects(own, name, part), read_table(directory.rejects(other, name, part)), fingerprint)
    ledger, scored = directory.ledger(own, name, part), directory.ledger(other, name, part)
    if not ledger.exists():
        # The copy's logits are those of the source's micro-batches, whatever else it cost.
        mark = json.loads(scored.read_text(encoding="utf-8")).get(MICRO_BATCH) if scored.exists() else None
        write_json(ledger, {**Ledger(micro_batch=mark).as_json(), COPIED_FROM: source.key})
    predictions = _as_made(read_table(directory.predictions(source.variant, name, part)))
    write_table(directory.predictions(selected.variant, name, part), predictions, fingerprint, {ROWS: rows})


def _as_made(predictions: pa.Table) -> pa.Table:
    """The table as scoring makes it: a list read from Parquet has another name for its values, hence other bytes."""
    place = predictions.column_names.index(PROBABILITIES)
    made = fixed_size_lists(matrix_from_lists(predictions[PROBABILITIES]))
    return predictions.set_column(place, PROBABILITIES, made)
