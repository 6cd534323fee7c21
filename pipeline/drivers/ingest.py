"""``pipeline ingest``: every evaluation set to its archive."""

from pathlib import Path

from pipeline.archives.archive import Archive, create_or_open
from pipeline.archives.ingest import append_segment, plan_segments
from pipeline.archives.source import Source
from pipeline.drivers.opening import require_evaluation_sets
from pipeline.drivers.summary import Summary
from pipeline.engines.engine import Engine, Job
from pipeline.errors import PipelineError, ProblemsError
from pipeline.geometry import Geometry
from pipeline.manifest.schema import Manifest
from pipeline.models.publications import read_publication, stated_preprocessing
from pipeline.progress import sample_progress
from pipeline.stages.context import archive_path
from pipeline.stages.ingest import MakeIngestWorker
from pipeline.stages.scoring_worker import load_manifest_architecture
from pipeline.stages.sources import open_sources, resolve_class_names
from pipeline.stages.work import Report, WorkItem
from pipeline.store.lease import hold_lease


def ingest(manifest: Manifest, engine: Engine) -> Summary:
    """Make or extend the archives; parts that are there are left alone.

    Raises :class:`ProblemsError` with the problems of all sources before the first image is stored.
    """
    require_evaluation_sets(manifest)
    architecture = load_manifest_architecture(manifest)
    references = [reference for reference in manifest.checkpoints.values() if reference is not None]
    stated = stated_preprocessing([read_publication(reference, architecture) for reference in references])
    geometry = architecture.preprocessing(architecture.build(), stated).geometry
    summary = Summary("ingest", manifest.archives)
    with hold_lease(Path(manifest.archives)):
        archives = _list_sources(manifest, geometry)
        items = []
        for name, archive in archives.items():
            missing = archive.missing_parts()
            summary.skipped += archive.parts - len(missing)
            items += [WorkItem(name, part) for part in missing]
        sizes = {item: _rows(archives[item.evaluation_set], item.part) for item in items}
        with sample_progress("ingest", sum(sizes.values())) as progress:

            def on_report(report: Report) -> None:
                summary.count(report)
                progress.advance(sizes[report.item])

            engine.run(Job("ingest", items, MakeIngestWorker(manifest), scores=False), on_report)
    return summary


def _list_sources(manifest: Manifest, geometry: Geometry) -> dict[str, Archive]:
    """Open every source and every archive, and list what is new, once nothing is wrong with any of them."""
    opened: dict[str, list[Source]] = {}
    problems: list[str] = []
    for item in manifest.evaluation_sets:
        try:
            opened[item.name] = list(open_sources(item, manifest.data_root))
            resolve_class_names(item, opened[item.name][0].class_names)
        except PipelineError as error:
            problems += str(error).splitlines()
    if problems:
        raise ProblemsError(problems)
    archives: dict[str, Archive] = {}
    new: dict[str, list[int]] = {}
    for name, sources in opened.items():
        try:
            archives[name] = create_or_open(
                archive_path(manifest, name),
                class_names=sources[0].class_names,
                geometry=geometry,
                part_rows=manifest.part_rows,
            )
            new[name] = plan_segments(archives[name], sources)
        except PipelineError as error:
            problems += str(error).splitlines()
    if problems:
        raise ProblemsError(problems)
    for name, positions in new.items():
        for position in positions:
            append_segment(archives[name], opened[name][position])
    return archives


def _rows(archive: Archive, part: int) -> int:
    start, stop = archive.part_range(part)
    return stop - start
