"""Opening a run: everything that can be wrong is found before any hour is spent."""

import platform
from importlib import metadata
from pathlib import Path

from pipeline.archives.archive import Archive
from pipeline.engines.engine import Engine
from pipeline.errors import ArchiveError, ManifestError, NumericKindError, PipelineError, ProblemsError
from pipeline.manifest.schema import EvaluationSet, Manifest
from pipeline.models.pair import Pair, load_pair
from pipeline.stages.context import RunContext, archive_path
from pipeline.stages.scoring_worker import identify
from pipeline.stages.sources import check_declared
from pipeline.stages.variants import method_variant
from pipeline.store.run_directory import RunDirectory

RECORDED_PACKAGES = ("pipeline", "torch", "open_clip_torch", "numpy", "pyarrow", "polars", "zarr", "ray")


def open_run(manifest: Manifest, engine: Engine) -> tuple[RunContext, Pair]:
    """Load and check the pair, the archives and the numeric kind. Nothing is written yet.

    Raises :class:`ProblemsError` with every problem of every evaluation set, or the pair's; and
    :class:`NumericKindError` when the run was begun in another numeric kind.
    """
    require_evaluation_sets(manifest)
    pair = load_manifest_pair(manifest)
    archives, problems = {}, []
    for item in manifest.evaluation_sets:
        try:
            archives[item.name] = _open_archive(manifest, item, pair)
        except PipelineError as error:
            problems += str(error).splitlines()
    if problems:
        raise ProblemsError(problems)
    context = RunContext(manifest, identify(pair), dict(engine.numeric_kind()))
    for name, archive in archives.items():
        context.class_names(name, archive)
    _check_kind(context)
    return context, pair


def record_run(context: RunContext, state: str) -> None:
    """Write what the run is made of to ``run.json``, once nothing cached contradicts it."""
    manifest = context.manifest
    class_names = {
        item.name: context.class_names(item.name, context.archive(item.name)) for item in manifest.evaluation_sets
    }
    context.directory.update_record(
        state=state,
        manifest={**manifest.model_dump(mode="json"), "methods": manifest.selected_methods},
        versions={"python": platform.python_version()} | {name: _version(name) for name in RECORDED_PACKAGES},
        seeds=manifest.seeds.model_dump(),
        numeric_kind=dict(context.kind),
        fingerprints=context.pair.as_inputs(),
        class_names=class_names,
        variants=[method_variant(name, manifest).folder for name in manifest.selected_methods],
    )


def load_manifest_pair(manifest: Manifest) -> Pair:
    """The manifest's pair; :class:`ManifestError` when it names no expert."""
    settings = manifest.pair
    if settings.expert is None:
        raise ManifestError(f"{manifest.name}: pair.expert is required for this command; name a checkpoint")
    return load_pair(settings.architecture, settings.generalist, settings.expert)


def require_evaluation_sets(manifest: Manifest) -> None:
    """:class:`ManifestError` unless there is something to work on."""
    if not manifest.evaluation_sets:
        raise ManifestError(f"{manifest.name}: evaluation_sets is empty; list at least one set")


def _open_archive(manifest: Manifest, item: EvaluationSet, pair: Pair) -> Archive:
    path = archive_path(manifest, item.name)
    archive = Archive.open(path)
    wanted = pair.preprocessing.geometry
    if archive.geometry != wanted:
        raise ArchiveError(
            f"{path}: holds images made for {archive.geometry}, but the model wants {wanted}; "
            "give another 'archives' folder and ingest again"
        )
    check_declared(item, archive)
    missing = archive.missing_parts()
    if missing:
        raise ArchiveError(f"{path}: {len(missing)} of {archive.parts} parts are missing; run `pipeline ingest`")
    return archive


def _check_kind(context: RunContext) -> None:
    if not context.directory.record_path.exists():
        return
    recorded = context.directory.read_record().get("numeric_kind")
    if recorded is None or recorded == dict(context.kind):
        return
    parts = ", ".join(
        f"{name} was {recorded.get(name)} and is now {context.kind[name]}"
        for name in context.kind
        if recorded.get(name) != context.kind[name]
    )
    raise NumericKindError(
        f"{context.directory.root}: the run was begun in another numeric kind: {parts}; "
        "its results would not be comparable to the bit: restore it, or give another 'output'"
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def run_directory(manifest: Manifest) -> RunDirectory:
    """The manifest's run directory."""
    return RunDirectory(Path(manifest.output))
