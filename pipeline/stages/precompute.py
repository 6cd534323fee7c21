"""Stage one: every source over the images of one archive part, to evidence."""

from dataclasses import dataclass

import pyarrow as pa

from pipeline.archives.archive import Archive
from pipeline.coefficients.evidence import Evidence
from pipeline.stages.context import RunContext
from pipeline.stages.scoring import score_part
from pipeline.stages.scoring_worker import ScoringWorker
from pipeline.stages.tables import evidence_table, rows_digest
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
        compute, heads = self.context.manifest.compute, self.heads(name).sources
        scored = score_part(
            archive,
            part,
            lambda pixels: self.scorer.source_logits(pixels, heads, tile=compute.tile),
            models=len(heads),
            tile=compute.tile,
            compute=compute,
            ledger=ledger,
        )
        evidence = Evidence.from_logits(dict(zip(self.context.sources, scored.logits, strict=True)))
        return PartEvidence(evidence_table(scored.samples, evidence), scored.rejects)


@dataclass(frozen=True, slots=True)
class MakePrecomputeWorker:
    """Factory of stage one's workers."""

    context: RunContext

    def __call__(self) -> PrecomputeWorker:
        """Load the models in this process."""
        return PrecomputeWorker(self.context)
