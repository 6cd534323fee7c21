"""``pipeline validate``: everything that can be checked before work starts, all problems at once."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from pipeline.archives.archive import Archive
from pipeline.archives.ingest import plan_segments
from pipeline.archives.source import Source
from pipeline.drivers.opening import load_manifest_pair, require_evaluation_sets
from pipeline.errors import PipelineError, ProblemsError
from pipeline.manifest.schema import EvaluationSet, Manifest
from pipeline.models.architectures import load_architecture
from pipeline.models.class_embeddings import fill_templates
from pipeline.references import is_file_reference
from pipeline.stages.context import archive_path
from pipeline.stages.sources import open_sources, resolve_class_names


def validate(manifest: Manifest) -> list[str]:
    """Check pair, prompts, sources, archives and training sets; say what was found, a line each.

    A checkpoint that the manifest itself says how to make may still be absent. Raises :class:`ProblemsError` with
    every problem found, one line each.
    """
    findings: list[str] = []
    problems: list[str] = []
    for check in _checks(manifest):
        try:
            findings.append(check())
        except PipelineError as error:
            problems += str(error).splitlines()
    if problems:
        raise ProblemsError(list(dict.fromkeys(problems)))
    return findings


def _checks(manifest: Manifest) -> Iterator[Callable[[], str]]:
    """One check per thing, so that a problem with one does not hide the others."""
    yield partial(_check_pair, manifest)
    for item in manifest.evaluation_sets:
        yield partial(_check_evaluation_set, manifest, item)
    for section in filter(None, (manifest.finetune.generalist, manifest.finetune.expert)):
        for use, items in (("training", section.train), ("validation", section.validation)):
            for item in items:
                yield partial(_check_training_set, manifest, item, use)


def _check_pair(manifest: Manifest) -> str:
    to_be_made = [
        f"pair.{role}"
        for role in ("generalist", "expert")
        if getattr(manifest.finetune, role) is not None and not _is_made(getattr(manifest.pair, role))
    ]
    if to_be_made:
        load_architecture(manifest.pair.architecture).build()
        return f"pair: {manifest.pair.architecture}; run `pipeline finetune` to make {' and '.join(to_be_made)}"
    if manifest.pair.expert is None and manifest.finetune.generalist is not None and not manifest.evaluation_sets:
        return f"pair: {manifest.pair.architecture}, a generalist alone"
    require_evaluation_sets(manifest)
    pair = load_manifest_pair(manifest)
    size = pair.preprocessing.geometry
    return f"pair: {pair.architecture.reference}, {size.height}x{size.width} pixels, both ends fit"


def _is_made(reference: str | None) -> bool:
    return reference is not None and (not is_file_reference(reference) or Path(reference).exists())


def _check_evaluation_set(manifest: Manifest, item: EvaluationSet) -> str:
    sources, found = _open_set(manifest, item)
    path = archive_path(manifest, item.name)
    if not path.exists():
        return f"{found}, not ingested yet"
    archive = Archive.open(path)
    new, missing = plan_segments(archive, sources), archive.missing_parts()
    return f"{found}, archive has {archive.parts} parts, {len(missing)} missing, {len(new)} sources to append"


def _check_training_set(manifest: Manifest, item: EvaluationSet, use: str) -> str:
    return f"{use} {_open_set(manifest, item)[1]}"


def _open_set(manifest: Manifest, item: EvaluationSet) -> tuple[Sequence[Source], str]:
    """Sources of a set, and what they hold; prompts that would be cut are refused here too."""
    sources = open_sources(item, manifest.data_root)
    names = resolve_class_names(item, sources[0].class_names)
    architecture = load_architecture(manifest.pair.architecture)
    architecture.tokenize(fill_templates(names, manifest.prompts.templates))
    return sources, f"{item.name}: {sum(map(len, sources)):,} images, {len(names)} classes"
