"""What is planned for: evaluation sets as they will be once ingested, whatever of that is there already."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.archives.archive import Archive, imagine_archive
from pipeline.archives.ingest import plan_segments
from pipeline.archives.source import Source
from pipeline.drivers.opening import open_fitting_archive
from pipeline.errors import PipelineError, ProblemsError
from pipeline.manifest.images import EvaluationSet
from pipeline.manifest.schema import Manifest
from pipeline.models.sources import SourceModels
from pipeline.stages.context import archive_path
from pipeline.stages.sources import check_declared, open_sources


@dataclass(frozen=True, slots=True)
class Subject:
    """An evaluation set: its archive with all parts that it will have, and those among them not written yet.

    ``sources`` are open only where something is to be ingested.
    """

    name: str
    archive: Archive
    unwritten: frozenset[int]
    sources: Sequence[Source]

    @property
    def written(self) -> list[int]:
        """Parts that are there, ascending."""
        return [part for part in range(self.archive.parts) if part not in self.unwritten]

    def images(self, part: int) -> int:
        """Images of a part: the accepted ones, or all that are listed where none was looked at yet."""
        start, stop = self.archive.part_range(part)
        return stop - start if part in self.unwritten else self.archive.accepted(part)

    def rows(self, part: int) -> NDArray[np.int64]:
        """Their addresses, ascending."""
        if part in self.unwritten:
            return np.arange(*self.archive.part_range(part), dtype=np.int64)
        rows: NDArray[np.int64] = self.archive.samples(part)["row"].to_numpy()
        return rows

    def total(self) -> int:
        """Images of all parts."""
        return sum(self.images(part) for part in range(self.archive.parts))


def open_subjects(manifest: Manifest, models: SourceModels) -> list[Subject]:
    """All evaluation sets; nothing is written. Raises :class:`ProblemsError` with the problems of all of them."""
    subjects: list[Subject] = []
    problems: list[str] = []
    for item in manifest.evaluation_sets:
        try:
            subjects.append(_open_subject(manifest, item, models))
        except PipelineError as error:
            problems += str(error).splitlines()
    if problems:
        raise ProblemsError(problems)
    return subjects


def _open_subject(manifest: Manifest, item: EvaluationSet, models: SourceModels) -> Subject:
    path = archive_path(manifest, item.name)
    if path.exists():
        archive = open_fitting_archive(path, models)
        if len(item.source) <= len(archive.segments):
            check_declared(item, archive)
        if len(item.source) == len(archive.segments) and not archive.missing_parts():
            return Subject(item.name, archive, frozenset(), ())
        sources = open_sources(item, manifest.data_root)
    else:
        sources = open_sources(item, manifest.data_root)
        geometry = models.preprocessing.geometry
        names = sources[0].class_names
        archive = imagine_archive(path, class_names=names, geometry=geometry, part_rows=manifest.part_rows)
    for position in plan_segments(archive, sources):
        archive = archive.grown(sources[position].identity, len(sources[position]))
    return Subject(item.name, archive, frozenset(archive.missing_parts()), sources)
