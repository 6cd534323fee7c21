"""Sources as the manifest names them."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.archives.medmnist import open_medmnist
from pipeline.archives.npz import NpzSource
from pipeline.archives.source import FirstImages, Source
from pipeline.archives.synthetic import SyntheticSource
from pipeline.errors import ManifestError, PipelineError, ProblemsError
from pipeline.manifest import schema


def open_source(spec: schema.SourceSpec, data_root: str | None) -> Source:
    """Open one source; ``SourceError`` when it is absent, empty or damaged."""
    match spec:
        case schema.MedMNISTSource():
            root = Path(data_root) if data_root else None
            return _limited(open_medmnist(spec.flag, spec.split, spec.size, root), spec.limit)
        case schema.NpzSource():
            return _limited(NpzSource(Path(spec.path), spec.split, spec.class_names), spec.limit)
        case schema.SyntheticSource():
            return SyntheticSource(
                spec.count,
                spec.seed,
                classes=spec.classes,
                site=spec.site,
                corruption=spec.corruption,
                severity=spec.severity,
                size=spec.size,
            )


def _limited(source: Source, limit: int | None) -> Source:
    return source if limit is None else FirstImages(source, limit)


def open_sources(item: schema.EvaluationSet, data_root: str | None) -> Sequence[Source]:
    """Open all sources of a set; :class:`ProblemsError` lists every one that cannot be, by the set's name."""
    sources, problems = [], []
    for spec in item.source:
        try:
            sources.append(open_source(spec, data_root))
        except PipelineError as error:
            problems.append(f"evaluation set {item.name!r}: {error}")
    if problems:
        raise ProblemsError(problems)
    return sources


def resolve_class_names(item: schema.EvaluationSet, own: Sequence[str]) -> list[str]:
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
