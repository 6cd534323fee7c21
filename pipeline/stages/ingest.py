"""Ingestion of one archive part: from a source's range to pixels, samples and rejects."""

from dataclasses import dataclass

from pipeline.archives.archive import Archive
from pipeline.archives.ingest import write_part
from pipeline.archives.source import Source
from pipeline.manifest.images import EvaluationSet
from pipeline.manifest.schema import Manifest
from pipeline.memory import return_large_blocks
from pipeline.stages.context import archive_path
from pipeline.stages.sources import open_source
from pipeline.stages.work import Report, WorkItem
from pipeline.store.ledger import Ledger


class IngestWorker:
    """Commits archive parts; sources are opened once per process."""

    def __init__(self, manifest: Manifest) -> None:
        return_large_blocks()
        self._manifest = manifest
        self._sources: dict[tuple[str, int], Source] = {}

    def run(self, item: WorkItem) -> Report:
        """Store one part of an evaluation set's archive."""
        archive = Archive.open(archive_path(self._manifest, item.evaluation_set))
        position, _ = archive.segment_of(item.part)
        ledger = Ledger()
        with ledger.phase("ingest"):
            result = write_part(archive, item.part, self._source(item.evaluation_set, position))
        return Report(item, samples=result.accepted, rejected=result.rejected, ledger=ledger)

    def _source(self, name: str, position: int) -> Source:
        key = (name, position)
        if key not in self._sources:
            entry: EvaluationSet = next(e for e in self._manifest.evaluation_sets if e.name == name)
            self._sources[key] = open_source(entry.source[position], self._manifest.data_root)
        return self._sources[key]


@dataclass(frozen=True, slots=True)
class MakeIngestWorker:
    """Factory of ingestion's workers."""

    manifest: Manifest

    def __call__(self) -> IngestWorker:
        """Sources are opened when the first item needs them."""
        return IngestWorker(self.manifest)
