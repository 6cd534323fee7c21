"""Stage one: both models over the images of one archive part, to evidence."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.archives.archive import Archive
from pipeline.coefficients.divergence import Evidence
from pipeline.models.class_embeddings import ClassHead
from pipeline.models.scorer import Scorer
from pipeline.stages.context import RunContext
from pipeline.stages.reading import read_ahead, rows_per_read
from pipeline.stages.scoring_worker import ScoringWorker
from pipeline.stages.tables import evidence_table, rejects_table, rows_digest
from pipeline.stages.work import Report, WorkItem
from pipeline.store.files import write_json
from pipeline.store.ledger import Ledger
from pipeline.store.tables import ROWS, write_table

STAGE = "precompute"


@dataclass(frozen=True, slots=True)
class PartEvidence:
    """Evidence of a part's samples, as a table, and the samples that gave none."""

    table: pa.Table
    rejects: pa.Table


def measure_part(
    archive: Archive,
    part: int,
    scorer: Scorer,
    heads: tuple[ClassHead, ClassHead],
    *,
    tile: int,
    read_bytes: int,
    ledger: Ledger,
) -> PartEvidence:
    """Score the accepted images of one part with both models.

    Tiles are cut from the part's accepted rows in order of address, so they depend on the archive alone. An image
    that cannot be read, or that gives a logit that is not finite, is set apart with its reason.
    """
    samples = archive.samples(part).select(["row", "sample_id", "label"])
    rows = samples["row"].to_numpy()
    classes = len(heads[0].embeddings_CD)
    logits = np.empty((2, len(rows), classes), dtype=np.float32)
    unusable: dict[int, str] = {}
    step = rows_per_read(archive, read_bytes, tile)
    blocks = read_ahead(archive, (rows[start : start + step] for start in range(0, len(rows), step)))
    for start, block in zip(range(0, len(rows), step), ledger.timed("read", blocks), strict=True):
        with ledger.phase("forward"):
            logits[:, start : start + step] = scorer.pair_logits(block.pixels, heads, tile=tile)
        unusable |= {start + position: reason for position, reason in block.unreadable.items()}
    for position in np.flatnonzero(~np.isfinite(logits).all(axis=(0, 2))):
        unusable.setdefault(int(position), "logits are not finite")
    ledger.totals.update(images_read=len(rows), samples=len(rows) - len(unusable), rejected=len(unusable))
    kept = np.setdiff1d(np.arange(len(rows)), np.fromiter(unusable, dtype=np.int64))
    evidence = Evidence.from_logits(logits[0, kept], logits[1, kept])
    return PartEvidence(evidence_table(samples.take(pa.array(kept)), evidence), rejects_table(samples, unusable))


class PrecomputeWorker(ScoringWorker):
    """Commits evidence, part by part."""

    def run(self, item: WorkItem) -> Report:
        """Measure one part and commit its rejects, ledger and evidence, the evidence last."""
        name, part = item.evaluation_set, item.part
        directory, archive = self.context.directory, self.context.archive(name)
        fingerprint = self.context.evidence_fingerprint(name, archive, part)
        ledger = Ledger()
        measured = self.measure(name, archive, part, ledger)
        self.book(ledger)
        with ledger.phase("write"):
            write_table(directory.rejects(STAGE, name, part), measured.rejects, fingerprint)
        write_json(directory.ledger(STAGE, name, part), ledger.as_json())
        write_table(directory.evidence(name, part), measured.table, fingerprint, {ROWS: rows_digest(measured.table)})
        return Report(item, samples=len(measured.table), rejected=len(measured.rejects), ledger=ledger)

    def measure(self, name: str, archive: Archive, part: int, ledger: Ledger) -> PartEvidence:
        """Evidence of one part, not committed."""
        compute, heads = self.context.manifest.compute, self.heads(name)
        ends = (heads.at(0.0), heads.at(1.0))
        return measure_part(
            archive, part, self.scorer, ends, tile=compute.tile, read_bytes=compute.read_bytes, ledger=ledger
        )


@dataclass(frozen=True, slots=True)
class MakePrecomputeWorker:
    """Factory of stage one's workers."""

    context: RunContext

    def __call__(self) -> PrecomputeWorker:
        """Load the pair in this process."""
        return PrecomputeWorker(self.context)
