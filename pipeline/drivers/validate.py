"""``pipeline validate``: everything that can be checked before work starts, all problems at once."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from pipeline.archives.archive import Archive
from pipeline.archives.ingest import plan_segments
from pipeline.archives.source import Source
from pipeline.drivers.downloads import (
    NOT_YET,
    awaited_architecture,
    awaited_images,
    awaited_weights,
    published_names,
)
from pipeline.drivers.opening import (
    find_user_rules,
    open_models,
    require_class_count,
    require_evaluation_sets,
    require_labels,
    require_models,
)
from pipeline.drivers.precompute import planned_methods
from pipeline.errors import ManifestError, PipelineError, ProblemsError
from pipeline.manifest.images import EvaluationSet
from pipeline.manifest.schema import Manifest
from pipeline.models.architectures import Architecture
from pipeline.models.class_embeddings import fill_templates
from pipeline.models.sources import load_sources
from pipeline.references import is_file_reference
from pipeline.stages.context import archive_path
from pipeline.stages.scoring_worker import load_manifest_architecture
from pipeline.stages.selection import require_code_allowed, select_methods
from pipeline.stages.sources import open_sources, resolve_class_names


class InvalidManifestError(ProblemsError):
    """What is wrong; ``awaited`` are the lines on what is only to be downloaded, which is no fault."""

    def __init__(self, problems: Sequence[str], awaited: Sequence[str]) -> None:
        super().__init__(problems)
        self.awaited = tuple(awaited)

    def __reduce__(self) -> tuple[type["InvalidManifestError"], tuple[tuple[str, ...], ...]]:  # type: ignore[override]
        """Keep both lists across processes."""
        return (type(self), (self.problems, self.awaited))


def validate(manifest: Manifest, *, allow_code: bool = False) -> list[str]:
    """Check models, methods, prompts, sources, archives and training sets; say what was found, a line each.

    A checkpoint that the manifest itself says how to make may still be absent. What the program would download is named
    with where it comes from, and not fetched: what depends on it is checked once it is there. Raises
    :class:`InvalidManifestError` with every problem found, one line each, and apart from them what is to be downloaded.
    """
    findings: list[str] = []
    problems: list[str] = []
    for check in _checks(manifest, allow_code=allow_code):
        try:
            findings += check().splitlines()
        except PipelineError as error:
            problems += str(error).splitlines()
    if problems:
        awaited = [line for line in findings if NOT_YET in line]
        raise InvalidManifestError(list(dict.fromkeys(problems)), list(dict.fromkeys(awaited)))
    return findings


def _checks(manifest: Manifest, *, allow_code: bool) -> Iterator[Callable[[], str]]:
    """One check per thing, so that a problem with one does not hide the others."""
    yield partial(_check_models, manifest)
    yield partial(_check_methods, manifest, allow_code=allow_code)
    for item in manifest.evaluation_sets:
        yield partial(_check_evaluation_set, manifest, item)
    for section in manifest.finetune.values():
        for use, items in (("training", section.train), ("validation", section.validation)):
            for item in items:
                yield partial(_check_training_set, manifest, item, use)


def _check_models(manifest: Manifest) -> str:
    section, checkpoints = manifest.models_section, manifest.checkpoints
    if awaited := awaited_architecture(manifest):
        line = f"{section}: {manifest.architecture}: {NOT_YET} {' and '.join(awaited)}"
        return "\n".join([line, *awaited_weights(manifest, None)])
    awaited = awaited_weights(manifest, load_manifest_architecture(manifest))
    to_be_made = [manifest.checkpoint_key(name) for name in manifest.finetune if not _is_made(checkpoints[name])]
    if to_be_made:
        load_manifest_architecture(manifest).build()
        if not awaited:
            _load_given(manifest)
        line = f"{section}: {manifest.architecture}; run `pipeline finetune` to make {' and '.join(to_be_made)}"
        return "\n".join([line, *awaited])
    if None in checkpoints.values() and manifest.finetune and not manifest.evaluation_sets:
        return f"{section}: {manifest.architecture}, a generalist alone"
    require_evaluation_sets(manifest)
    if awaited:
        return "\n".join([f"{section}: {manifest.architecture}", *awaited])
    models = open_models(manifest)
    size = models.preprocessing.geometry
    fit = "both ends fit" if section == "pair" else f"{len(models.names)} sources fit"
    return f"{section}: {models.architecture.reference}, {size.height}x{size.width} pixels, {fit}"


def _load_given(manifest: Manifest) -> None:
    """Load the checkpoints that no training of the manifest makes: a night's training begins with one of them."""
    given = {
        name: reference
        for name, reference in manifest.checkpoints.items()
        if reference is not None and name not in manifest.finetune
    }
    if given:
        load_sources(manifest.architecture, given, manifest.models_section, manifest.classes)


def _check_methods(manifest: Manifest, *, allow_code: bool) -> str:
    if not manifest.evaluation_sets:
        return "methods: none needed without evaluation sets"
    selected = planned_methods(manifest)
    require_models(manifest, selected)
    require_code_allowed(selected, allowed=allow_code)
    archives = {item.name: archive_path(manifest, item.name) for item in manifest.evaluation_sets}
    opened = {name: Archive.open(path) for name, path in archives.items() if path.exists()}
    require_labels(selected, {name: archive for name, archive in opened.items() if not archive.missing_parts()})
    counts = {len(archive.class_names) for archive in opened.values()} or {2}
    find_user_rules(selected, tuple(manifest.checkpoints), counts)
    return f"methods: {', '.join(item.key for item in select_methods(manifest))}"


def _is_made(reference: str | None) -> bool:
    return reference is not None and (not is_file_reference(reference) or Path(reference).exists())


def _check_evaluation_set(manifest: Manifest, item: EvaluationSet) -> str:
    sources, found = _open_set(manifest, item)
    path = archive_path(manifest, item.name)
    if not path.exists():
        return f"{found}, not ingested yet" if sources else found
    archive = Archive.open(path)
    new, missing = plan_segments(archive, sources) if sources else [], archive.missing_parts()
    return f"{found}, archive has {archive.parts} parts, {len(missing)} missing, {len(new)} sources to append"


def _check_training_set(manifest: Manifest, item: EvaluationSet, use: str) -> str:
    return f"{use} {_open_set(manifest, item)[1]}"


def _open_set(manifest: Manifest, item: EvaluationSet) -> tuple[Sequence[Source], str]:
    """Sources of a set, none while one is to be downloaded, and what they hold.

    Prompts that would be cut are refused here too.
    """
    try:
        awaited = awaited_images(item, manifest.data_root)
    except PipelineError as error:
        raise ManifestError(f"evaluation set {item.name!r}: {error}") from error
    sources = [] if awaited else open_sources(item, manifest.data_root)
    own = sources[0].class_names if sources else published_names(item)
    names = resolve_class_names(item, own) if own else []
    if names and not awaited_architecture(manifest):
        architecture = load_manifest_architecture(manifest)
        require_class_count(architecture, item.name, names)
        if isinstance(architecture, Architecture):
            architecture.tokenize(fill_templates(names, manifest.prompts.templates))
    if awaited:
        return sources, f"{item.name}: {NOT_YET} {' and '.join(awaited)}"
    return sources, f"{item.name}: {sum(map(len, sources)):,} images, {len(own)} classes"
