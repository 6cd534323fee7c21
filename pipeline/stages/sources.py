"""Sources as the manifest names them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.archives.archive import Archive
from pipeline.archives.corrupt import CorruptSource
from pipeline.archives.folder import FolderSource
from pipeline.archives.medimeta import MedIMetaSource, find_medimeta
from pipeline.archives.medmnist import open_medmnist
from pipeline.archives.medmnist_c import open_medmnist_c
from pipeline.archives.npz import NpzSource
from pipeline.archives.source import JSON, ChosenImages, FirstImages, Source
from pipeline.archives.stratified import labels_of, stratified_choice
from pipeline.archives.synthetic import SyntheticSource
from pipeline.coefficients.streams import dirichlet_shares
from pipeline.errors import ArchiveError, ManifestError, PipelineError, ProblemsError, SourceError, StaleCacheError
from pipeline.manifest import images


def open_source(spec: images.SourceSpec, data_root: str | None) -> Source:
    """Open one source; ``SourceError`` when it is absent, empty or damaged."""
    match spec:
        case images.MedMNISTSource():
            root = Path(data_root) if data_root else None
            return _narrowed(open_medmnist(spec.flag, spec.split, spec.size, root), spec)
        case images.NpzSource():
            return _narrowed(NpzSource(Path(spec.path), spec.split, spec.class_names), spec)
        case images.MedMNISTCSource():
            return _open_corrupted_files(spec, data_root)
        case images.CorruptSource():
            return _corrupted(open_source(spec.of, data_root), spec)
        case images.SyntheticSource():
            return SyntheticSource(
                spec.count,
                spec.seed,
                classes=spec.classes,
                site=spec.site,
                corruption=spec.corruption,
                severity=spec.severity,
                size=spec.size,
            )
        case images.MedIMetaSource():
            folder = find_medimeta(
                spec.dataset, Path(spec.root) if spec.root else None, Path(data_root) if data_root else None
            )
            return _first(MedIMetaSource(folder, spec.split, spec.task, spec.splits), spec.limit)
        case images.FolderSource():
            labels = Path(spec.labels) if spec.labels else None
            return _first(FolderSource(Path(spec.path), labels=labels, class_names=spec.class_names), spec.limit)


def _narrowed(source: NpzSource, spec: images.MedMNISTSource | images.NpzSource) -> Source:
    """Of a file's split, what the manifest asks for: one site's share, a stratified part, and the first images."""
    positions, identity = np.arange(len(source)), dict[str, JSON]()
    if spec.site is not None:
        generator = np.random.default_rng(spec.site.seed)
        try:
            shares = dirichlet_shares(source.labels, spec.site.of, spec.site.alpha, generator)
        except ValueError as error:
            raise SourceError(f"{source.path}: split {spec.split!r} cannot be cut into sites: {error}") from error
        if not len(shares[spec.site.index]):
            raise SourceError(
                f"{source.path}: split {spec.split!r}: site {spec.site.index} of {spec.site.of} got no image at "
                f"alpha {spec.site.alpha:g}; choose another index, seed or alpha"
            )
        positions, identity["site"] = shares[spec.site.index], spec.site.model_dump()
    if spec.stratified is not None:
        where = f"{source.path}: split {spec.split!r}"
        positions = positions[_stratified(where, source.labels[positions], spec.stratified)]
        identity["stratified"] = spec.stratified.model_dump()
    narrowed = ChosenImages(source, positions, identity) if identity else source
    return _first(narrowed, spec.limit)


def _first(source: Source, limit: int | None) -> Source:
    return source if limit is None else FirstImages(source, limit)


def _stratified(where: str, labels: NDArray[np.int64], spec: images.Stratified) -> NDArray[np.int64]:
    try:
        return stratified_choice(labels, spec.images, spec.seed)
    except ValueError as error:
        raise SourceError(f"{where}: {error}") from error


def _open_corrupted_files(spec: images.MedMNISTCSource, data_root: str | None) -> Source:
    if spec.root is not None:
        roots = [Path(spec.root)]
    else:
        roots = [] if data_root is None else [Path(data_root) / "medmnist-c", Path(data_root)]
    return open_medmnist_c(
        spec.dataset,
        roots,
        corruptions=spec.corruptions,
        folds=spec.folds,
        severities=spec.severities,
        class_names=spec.class_names,
        identity=_declared_identity(spec),
        stratified=None if spec.stratified is None else (spec.stratified.images, spec.stratified.seed),
    )


def _corrupted(base: Source, spec: images.CorruptSource) -> Source:
    if spec.stratified is not None:
        positions = _stratified("corrupt", labels_of(base), spec.stratified)
        base = ChosenImages(base, positions, {"stratified": spec.stratified.model_dump()})
    return CorruptSource(base, spec.corruptions, spec.severities, parameters=spec.parameters, seed=spec.seed)


def open_sources(item: images.EvaluationSet, data_root: str | None) -> Sequence[Source]:
    """Open all sources of a set; :class:`ProblemsError` lists every one that cannot be, by the set's name."""
    sources, problems = [], []
    for spec in item.source:
        try:
            sources.append(open_source(spec, data_root))
        except PipelineError as error:
            problems.append(f"evaluation set {item.name!r}: {error}")
    if problems:
        raise ProblemsError(problems)
    require_same_classes(f"evaluation set {item.name!r}", sources)
    return sources


def resolve_class_names(item: images.EvaluationSet, own: Sequence[str]) -> list[str]:
    """Class names as prompts use them, in label order: the set's, else its source's ``own``.

    :class:`ManifestError` when the set names more or fewer classes than its labels have.
    """
    if item.class_names is not None and len(item.class_names) != len(own):
        msg = (
            f"evaluation set {item.name!r}: class_names lists {len(item.class_names)} names, its source has "
            f"{len(own)} classes ({', '.join(own)}); give one name per class, in this order"
        )
        raise ManifestError(msg)
    return list(item.class_names or own)


def check_declared(item: images.EvaluationSet, archive: Archive) -> None:
    """Check that an archive was made from the sources that the manifest names; no source is opened.

    Raises :class:`StaleCacheError` naming what changed, and :class:`ArchiveError` when the manifest lists sources that
    the archive does not hold yet, or no longer lists some that it holds.
    """
    where = f"{archive.path}: evaluation set {item.name!r}"
    if len(item.source) > len(archive.segments):
        raise ArchiveError(f"{where}: the manifest lists sources that it does not hold yet; run `pipeline ingest`")
    if len(item.source) < len(archive.segments):
        raise ArchiveError(f"{where}: it holds sources that the manifest does not list; list them all")
    for position, (spec, segment) in enumerate(zip(item.source, archive.segments, strict=True)):
        changed = _changed(_declared_identity(spec), segment.source)
        if _declared_class_names(spec) not in (None, list(archive.class_names)):
            changed.append("class_names")
        if changed:
            raise StaleCacheError(
                f"{where}: source {position} changed in {', '.join(changed)} since it was stored; "
                "give another 'archives' folder and ingest again"
            )


def _declared_identity(spec: images.SourceSpec) -> dict[str, JSON]:
    """What the manifest itself says of a source's identity: all but the digest of its file."""
    match spec:
        case images.MedMNISTSource():
            suffix = "" if spec.size == 28 else f"_{spec.size}"
            return _of_file(f"{spec.flag}{suffix}.npz", spec)
        case images.NpzSource():
            return _of_file(Path(spec.path).name, spec)
        case images.SyntheticSource():
            return spec.model_dump()
        case images.MedIMetaSource():
            undeclared = {"root"} if spec.task else {"root", "task"}
            return spec.model_dump(exclude=undeclared)
        case images.FolderSource():
            labels = Path(spec.labels).name if spec.labels else None
            return {"kind": "folder", "folder": Path(spec.path).name, "labels": labels, "limit": spec.limit}
        case images.MedMNISTCSource():
            return spec.model_dump(exclude={"root", "class_names"})
        case images.CorruptSource():
            of = {"stratified": None, **_declared_identity(spec.of)}
            if spec.stratified is not None:
                of["stratified"] = spec.stratified.model_dump()
            return {**spec.model_dump(exclude={"of", "stratified"}), "of": of}


def _declared_class_names(spec: images.SourceSpec) -> list[str] | None:
    match spec:
        case images.NpzSource() | images.MedMNISTCSource() | images.FolderSource():
            return spec.class_names
        case images.CorruptSource():
            return _declared_class_names(spec.of)
        case _:
            return None


def _changed(declared: Mapping[str, JSON], stored: Mapping[str, JSON]) -> list[str]:
    """Names of the settings that differ; those of a source inside another one by their path."""
    changed = []
    for name, value in declared.items():
        found = stored.get(name)
        if name == "of" and isinstance(value, dict) and isinstance(found, dict):
            changed += [f"of.{inner}" for inner in _changed(value, found)]
        elif found != value:
            changed.append(name)
    return changed


def _of_file(name: str, spec: images.MedMNISTSource | images.NpzSource) -> dict[str, JSON]:
    site = None if spec.site is None else spec.site.model_dump()
    stratified = None if spec.stratified is None else spec.stratified.model_dump()
    return {
        "kind": "npz",
        "file": name,
        "split": spec.split,
        "limit": spec.limit,
        "site": site,
        "stratified": stratified,
    }


def require_same_classes(where: str, sources: Sequence[Source]) -> None:
    """:class:`ManifestError` unless all sources name the same classes in the same order: labels are positions."""
    first = sources[0].class_names
    for source in sources[1:]:
        if source.class_names != first:
            raise ManifestError(f"{where}: its sources name different classes: {first} and {source.class_names}")
