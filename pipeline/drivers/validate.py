"""``pipeline validate``: everything that can be checked before work starts, all problems at once."""

from pipeline.archives.archive import Archive
from pipeline.archives.ingest import plan_segments
from pipeline.drivers.opening import load_manifest_pair, require_evaluation_sets
from pipeline.errors import PipelineError, ProblemsError
from pipeline.manifest.schema import EvaluationSet, Manifest
from pipeline.models.class_embeddings import fill_templates
from pipeline.models.pair import Pair
from pipeline.stages.context import archive_path
from pipeline.stages.sources import open_sources, resolve_class_names


def validate(manifest: Manifest) -> list[str]:
    """Check pair, prompts, sources and, where there are any, archives; say what was found, a line each.

    Raises :class:`ProblemsError` with every problem found, one line each.
    """
    findings: list[str] = []
    problems: list[str] = []
    pair: Pair | None = None
    try:
        require_evaluation_sets(manifest)
    except PipelineError as error:
        problems.append(str(error))
    try:
        pair = load_manifest_pair(manifest)
        size = pair.preprocessing.geometry
        findings.append(f"pair: {pair.architecture.reference}, {size.height}x{size.width} pixels, both ends fit")
    except PipelineError as error:
        problems += str(error).splitlines()
    for item in manifest.evaluation_sets:
        try:
            findings.append(_check_set(manifest, item, pair))
        except PipelineError as error:
            problems += str(error).splitlines()
    if problems:
        raise ProblemsError(problems)
    return findings


def _check_set(manifest: Manifest, item: EvaluationSet, pair: Pair | None) -> str:
    sources = open_sources(item, manifest.data_root)
    names = resolve_class_names(item, sources[0].class_names)
    if pair is not None:
        pair.architecture.tokenize(fill_templates(names, manifest.prompts.templates))
    path = archive_path(manifest, item.name)
    state = "not ingested yet"
    if path.exists():
        archive = Archive.open(path)
        new, missing = plan_segments(archive, sources), archive.missing_parts()
        state = f"archive has {archive.parts} parts, {len(missing)} missing, {len(new)} sources to append"
    return f"{item.name}: {sum(map(len, sources))} images, {len(names)} classes, {state}"
