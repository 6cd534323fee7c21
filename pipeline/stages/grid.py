"""The oracle: every image at every λ of a grid, then for each evaluation set the λ that is most often right.

Needs labels, and is for analysis only: the ceiling that any one λ per set can reach.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.archives.archive import Archive
from pipeline.models.scorer import Scorer
from pipeline.stages.context import RunContext
from pipeline.stages.heads import Heads
from pipeline.stages.plan import evidence_rows
from pipeline.stages.scoring import PartLogits, score_part
from pipeline.stages.selection import Selected
from pipeline.stages.tables import (
    fixed_size_lists,
    labels_of,
    matrix_from_lists,
    predictions_table,
    rows_digest,
)
from pipeline.store.fingerprints import digest_json
from pipeline.store.ledger import Ledger
from pipeline.store.tables import ROWS, PartState, part_state, read_table, write_table


@dataclass(frozen=True, slots=True)
class GridScorer:
    """Scores archive parts at all λ of a grid; the ends are the plain models, read from evidence."""

    context: RunContext
    scorer: Scorer
    heads: Heads

    def score(self, name: str, archive: Archive, part: int, selected: Selected, ledger: Ledger) -> PartLogits:
        """Logits [G-2, N, C] at the inner λ; each block of images is read once and merged for at each of them."""
        compute, inner = self.context.manifest.compute, grid_lambdas(selected)[1:-1]
        merges = self.scorer.segment.merges

        def at_each_lambda(pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
            return [
                self.scorer.merged_logits(pixels, self.context.weights_at(lam), self.heads.at(lam), tile=compute.tile)
                for lam in inner
            ]

        scored = score_part(
            archive,
            part,
            at_each_lambda,
            rows=evidence_rows(self.context, name, part),
            models=len(inner),
            tile=compute.tile,
            compute=compute,
            ledger=ledger,
        )
        ledger.totals["merges"] += self.scorer.segment.merges - merges
        return scored


def grid_lambdas(selected: Selected) -> list[float]:
    """The grid: evenly spaced, 0 and 1 among them, as float32 numbers."""
    return [float(lam) for lam in np.linspace(0.0, 1.0, selected.whole("points"), dtype=np.float32)]


def grid_table(scored: PartLogits) -> pa.Table:
    """Logits of a part at the inner λ, one column each."""
    columns = {name: scored.samples[name] for name in ("row", "sample_id", "label")}
    return pa.table(columns | {f"logits_{i + 1}": fixed_size_lists(logits) for i, logits in enumerate(scored.logits)})


def commit_oracle(context: RunContext, name: str, selected: Selected) -> tuple[int, int]:
    """Choose a set's λ and commit its predictions, where they are not there yet; parts computed and skipped.

    The best λ is the one with the most correct images; of equals, the smallest.
    """
    archive = context.archive(name)
    lambdas = grid_lambdas(selected)
    correct = np.zeros(len(lambdas), dtype=np.int64)
    digests = []
    for part in range(archive.parts):
        samples, logits = _part_logits(context, name, part, selected)
        correct += (logits.argmax(axis=2) == labels_of(samples)).sum(axis=1)
        digests.append(rows_digest(samples))
    best = int(correct.argmax())
    computed = 0
    for part in range(archive.parts):
        path = context.directory.predictions(selected.variant, name, part)
        fingerprint = context.part_fingerprint(name, archive, part, selected)
        # The choice is the whole set's: with another best λ, every part is written again.
        rows = digest_json([best, digests[part]])
        if part_state(path, fingerprint, rows=rows) is PartState.COMMITTED:
            continue
        samples, logits = _part_logits(context, name, part, selected)
        table = predictions_table(
            samples,
            batch=None,
            lam=np.full(len(samples), np.float32(lambdas[best])),
            logits=logits[best],
            class_names=context.class_names(name, archive),
        )
        write_table(path, table, fingerprint, {ROWS: rows})
        computed += 1
    return computed, archive.parts - computed


def _part_logits(context: RunContext, name: str, part: int, selected: Selected) -> tuple[pa.Table, NDArray[np.float32]]:
    """Samples that both stages could score, and their logits [G, N, C] at all λ of the grid."""
    inner = read_table(context.directory.grid(selected.variant, name, part))
    ends = read_table(context.directory.evidence(name, part), ["row", "logits_generalist", "logits_expert"])
    _, positions, places = np.intersect1d(inner["row"].to_numpy(), ends["row"].to_numpy(), return_indices=True)
    columns = [matrix_from_lists(inner[f"logits_{i}"])[positions] for i in range(1, selected.whole("points") - 1)]
    generalist, expert = (matrix_from_lists(ends[f"logits_{end}"])[places] for end in ("generalist", "expert"))
    samples = inner.select(["row", "sample_id", "label"]).take(pa.array(positions))
    return samples, np.stack([generalist, *columns, expert])
