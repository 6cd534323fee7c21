"""Opening a run: everything that can be wrong is found before any hour is spent."""

import platform
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from importlib import metadata
from pathlib import Path
from typing import cast

from torch import nn

from pipeline.archives.archive import Archive
from pipeline.engines.engine import Engine
from pipeline.errors import ArchiveError, ManifestError, NumericKindError, PipelineError, ProblemsError
from pipeline.manifest.images import EvaluationSet
from pipeline.manifest.schema import Manifest
from pipeline.methods import is_user_rule, unmet_needs
from pipeline.models.architectures import AnyArchitecture
from pipeline.models.classifiers import ClassifierArchitecture
from pipeline.models.numeric_kind import differing_parts
from pipeline.models.per_sample import PerSampleTower, UnsupportedLayerError
from pipeline.models.sources import SourceModels
from pipeline.stages.context import MERGE_LOOP, RunContext, archive_path
from pipeline.stages.scoring_worker import identify, load_manifest_models
from pipeline.stages.selection import Selected, require_code_allowed, select_methods
from pipeline.stages.sources import check_declared
from pipeline.stages.user_rules import UserRule, find_user_rule, probe_user_rule
from pipeline.store.run_directory import RunDirectory

RECORDED_PACKAGES = (
    "pipeline",
    "torch",
    "open_clip_torch",
    "numpy",
    "pyarrow",
    "polars",
    "zarr",
    "ray",
    "timm",
    "safetensors",
)


def open_run(
    manifest: Manifest, engine: Engine, selected: Sequence[Selected] = (), *, allow_code: bool = False
) -> tuple[RunContext, SourceModels]:
    """Load and check the models, the archives, the methods and the numeric kind. Nothing is written yet.

    Raises :class:`ProblemsError` with every problem of every evaluation set, or the models'; :class:`ManifestError`
    when a method lacks what it needs; and :class:`NumericKindError` when the run was begun in another numeric kind.
    """
    require_evaluation_sets(manifest)
    require_code_allowed(selected, allowed=allow_code)
    require_models(manifest, selected)
    models = open_models(manifest)
    archives, problems = {}, []
    for item in manifest.evaluation_sets:
        try:
            archives[item.name] = _open_archive(manifest, item, models)
        except PipelineError as error:
            problems += str(error).splitlines()
    if problems:
        raise ProblemsError(problems)
    require_labels(selected, archives)
    class_counts = {len(archive.class_names) for archive in archives.values()}
    context = RunContext(
        manifest,
        identify(models),
        dict(engine.numeric_kind()),
        {item.key: item for item in selected},
        find_user_rules(selected, tuple(manifest.checkpoints), class_counts),
        _per_sample(manifest, models, selected),
    )
    for name, archive in archives.items():
        _check_classes(models, name, context.class_names(name, archive))
    _check_kind(context)
    return context, models


def record_run(context: RunContext, state: str) -> None:
    """Write what the run is made of to ``run.json``, once nothing cached contradicts it."""
    manifest = context.manifest
    class_names = {
        item.name: context.class_names(item.name, context.archive(item.name)) for item in manifest.evaluation_sets
    }
    selected = select_methods(manifest)
    methods = list(dict.fromkeys(item.method.name for item in selected))
    context.directory.update_record(
        state=state,
        manifest={**manifest.model_dump(mode="json"), "methods": methods},
        versions={"python": platform.python_version()} | {name: _version(name) for name in RECORDED_PACKAGES},
        seeds=manifest.seeds.model_dump(),
        numeric_kind=dict(context.kind),
        fingerprints=context.models.as_inputs(),
        class_names=class_names,
        variants=[item.key for item in selected],
        method_settings={item.key: dict(item.variant.settings) for item in selected},
    )


def open_models(manifest: Manifest) -> SourceModels:
    """All of the manifest's models; :class:`ManifestError` when one is not named, or has no text tower to take."""
    for name, reference in manifest.checkpoints.items():
        if reference is None:
            key = manifest.checkpoint_key(name)
            raise ManifestError(f"{manifest.name}: {key} is required for this command; name a checkpoint")
    models = load_manifest_models(manifest)
    if manifest.prompts.text_tower == "generalist" and models.has_text and "generalist" not in models.names:
        raise ManifestError(
            f"{manifest.name}: prompts.text_tower is generalist, but there is no such model; set it to merged"
        )
    return models


def require_models(manifest: Manifest, selected: Sequence[Selected]) -> None:
    """:class:`ManifestError` when a method needs models that the manifest does not name."""
    for item in selected:
        for need in unmet_needs(item.method, manifest.checkpoints):
            listed = ", ".join(manifest.checkpoints)
            raise ManifestError(f"{manifest.name}: method {item.method.name!r} needs {need}; the models are {listed}")


def require_labels(selected: Sequence[Selected], archives: Mapping[str, Archive]) -> None:
    """:class:`ManifestError` when a method, or the stream that it is given, needs labels and some image has none."""
    for item in selected:
        if not item.sees_labels:
            continue
        order = item.settings.get("order", "arrival")
        stream = "" if order == "arrival" else f" with order {order}"
        for name, archive in archives.items():
            missing = sum(archive.samples(part)["label"].null_count for part in range(archive.parts))
            if missing:
                raise ManifestError(
                    f"evaluation set {name!r}: method {item.method.name!r}{stream} needs labels, "
                    f"but {missing:,} images have none; "
                    "leave it out, or label them"
                )


def require_class_count(architecture: AnyArchitecture, name: str, class_names: Sequence[str]) -> None:
    """:class:`ManifestError` when a set has more or fewer classes than a classifier's head."""
    if isinstance(architecture, ClassifierArchitecture) and architecture.classes != len(class_names):
        raise ManifestError(
            f"evaluation set {name!r}: has {len(class_names)} classes, but the models' heads have "
            f"{architecture.classes}; score it with models of its own classes"
        )


def require_evaluation_sets(manifest: Manifest) -> None:
    """:class:`ManifestError` unless there is something to work on."""
    if not manifest.evaluation_sets:
        raise ManifestError(f"{manifest.name}: evaluation_sets is empty; list at least one set")


def find_user_rules(selected: Sequence[Selected], sources: Sequence[str], classes: set[int]) -> dict[str, UserRule]:
    """The user's own rules, found and tried on invented evidence of these sources and every class count at work."""
    rules: dict[str, UserRule] = {}
    for item in selected:
        reference = item.method.rule
        if reference is None or not is_user_rule(reference):
            continue
        rules[reference] = find_user_rule(reference, Path.cwd())
        for count in sorted(classes):
            probe_user_rule(rules[reference], sources, count, item.own_settings(), labels=item.gives_labels)
    return rules


def _per_sample(manifest: Manifest, models: SourceModels, selected: Sequence[Selected]) -> str:
    """How a λ for every image is scored: exact, or one merge for each where that is asked for or the tower needs it."""
    wanted = manifest.compute.per_sample
    if wanted == MERGE_LOOP or not any(item.method.grouping == "sample" for item in selected):
        return wanted
    tower = deepcopy(cast("nn.Module", models.model.visual)).eval()
    other = deepcopy(tower)
    for value in other.parameters():
        # Different everywhere: layers that are equal in both ends need no per-sample form, and would not be checked.
        value.data = value.data + 1
    try:
        PerSampleTower([tower, other])
    except UnsupportedLayerError as error:
        print(f"one merge for each image, as its exact form is not known: {error}", file=sys.stderr)
        return MERGE_LOOP
    return wanted


def _check_classes(models: SourceModels, name: str, class_names: Sequence[str]) -> None:
    """A linear head has the classes that it was trained with, in their order, whatever a set calls its own."""
    require_class_count(models.architecture, name, class_names)
    is_classifier = isinstance(models.architecture, ClassifierArchitecture)
    if is_classifier and models.class_names is not None and models.class_names != tuple(class_names):
        raise ManifestError(
            f"evaluation set {name!r}: its classes are {', '.join(class_names)}, but the models' heads were trained on "
            f"{', '.join(models.class_names)}, in this order; labels would be mixed up"
        )


def _open_archive(manifest: Manifest, item: EvaluationSet, models: SourceModels) -> Archive:
    path = archive_path(manifest, item.name)
    archive = Archive.open(path)
    wanted = models.preprocessing.geometry
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
    differing = [] if recorded is None else differing_parts(recorded, context.kind)
    if not differing:
        return
    parts = ", ".join(f"{name} was {before} and is now {now}" for name, before, now in differing)
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
