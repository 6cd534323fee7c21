"""``pipeline datasets``: statistics and provenance of the evaluation sets of several manifests."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from pipeline.archives.archive import Archive
from pipeline.errors import PipelineError, ProblemsError
from pipeline.manifest.schema import Manifest
from pipeline.results.datasets import dataset_provenance, dataset_statistics, declared_sources
from pipeline.stages.context import archive_path


def list_datasets(manifests: Sequence[Manifest]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Statistics and provenance of all evaluation sets, each archive once; seeds of one study share theirs.

    Where two manifests give one name to different archives, the manifest's name is put before it. Raises
    :class:`ProblemsError` naming every archive that is absent or not complete.
    """
    owners: dict[Path, tuple[Manifest, str]] = {}
    for manifest in manifests:
        for item in manifest.evaluation_sets:
            owners.setdefault(archive_path(manifest, item.name), (manifest, item.name))
    _require_complete(list(owners))
    names = [name for _, name in owners.values()]
    archives, conditions, declared = {}, {}, {}
    for path, (manifest, name) in owners.items():
        key = name if names.count(name) == 1 else f"{manifest.name}/{name}"
        archives[key] = path
        conditions[key] = next(item.condition for item in manifest.evaluation_sets if item.name == name)
        declared[key] = declared_sources(manifest.model_dump())[name]
    return dataset_statistics(archives, conditions, declared), dataset_provenance(archives, declared)


def _require_complete(archives: Sequence[Path]) -> None:
    problems = []
    for path in archives:
        try:
            archive = Archive.open(path)
            missing = archive.missing_parts()
            if missing:
                problems.append(f"{path}: {len(missing)} of {archive.parts} parts are missing; run `pipeline ingest`")
        except PipelineError as error:
            problems += str(error).splitlines()
    if problems:
        raise ProblemsError(problems)
