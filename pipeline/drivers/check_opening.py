"""Opening what ``pipeline check`` compares: evaluation sets from their archives, training sets from their sources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.archives.archive import Archive
from pipeline.drivers.check_sets import ArchivedImages, TrainingImages
from pipeline.drivers.check_training import Lineage, Use, card_contradiction
from pipeline.errors import ArchiveError, PipelineError, ProblemsError
from pipeline.geometry import Geometry
from pipeline.manifest.images import EvaluationSet
from pipeline.manifest.schema import Manifest
from pipeline.stages.context import archive_path
from pipeline.stages.sources import check_declared, open_sources, resolve_class_names
from pipeline.store.fingerprints import digest_json


@dataclass(slots=True)
class CheckedSet:
    """An evaluation set at work: its archive, its images, and where each corrupted image's base lies."""

    item: EvaluationSet
    archive: Archive
    images: ArchivedImages
    base_of: dict[int, tuple[str, int]] = field(default_factory=dict)
    own: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))


@dataclass(slots=True)
class TrainedSet:
    """A training set at work; ``problem`` says why its images could not be read."""

    model: str
    name: str
    role: str
    identity: list[Any]
    images: TrainingImages | None = None
    problem: str | None = None
    class_names: Sequence[str] = ()


def open_checked_sets(manifest: Manifest) -> tuple[dict[str, CheckedSet], dict[str, str]]:
    """The evaluation sets that have an archive, hashed, and why the others cannot be checked.

    :class:`ProblemsError` when no set has one.
    """
    sets: dict[str, CheckedSet] = {}
    unchecked: dict[str, str] = {}
    for item in manifest.evaluation_sets:
        try:
            archive = _open_archive(manifest, item)
            geometry = next((each.archive.geometry for each in sets.values()), archive.geometry)
            if archive.geometry != geometry:
                raise ArchiveError(
                    f"{archive.path}: holds images made for {archive.geometry}, the sets before it {geometry}; "
                    "give another 'archives' folder and ingest again"
                )
            sets[item.name] = CheckedSet(item, archive, ArchivedImages(archive))
        except PipelineError as error:
            unchecked[item.name] = str(error)
    if not sets:
        raise ProblemsError([line for problem in unchecked.values() for line in problem.splitlines()])
    return sets, unchecked


def _open_archive(manifest: Manifest, item: EvaluationSet) -> Archive:
    archive = Archive.open(archive_path(manifest, item.name))
    check_declared(item, archive)
    resolve_class_names(item, archive.class_names)
    if missing := archive.missing_parts():
        parts = f"{len(missing)} of {archive.parts} parts are missing"
        raise ArchiveError(f"{archive.path}: {parts}; run `pipeline ingest`")
    return archive


def find_bases(sets: Mapping[str, CheckedSet]) -> None:
    """Corrupted images are compared through their base image where some set holds it, and as they are elsewhere."""
    wanted = np.concatenate([each.images.hashes.clusters[each.images.corrupted] for each in sets.values()])
    bases: dict[int, tuple[str, int]] = {}
    for name, each in sets.items():
        clusters = each.images.hashes.clusters
        for position in np.flatnonzero(~each.images.corrupted & np.isin(clusters, wanted)).tolist():
            bases.setdefault(int(clusters[position]), (name, position))
    for each in sets.values():
        clusters = each.images.hashes.clusters
        corrupted = np.flatnonzero(each.images.corrupted).tolist()
        each.base_of = {at: bases[int(clusters[at])] for at in corrupted if int(clusters[at]) in bases}
        own = np.ones(len(clusters), dtype=np.bool_)
        own[list(each.base_of)] = False
        each.own = np.flatnonzero(own)


def open_trained_sets(lineages: Sequence[Lineage], geometry: Geometry) -> tuple[list[TrainedSet], list[dict[str, str]]]:
    """All training sets, each distinct one read once, and what cannot be known, by model."""
    trained: list[TrainedSet] = []
    unknown = [{"model": each.model, "reason": each.unknown} for each in lineages if each.unknown is not None]
    read: dict[str, TrainingImages] = {}
    for lineage in lineages:
        own = [_open_use(lineage.model, use, geometry, read) for use in lineage.uses]
        unknown += [{"model": each.model, "reason": each.problem} for each in own if each.problem is not None]
        counts = {
            each.name: (len(each.images.hashes), len(other.images.hashes))
            for each in own
            for other in own
            if each.role == "training" and other.role == "validation" and other.name == each.name
            if each.images is not None and other.images is not None
        }
        if counts and len(counts) * 2 == len(own) and (contradiction := card_contradiction(lineage, counts)):
            unknown.append({"model": lineage.model, "reason": contradiction})
        trained += own
    return trained, unknown


def _open_use(model: str, use: Use, geometry: Geometry, read: dict[str, TrainingImages]) -> TrainedSet:
    trained = TrainedSet(model, use.item.name, use.role, [])
    try:
        sources = open_sources(use.item, use.data_root)
        trained.class_names = resolve_class_names(use.item, sources[0].class_names)
        trained.identity = [dict(source.identity) for source in sources]
        key = digest_json(trained.identity)
        if key not in read:
            read[key] = TrainingImages(sources, geometry)
        trained.images = read[key]
    except PipelineError as error:
        reason = "; ".join(str(error).splitlines()).replace("evaluation set", f"{use.role} set")
        trained.problem = f"its {use.role} images cannot be read: {reason}"
    return trained
