"""``pipeline datasets``: statistics and provenance of the evaluation sets of several manifests."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from pipeline.archives.archive import Archive
from pipeline.errors import PipelineError, ProblemsError
from pipeline.manifest.images import EvaluationSet
from pipeline.manifest.schema import Manifest
from pipeline.results.datasets import dataset_provenance, dataset_statistics
from pipeline.stages.context import archive_path
from pipeline.stages.sources import check_declared


def list_datasets(manifests: Sequence[Manifest]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Statistics and provenance of all evaluation sets, each archive once; seeds of one study share theirs.

    Where two manifests give one name to different archives, the manifest's name is put before it. Raises
    :class:`ProblemsError` naming every archive that is absent, not complete or made from other sources.
    """
    owners: dict[Path, tuple[Manifest, EvaluationSet]] = {}
    for manifest in manifests:
        for item in manifest.evaluation_sets:
            owners.setdefault(archive_path(manifest, item.name), (manifest, item))
    _require_complete({path: item for path, (_, item) in owners.items()})
    names = [item.name for _, item in owners.values()]
    archives, conditions, declared = {}, {}, {}
    for path, (manifest, item) in owners.items():
        key = item.name if names.count(item.name) == 1 else f"{manifest.name}/{item.name}"
        archives[key], conditions[key] = path, item.condition
        declared[key] = [spec.model_dump() for spec in item.source]
    return dataset_statistics(archives, conditions, declared), dataset_provenance(archives, declared)


def _require_complete(items: Mapping[Path, EvaluationSet]) -> None:
    problems = []
    for path, item in items.items():
        try:
            archive = Archive.open(path)
            check_declared(item, archive)
            missing = archive.missing_parts()
            if missing:
                problems.append(f"{path}: {len(missing)} of {archive.parts} parts are missing; run `pipeline ingest`")
        except PipelineError as error:
            problems += str(error).splitlines()
    if problems:
        raise ProblemsError(problems)
